"""Arms of a benchmark that take turns: each is a process that loads its engine once and waits while another one works.

Rounds go through the arms forwards and backwards by turns (ABBA), so that a machine that grows busier weighs on all of them, and
every ratio is one of the same round. Throughput is told by the clock and by the arm's own processor time, which other programs
touch less.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULT = "RESULT"
CLOCK, PROCESSOR = "clock", "processor"
Rates = dict[str, float]


def serve_turns(work: Callable[[], int]) -> None:
    """In an arm's process: warm up, then do the work once for every line that comes in, and say its tokens a second."""
    work()  # kernels and graphs are made at first use
    print(RESULT + "{}", flush=True)
    for _ in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        num_tokens = work()
        seconds = {CLOCK: time.perf_counter() - clock, PROCESSOR: time.process_time() - processor}
        print(RESULT + json.dumps({kind: num_tokens / value for kind, value in seconds.items()}), flush=True)


def take_turns(
    script: str, jobs: Mapping[str, Mapping[str, Any]], environments: Mapping[str, Mapping[str, str]], rounds: int
) -> dict[str, list[Rates]]:
    """Start `script --arm JOB` for every arm, and have them work in so many rounds; exits where one fails."""
    arms: dict[str, subprocess.Popen[str]] = {}
    found: dict[str, list[Rates]] = {name: [] for name in jobs}
    try:
        for name, job in jobs.items():
            # One process, so that its time is all of vLLM's.
            environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
            arms[name] = subprocess.Popen(
                [sys.executable, script, "--arm", json.dumps(job)],
                env=environment | environments.get(name, {}),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            _answer(name, arms[name])
        for number in range(rounds):
            for name in list(arms) if number % 2 == 0 else reversed(list(arms)):
                found[name].append(_answer(name, arms[name], "go\n"))
    finally:
        for process in arms.values():
            process.kill()
            process.wait()
    return found


def _answer(name: str, process: "subprocess.Popen[str]", word: str = "") -> Rates:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(word)
    process.stdin.flush()
    for line in process.stdout:
        if line.startswith(RESULT):
            rates: Rates = json.loads(line.removeprefix(RESULT))
            return rates
    sys.exit(f"arm {name} ended with exit code {process.wait()}")


def print_table(found: Mapping[str, Sequence[Rates]], base: str) -> None:
    """Each arm's medians over the rounds, and its ratios to the base's of the same round with their quartiles."""
    print(f"{'arm':10} {'tokens/s':>9} {'to base (quartiles)':>24} {'tokens/CPU s':>13} {'to base (quartiles)':>24}")
    for name, rounds in found.items():
        columns = []
        for kind in (CLOCK, PROCESSOR):
            ratios = [one[kind] / other[kind] for one, other in zip(rounds, found[base], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
            columns += [statistics.median(one[kind] for one in rounds), f"{middle:.3f} ({low:.3f} to {high:.3f})"]
        print(f"{name:10} {columns[0]:9.1f} {columns[1]:>24} {columns[2]:13.1f} {columns[3]:>24}")


def processor_name() -> str:
    """The processor, as Linux calls it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
