"""Speed and memory of the analysis on traces of DeepSeek-R1's shape: 58 layers, 256 experts, top 8, one byte per id.

    python benchmarks/find.py [--gigabytes 1] [--folder FOLDER]

1. Aggregation: traces to activation maps, on one core, for two amounts of trace in 756 responses, and for the larger one in
   responses of 24 tokens, which are what memory could grow with; the alternative is np.add.at per response.
2. Analysis: map, ranking, 10,000 permutations and 1,000 bootstraps of 756 x 14,848; the alternative permutes labels one at a
   time, as numpy code does that takes the means of each relabelling (timed over 100, scaled to 10,000).

Each measurement runs in a process of its own and reports that process's peak of resident memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

NUM_LAYERS, NUM_EXPERTS, TOP_K = 58, 256, 8
NUM_PROMPTS = 756
PROMPT_TOKENS = 20
SHORT_TOKENS = 24
TOKEN_SIZE_BYTES = NUM_LAYERS * TOP_K
ANSWERS = (
    "<think>\n\n</think>\n\nI am sorry, I cannot answer that.",
    "<think>\n\n</think>\n\nYes.",
    "<think>\nHm.\n</think>\n\nYes.",
)


def write_random_traces(folder: Path, size_bytes: int, num_responses: int = NUM_PROMPTS) -> None:
    """Responses, equally long, that add up to `size_bytes` of selected experts."""
    from ftri.traces.reader import TraceRecord
    from ftri.traces.writer import TraceWriter

    generator = np.random.default_rng(0)
    first = np.arange(0, NUM_EXPERTS, NUM_EXPERTS // TOP_K, dtype=np.uint8)
    num_rows = max(PROMPT_TOKENS, size_bytes // num_responses // TOKEN_SIZE_BYTES)
    manifest = {
        "model": "benchmark",
        "config_sha256": "0",
        "moe_layers": list(range(3, 61)),
        "num_experts": 256,
        "top_k": 8,
    }

    def records() -> Iterator[TraceRecord]:
        for number in range(num_responses):
            yield TraceRecord(
                prompt_id=str(number),
                sample=0,
                prompt=f"prompt {number}",
                rendered_prompt=f"prompt {number}",
                prompt_token_ids=list(range(PROMPT_TOKENS)),
                completion_token_ids=list(range(num_rows - PROMPT_TOKENS + 1)),
                text=ANSWERS[number % 3],
                finish_reason="stop",
                factors={"place": str(number % 14), "time": str(number % NUM_PROMPTS // 14)},
                # One of each eighth of the experts: different ones, ascending, as a trace must have them.
                experts=generator.integers(0, NUM_EXPERTS // TOP_K, (num_rows, NUM_LAYERS, TOP_K), np.uint8) + first,
            )

    # Random ids do not compress, and one sync for many responses is enough for what is thrown away afterwards.
    with TraceWriter(folder, manifest, compress=False) as writer:
        rest = records()
        while batch := list(itertools.islice(rest, 32 if num_rows > 1000 else 2000)):
            writer.append(*batch)


def aggregate(folder: str) -> dict[str, float]:
    """Seconds to read all maps, every token counted."""
    from ftri.analysis.maps import read_maps
    from ftri.labels.contrast import RuleLabeller, parse_contrast
    from ftri.traces.reader import TraceReader

    contrast = parse_contrast("refused")
    reader = TraceReader(folder)
    size_bytes = sum(record.num_rows for record in reader.metadata()) * TOKEN_SIZE_BYTES
    start, start_cpu = time.perf_counter(), time.process_time()
    read_maps([reader], contrast, RuleLabeller(contrast), "all")
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {"megabytes": size_bytes / 1e6, "seconds": seconds, "cpu_seconds": cpu_seconds}


def aggregate_with_add_at(folder: str) -> dict[str, float]:
    """The same counts by np.add.at, over at most 50 MB of the trace."""
    from ftri.traces.reader import TraceReader

    size_bytes, start, start_cpu = 0, time.perf_counter(), time.process_time()
    layers = np.arange(NUM_LAYERS)[:, None]
    for record in TraceReader(folder):
        counts = np.zeros((NUM_LAYERS, NUM_EXPERTS), np.int64)
        np.add.at(counts, (layers, record.experts.astype(np.intp)), 1)
        size_bytes += record.experts.nbytes
        if size_bytes > 50e6:
            break
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {"megabytes": size_bytes / 1e6, "seconds": seconds, "cpu_seconds": cpu_seconds}


def analyse(_: str) -> dict[str, float]:
    """Seconds for each step of the analysis of 756 x 14,848 counts, and for one-at-a-time permutations."""
    from ftri.analysis import maps, resonance
    from ftri.analysis import significance as statistics

    generator = np.random.default_rng(0)
    store = maps.MapStore(NUM_LAYERS * NUM_EXPERTS)
    observations = []
    for number in range(NUM_PROMPTS):
        store.append(generator.poisson(0.6, store.num_columns))
        observations.append(maps.Observation(str(number), 0, "AB"[number % 3 > 0], int(number % 3 > 0), {}, 20))
    shape = (tuple(range(3, 61)), NUM_EXPERTS, TOP_K, "prompt", maps.SharedTokens(0, 0))
    activation = maps.ActivationMaps(store, np.full(NUM_PROMPTS, 20), observations, *shape)
    paper = resonance.STATISTICS["paper"]
    start = time.perf_counter()
    scores = statistics.observed_scores(activation, paper)
    ranked = resonance.rank(scores)
    mapped = time.perf_counter()
    statistics.permutation_test(activation, paper, 10_000)
    permuted = time.perf_counter()
    statistics.bootstrap(activation, paper, 10, ranked[:20], 1_000)
    done = time.perf_counter()
    values = np.concatenate([block for _, block in store.blocks()])
    own = activation.groups == 0
    for _ in range(100):
        shuffled = generator.permutation(own)
        (values[shuffled].mean(axis=0) - values[~shuffled].mean(axis=0)).max()
    one_at_a_time = 100 * (time.perf_counter() - done)
    return {
        "map_seconds": mapped - start,
        "permutation_seconds": permuted - mapped,
        "bootstrap_seconds": done - permuted,
        "seconds": done - start,
        "one_at_a_time_seconds": one_at_a_time,
    }


PARTS = {"aggregate": aggregate, "add-at": aggregate_with_add_at, "analyse": analyse}


def peak_megabytes() -> float:
    """This process's peak of resident memory; getrusage's would start at the parent's, across the exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def run_part(part: str, folder: str, num_threads: int) -> dict[str, float]:
    """Run one part in its own process."""
    threads = {name: str(num_threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [sys.executable, __file__, "--part", part, "--folder", folder]
    result = subprocess.run(command, env=os.environ | threads, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def main() -> None:
    """Run all parts and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gigabytes", type=float, default=1.0, help="the larger amount of trace; the smaller is a quarter"
    )
    parser.add_argument("--folder", help="where the made-up traces go (default: a temporary folder)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        found = PARTS[arguments.part](arguments.folder)
        found["peak_megabytes"] = peak_megabytes()
        print(json.dumps(found))
        return
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        print(f"load average before: {os.getloadavg()[0]:.1f}\n")
        print("| aggregation, one core | trace | seconds | CPU seconds | MB/s | MB per CPU second | peak memory |")
        print("|---|---|---|---|---|---|---|")
        rates = []
        size_bytes = int(arguments.gigabytes * 1e9)
        for size, num_responses, parts in (
            (size_bytes // 4, NUM_PROMPTS, ("aggregate",)),
            (size_bytes, NUM_PROMPTS, ("aggregate", "add-at")),
            (size_bytes, size_bytes // (SHORT_TOKENS * TOKEN_SIZE_BYTES), ("aggregate",)),
        ):
            traces = folder / "traces"
            write_random_traces(traces, size, num_responses)
            for part in parts:
                found = run_part(part, str(traces), 1)
                rates.append(found["megabytes"] / found["cpu_seconds"])
                print(
                    f"| {part}, {num_responses:,} responses | {found['megabytes']:.0f} MB | {found['seconds']:.2f} "
                    f"| {found['cpu_seconds']:.2f} | {found['megabytes'] / found['seconds']:.0f} | {rates[-1]:.0f} "
                    f"| {found['peak_megabytes']:.0f} MB |"
                )
            shutil.rmtree(traces)
        print(f"\nratio to np.add.at: {rates[1] / rates[2]:.1f}\n")
        found = run_part("analyse", str(folder), 2)
        print("| analysis of 756 x 14,848, two threads | seconds |\n|---|---|")
        print(f"| map and ranking | {found['map_seconds']:.2f} |")
        print(f"| 10,000 permutations | {found['permutation_seconds']:.2f} |")
        print(f"| 1,000 bootstraps | {found['bootstrap_seconds']:.2f} |")
        print(f"| all | {found['seconds']:.2f} |")
        print(f"| alternative: 10,000 permutations one at a time | {found['one_at_a_time_seconds']:.0f} |")
        ratio = found["one_at_a_time_seconds"] / found["permutation_seconds"]
        print(f"\nratio to one at a time: {ratio:.1f}; peak memory {found['peak_megabytes']:.0f} MB")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
