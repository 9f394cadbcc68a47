"""The whole method on the embedded miniature: record, find, rewrite, verify, serve, look at the routing, measure. Offline.

It ends with the same edit in a GGUF file, answered by llama.cpp.

usage: python examples/demo.py [--model examples/tiny-r1] [--output demo-out] [--experts K] [--controls 30] [--no-gguf] [-v]

Runs the project's own commands as a user would, prints each before it runs, and ends with a summary. Everything it writes goes
into one folder, which it replaces if an earlier demo made it; it refuses any other folder that holds something.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

REPOSITORY = Path(__file__).resolve().parent.parent
MINIATURE = REPOSITORY / "examples" / "tiny-r1"
PROMPTS = "what-happened:reconstructed-756"
MAX_TOKENS = 64
START_SECONDS = 300
NUM_SHOWN = 3
MARK = ".mote-demo"  # in the output folder: made by a demo, so that the next one may replace it


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=MINIATURE)
    parser.add_argument("--output", type=Path, default=Path("demo-out"))
    parser.add_argument("--experts", type=int, default=6, metavar="K", help="how many experts to suppress")
    parser.add_argument("--controls", type=int, default=30, help="random expert sets to compare with")
    parser.add_argument(
        "--no-gguf",
        action="store_true",
        help="leave out the GGUF file, for models that tiny-r1/to_gguf.py does not know",
    )
    parser.add_argument(
        "-v", "--verbose", action="store_true", help="show what vLLM and PyTorch say, warnings included"
    )
    arguments = parser.parse_args()
    started = time.monotonic()
    output: Path = arguments.output
    make_output(output)
    # An offline model: nothing may ask the Hub, and vLLM's CPU build needs little room for its cache.
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    if arguments.verbose:
        os.environ["VLLM_LOGGING_LEVEL"] = "INFO"

    heading("1. Record which experts every token chooses, in unmodified vLLM")
    traces, expert_set, variant = output / "traces", output / "refusal.json", output / "variant"
    model = str(arguments.model)
    run("mote-record", "--model", model, "--prompts", PROMPTS, "-o", traces, "--max-tokens", MAX_TOKENS)

    heading("2. Find the experts that are distinctive for refusing (fTRI)")
    run(
        "mote-ftri", traces, "--behavior", "refused", "-k", arguments.experts, "-o", expert_set,
        "--report", output / "ftri-report", "--tokenizer", model,
    )  # fmt: skip

    heading("3. Rewrite the checkpoint: say what would happen, do it, prove it")
    rewrite = ("mote-rewrite", "--model", model, "--suppress", expert_set, "-o", variant)
    run(*rewrite, "--dry-run")
    run(*rewrite)
    run("mote-verify", variant, "--base", model)

    heading("4. Serve the variant with unmodified vLLM and ask what the base refused")
    refused = refused_prompts(traces)
    with served(variant) as url:
        for prompt, answer in refused[:NUM_SHOWN]:
            print(f"\nQ  {prompt}\nbase     {one_line(answer)}\nvariant  {one_line(ask(url, prompt))}")

    heading("5. The routing before and after")
    selected = output / "refused.jsonl"
    selected.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt, _ in refused[:50]))
    after = output / "traces-variant"
    run("mote-record", "--model", variant, "--prompts", selected, "-o", after, "--max-tokens", MAX_TOKENS)
    run("mote-verify", variant, "--base", model, "--traces", after)
    show_routing(expert_set, traces, after, {prompt for prompt, _ in refused[:50]})

    heading(f"6. Measure it against the base and {arguments.controls} random expert sets, in one engine load")
    run(
        "mote-eval", "--model", model, "--suppress", expert_set, "--prompts", PROMPTS, "-o", output / "results",
        "--max-tokens", MAX_TOKENS, "--controls", arguments.controls, "--control-matching", "frequency",
        "--control-prompts", 60, "--control-others", 20, "--card", variant,
    )  # fmt: skip

    if not arguments.no_gguf:
        heading("7. The same edit in a GGUF file, answered by unmodified llama.cpp")
        base_gguf, variant_gguf = output / "gguf" / "tiny-r1.gguf", output / "variant-gguf"
        convert(model, base_gguf)
        run("mote-rewrite", "--model", base_gguf, "--suppress", expert_set, "-o", variant_gguf)
        run("mote-verify", variant_gguf, "--base", base_gguf)
        prompts = [prompt for prompt, _ in refused[:NUM_SHOWN]]
        for prompt, before, after in zip(
            prompts, ask_gguf(base_gguf, prompts), ask_gguf(variant_gguf / base_gguf.name, prompts), strict=True
        ):
            print(f"\nQ  {prompt}\nbase     {one_line(before)}\nvariant  {one_line(after)}")

    heading("Done")
    print(f"seconds: {time.monotonic() - started:.0f}")
    for name in ("refusal.json", "ftri-report/report.html", "variant/README.md", "results/report.html"):
        print(f"  {output / name}")
    return 0


def make_output(folder: Path) -> None:
    """Make an empty output folder, in the place of an earlier demo's; ends the demo before any other folder is touched."""
    mark = folder / MARK
    if folder.is_symlink() or (
        folder.exists() and not mark.is_file() and (not folder.is_dir() or any(folder.iterdir()))
    ):
        sys.exit(
            f"{folder} exists and no demo made it (it has no {MARK}); expected a new, empty or earlier demo's folder"
        )
    if mark.is_file():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.touch()


def heading(text: str) -> None:
    """Print a step's title."""
    print(f"\n== {text}", flush=True)


def run(command: str, *arguments: object) -> None:
    """Print and run one of the project's commands; the demo ends where one fails."""
    words = [str(argument) for argument in arguments]
    print(f"$ {command} {' '.join(words)}", flush=True)
    finished = subprocess.run([str(Path(sys.executable).parent / command), *words])
    if finished.returncode:
        sys.exit(f"{command} ended with exit code {finished.returncode}")


def convert(model: str, target: Path) -> None:
    """Write a model of the miniature's make as GGUF."""
    script = MINIATURE / "to_gguf.py"
    print(f"$ python {script.relative_to(REPOSITORY)} --model {model} {target}", flush=True)
    subprocess.run([sys.executable, str(script), "--model", model, str(target)], check=True)


def ask_gguf(model: Path, prompts: list[str]) -> list[str]:
    """Greedy answers of llama.cpp, whose log is left out, to prompts in the miniature's template."""
    rendered = [f"<｜begin▁of▁sentence｜><｜User｜>{prompt}<｜Assistant｜>" for prompt in prompts]
    command = [sys.executable, str(MINIATURE / "ask_gguf.py"), str(model)]
    finished = subprocess.run(
        command, input=json.dumps(rendered), capture_output=True, encoding="utf-8", errors="replace"
    )
    if finished.returncode:
        sys.exit(f"llama.cpp ended with exit code {finished.returncode}: {finished.stderr[-500:]}")
    answers: list[str] = json.loads(finished.stdout)
    return answers


def refused_prompts(traces: Path) -> list[tuple[str, str]]:
    """The prompts that the base refused, with its answers."""
    from ftri.labels.behavior import label_behavior
    from ftri.labels.names import Behavior
    from ftri.traces.reader import TraceReader

    return [
        (record.prompt, record.text)
        for record in TraceReader(traces)
        if label_behavior(record.text, record.finish_reason) == Behavior.REFUSED
    ]


def show_routing(expert_set: Path, before: Path, after: Path, prompts: set[str]) -> None:
    """Print how often each suppressed expert was selected by the tokens of some prompts, in base and variant."""
    from ftri.traces.reader import TraceReader
    from rewriter.expert_set import ExpertSet

    readers = [TraceReader(folder) for folder in (before, after)]
    moe_layers = readers[0].manifest["moe_layers"]
    pairs = ExpertSet.load(expert_set).model_pairs(moe_layers)
    print(f"{'layer':>5} {'expert':>6} {'tokens that select it: base':>28} {'variant':>9}")
    counts: list[dict[tuple[int, int], int]] = []
    totals: list[int] = []
    for reader in readers:
        counted, total = dict.fromkeys(pairs, 0), 0
        for record in reader:
            if record.prompt not in prompts:
                continue
            total += len(record.experts)
            for layer, expert in pairs:
                counted[layer, expert] += int((record.experts[:, moe_layers.index(layer)] == expert).any(-1).sum())
        counts.append(counted)
        totals.append(total)
    for pair in pairs:
        shares = [counted[pair] / total for counted, total in zip(counts, totals, strict=True)]
        print(f"{pair[0]:>5} {pair[1]:>6} {shares[0]:>28.1%} {shares[1]:>9.1%}")
    if any(counts[1].values()):
        sys.exit("a suppressed expert was selected")


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Unmodified vLLM's server on a free port of this machine, until the block ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `vllm serve` starts; the command itself fails on vLLM's CPU package, which asks for its version by another name.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "variant", "--max-num-seqs", "8"]
    print(f"$ python {' '.join(command[1:])}", flush=True)
    log = model.with_name("vllm-serve.log")
    with log.open("w") as opened, subprocess.Popen(command, stdout=opened, stderr=subprocess.STDOUT) as server:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(url, server, log)
            yield url
        finally:
            server.terminate()


def wait_until_ready(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    """Wait for the server's health page."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            sys.exit(f"vllm serve ended with exit code {server.returncode}; see {log}")
        try:
            if httpx2.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(1)
    sys.exit(f"vllm serve was not ready within {START_SECONDS} seconds; see {log}")


def ask(url: str, prompt: str) -> str:
    """One greedy answer over the OpenAI-compatible API."""
    body = {
        "model": "variant",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    reply = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    reply.raise_for_status()
    return reply.json()["choices"][0]["message"]["content"]


def one_line(text: str) -> str:
    """A response on one line."""
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
