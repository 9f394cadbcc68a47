"""What recording costs: tokens per second with and without it, in rounds of the same work that take turns (turns.py).

    python benchmarks/record.py examples/tiny-r1            # overhead: the ratio, by the clock and by CPU time
    python benchmarks/record.py examples/tiny-r1 --compiled # the same with compiled models
    python benchmarks/record.py examples/tiny-r1 --whole    # the 756 prompts by mote-record: seconds and sizes
    python benchmarks/record.py examples/tiny-r1 --memory   # mote-record's peak memory for one amount and for eight times it

Run it on a quiet machine; CPU time is printed beside the clock since it suffers less from neighbours.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import print_table, processor_name, serve_turns, take_turns

os.environ.setdefault("OMP_NUM_THREADS", "1")


# vLLM alone; with the routers that edits and records use; recording, with weights too.
ARMS = ("base", "editable", "record", "weights")


def run_arm(job: dict[str, Any]) -> None:
    """In a process of its own: load, then answer the same prompts turn after turn; where it records, onto the disk, as
    mote-record does."""
    from ftri.engine.engine import Engine, Sampling
    from ftri.prompts.sets import what_happened_listed
    from ftri.record import RecordOptions, plan_recording, write_behind
    from ftri.traces.writer import TraceWriter

    arm, turns = job["arm"], itertools.count()
    weights = "float16" if arm == "weights" else None
    records = arm in ("record", "weights")
    arguments = {
        "max_num_seqs": job["batch"],
        "max_model_len": 512,
        "dtype": job["dtype"],
        "enforce_eager": not job["compiled"],
    }
    sampling = Sampling(max_tokens=job["max_tokens"], temperature=1.0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = RecordOptions(job["model"], "what-happened:listed", folder, weights=weights)
        manifest = plan_recording(options).manifest
        with Engine(
            job["model"],
            record=records,
            live_edits=arm == "editable",
            weights=weights,
            engine_arguments=arguments | {"enable_prefix_caching": False},
        ) as engine:
            rendered = [engine.render(prompt) for prompt in what_happened_listed()[: job["num_prompts"]]]

            def answer() -> int:
                steps = engine.generate_by_step(rendered, sampling)
                if records:
                    with TraceWriter(folder / str(next(turns)), manifest) as writer:
                        return sum(num_tokens for _, num_tokens in write_behind(writer, steps))
                finished = itertools.chain.from_iterable(steps)
                return sum(len(one.prompt.token_ids) + len(one.token_ids) - 1 for one in finished)

            serve_turns(answer)


def measure_overhead(options: argparse.Namespace) -> None:
    """Rates with and without recording, in rounds of the same work."""
    names = ("model", "batch", "num_prompts", "max_tokens", "compiled", "dtype")
    sizes = {name: getattr(options, name) for name in names}
    jobs = {arm: sizes | {"arm": arm} for arm in options.arms.split(",")}
    found = take_turns(__file__, jobs, {"base": {"VLLM_PLUGINS": "none"}}, options.rounds)
    mode = "compiled" if options.compiled else "eager"
    what = f"dtype {options.dtype}, {options.rounds} rounds, batch {options.batch}, {options.num_prompts} prompts"
    print(f"{processor_name()}, {mode}, {what}")
    print_table(found, "base")


def measure_whole(model: str, batch: int, max_tokens: int, folder: Path) -> None:
    """The 756 prompts through the command line, engine start included."""
    began = time.perf_counter()
    command = [sys.executable, "-c", "from ftri.cli.record import main; main()", "--model", model, "--json"]
    prompts = ["--prompts", "what-happened:reconstructed-756", "-o", str(folder / "whole")]
    options = ["--max-tokens", str(max_tokens), "--max-num-seqs", str(batch), "--max-model-len", "512"]
    printed = subprocess.run([*command, *prompts, *options], check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds = time.perf_counter() - began
    summary = json.loads(printed)
    chunk_bytes = sum(path.stat().st_size for path in (folder / "whole").glob("chunk-*"))
    print(f"{summary['responses']} responses, {summary['tokens']:,} tokens in {seconds:.0f} s, start included")
    print(f"engine start {summary['start_seconds']:.0f} s, then {summary['tokens_per_second']:,.0f} tokens/s")
    raw = summary["raw_ids_bytes"]
    print(
        f"raw ids {raw:,} B, chunks {chunk_bytes:,} B ({chunk_bytes / raw:.2f}), with the index {summary['size_bytes']:,} B"
    )


def measure_memory(model: str, batch: int, max_tokens: int, folder: Path) -> None:
    """Peak resident memory of mote-record, engine included, for the 756 prompts answered once and eight times."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom ftri.cli.record import main\ntry:\n    main()\nfinally:\n"
        "    status = Path('/proc/self/status').read_text()\n"
        "    print(status.split('VmHWM:')[1].split()[0], file=sys.stderr)\n"
    )
    peaks = []
    for samples in (1, 8):
        command = [
            sys.executable,
            "-c",
            script,
            "--model",
            model,
            "--json",
            "--samples",
            str(samples),
            "--temperature",
            "1",
        ]
        prompts = ["--prompts", "what-happened:reconstructed-756", "-o", str(folder / f"memory-{samples}")]
        options = ["--max-tokens", str(max_tokens), "--max-num-seqs", str(batch), "--max-model-len", "512"]
        done = subprocess.run([*command, *prompts, *options], check=True, capture_output=True, text=True)
        summary = json.loads(done.stdout)
        peaks.append(int(done.stderr.split()[-1]) * 1024 / 1e6)
        print(
            f"{summary['responses']:,} responses, {summary['tokens']:,} tokens, {summary['size_bytes'] / 1e6:.1f} MB of traces:"
            f" peak {peaks[-1]:,.0f} MB, the engine included"
        )
    print(f"ratio {peaks[1] / peaks[0]:.3f}, {peaks[1] - peaks[0]:.0f} MB more for eight times the responses")


def main() -> None:
    """Parse the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a MoE checkpoint folder")
    parser.add_argument("--whole", action="store_true", help="time the 756 prompts by mote-record instead")
    parser.add_argument("--memory", action="store_true", help="peak memory of mote-record for two amounts instead")
    parser.add_argument("--compiled", action="store_true", help="overhead of compiled models")
    parser.add_argument(
        "--dtype", default="auto", help="of the engine in the overhead's arms [default: the checkpoint's]"
    )
    parser.add_argument("--arms", default=",".join(ARMS), help="those to compare, separated by commas")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--num-prompts", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if not (options.whole or options.memory):
        measure_overhead(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_whole if options.whole else measure_memory
        measure(options.model, options.batch, options.max_tokens, Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--arm"]:
        run_arm(json.loads(sys.argv[2]))
    else:
        main()
