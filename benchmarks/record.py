"""What recording costs: tokens per second with and without it, in one engine, in alternating rounds of the same work.

    python benchmarks/record.py examples/tiny-r1            # overhead: the ratio, by the clock and by CPU time
    python benchmarks/record.py examples/tiny-r1 --whole    # the 756 prompts by mote-record: seconds and sizes
    python benchmarks/record.py examples/tiny-r1 --memory   # mote-record's peak memory for one amount and for eight times it

Run it on a quiet machine; CPU time is printed beside the clock since it suffers less from neighbours.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")


def switch_recording(engine: Any, on: bool) -> None:
    """Attach or detach the recorder of a running in-process engine; detached, only vLLM's own code runs."""
    recorder = engine._llm.model_executor.driver_worker.worker.mote_recorder
    recorder.runner.execute_model = recorder.execute_model if on else recorder._execute_model
    engine.capture = "router_hook" if on else None
    from ftri.worker.routers import moe_runners

    for layer in moe_runners(recorder.runner.get_model()).values():
        layer.router.mote_rows = recorder.rows if on else None


def measure_overhead(model: str, batch: int, num_prompts: int, max_tokens: int, rounds: int, folder: Path) -> None:
    """Alternate rounds with and without recording; with it, the traces are written to disk as mote-record does."""
    from ftri.engine.engine import Engine, Sampling
    from ftri.prompts.sets import what_happened_listed
    from ftri.record import RecordOptions, plan_recording, write_behind
    from ftri.traces.writer import TraceWriter

    sampling = Sampling(max_tokens=max_tokens, temperature=1.0)
    arguments = {"max_num_seqs": batch, "max_model_len": 512}
    manifest = plan_recording(RecordOptions(model, "what-happened:listed", folder)).manifest
    clock: dict[bool, list[float]] = {True: [], False: []}
    processor: dict[bool, list[float]] = {True: [], False: []}
    with Engine(model, record=True, engine_arguments=arguments) as engine:
        rendered = [engine.render(prompt) for prompt in what_happened_listed()[:num_prompts]]
        for number in range(2 * rounds + 2):
            on = number % 2 == 0
            switch_recording(engine, on)
            began, began_cpu = time.perf_counter(), time.process_time()
            steps = engine.generate_by_step(rendered, sampling)
            if on:
                with TraceWriter(folder / str(number), manifest) as writer:
                    tokens = sum(num_tokens for _, num_tokens in write_behind(writer, steps))
            else:
                finished = itertools.chain.from_iterable(steps)
                tokens = sum(len(one.prompt.token_ids) + len(one.token_ids) - 1 for one in finished)
            if number >= 2:  # the first of each kind warms up
                clock[on].append(tokens / (time.perf_counter() - began))
                processor[on].append(tokens / (time.process_time() - began_cpu))
    for name, rates in (("clock", clock), ("CPU time", processor)):
        with_it, without = statistics.median(rates[True]), statistics.median(rates[False])
        print(
            f"{name}: {with_it:,.0f} tokens/s recording, {without:,.0f} without, ratio {with_it / without:.3f} "
            f"(medians of {rounds} rounds, batch {batch}, {num_prompts} prompts, at most {max_tokens} tokens each)"
        )


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
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--num-prompts", type=int, default=96)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.whole:
            measure_whole(options.model, options.batch, options.max_tokens, Path(folder))
        elif options.memory:
            measure_memory(options.model, options.batch, options.max_tokens, Path(folder))
        else:
            measure_overhead(
                options.model, options.batch, options.num_prompts, options.max_tokens, options.rounds, Path(folder)
            )


if __name__ == "__main__":
    main()
