"""Every parser takes mutated inputs within a second and 200 MB, and says what is wrong in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.parsers import PARSERS
from fuzz.runner import attacks

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("MOTE_SHARED", ROOT.parent / "shared"))
NUM_QUICK, NUM_SLOW = 5_000, 100_000


def faults(num_inputs: int, seed: int, *names: str) -> tuple[int, list[str]]:
    """How many inputs were tried in a process of their own, and what was wrong."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-m", "fuzz.runner", str(num_inputs), str(seed), *names],
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=3600,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    found = [f"{line['parser']}, input {line['number']}: {line['fault']}" for line in lines if "fault" in line]
    return sum(line.get("tried", 0) for line in lines), found


def test_mutated_inputs() -> None:
    tried, found = faults(-(-NUM_QUICK // len(PARSERS)), seed=0)
    assert tried >= NUM_QUICK and not found, "\n".join(found)


def test_every_input_that_failed_once_is_tried_again() -> None:
    folders = {path.parent.name for path in SHARED.glob("attacks/*/*.bin")}
    if not folders:
        pytest.skip("the inputs that failed once are not here (MOTE_SHARED)")
    assert folders == {parser.attacks for parser in PARSERS if parser.attacks}
    replayed = [path for parser in PARSERS for path in attacks(parser)]
    assert len(set(replayed)) == len(list(SHARED.glob("attacks/*/*.bin"))) == len(replayed)
    assert max(len(attacks(parser)) for parser in PARSERS) <= NUM_QUICK // len(PARSERS)  # the quick test tries them all


@pytest.mark.slow
@pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)
def test_many_mutated_inputs(parser: object) -> None:
    num_inputs = -(-NUM_SLOW // len(PARSERS))
    tried, found = faults(num_inputs, 1, parser.name)  # type: ignore[attr-defined]
    assert tried == num_inputs and not found, "\n".join(found)


@pytest.mark.parametrize(
    ("parser", "words"),
    [("crashes", "ZeroDivisionError"), ("hangs", "TooSlowError"), ("grows", "MemoryError"), ("talks", "a sentence of")],
)
def test_the_runner_sees_each_kind_of_fault(parser: str, words: str, tmp_path: Path) -> None:
    """The limits bite: a parser that breaks each of them is found out."""
    script = f"""
import signal, sys
from fuzz import runner
from fuzz.parsers import Parser
class Loud(runner.MoteError):
    def __str__(self): return "a" * 500
state = []
def parse(folder):
    if not state: state.append(1); return  # the valid input
    if {parser!r} == "crashes": 1 / 0
    if {parser!r} == "hangs":
        while True: pass
    if {parser!r} == "grows": return bytearray(1 << 30)
    raise Loud()
signal.signal(signal.SIGPROF, runner._too_slow)
runner.run(Parser("own", lambda folder: (folder / "f").write_bytes(b"1"), "f", parse), 1, 0)
"""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert words in json.loads(run.stdout.splitlines()[0])["fault"]
