"""Two hundred SIGKILLs spread over whole runs: what is there is whole, and the next run ends as if none had been killed."""

import json
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import build_checkpoint, memory_folder, tree_state, write_set
from killing import Runs

from ftri.traces.reader import TraceReader
from rewriter.variant.verify import verify

REWRITE_KILLS, RECORD_KILLS, EVALUATION_KILLS = 100, 60, 40
REWRITE = ("ftri.cli.rewrite:main", "rewriter.cli.text", "rewriter.rewrite", "rewriter.variant.write", "tqdm")
EVALUATE = ("fake_run:main", "jinja2", "scipy.stats", "matplotlib")
# Where one process is sure to end, a killed one is started again at most so often before its moments are too late.
MAX_RUNS_PER_KILL = 4


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory, where there is one: what is tried is the order of the writes, not the disk."""
    with tempfile.TemporaryDirectory(dir=memory_folder()) as path:
        yield Path(path)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def kill_until(num_kills: int, run: Callable[[float], int], length_s: float, seed: int) -> int:
    """Call `run` with moments spread evenly over `length_s` until so many runs were killed; returns how many ended before."""
    rng, num_killed, num_ended = random.Random(seed), 0, 0
    while num_killed < num_kills:
        code = run(rng.uniform(0, length_s))
        assert code in (0, -signal.SIGKILL), code
        num_killed += code != 0
        num_ended += code == 0
        assert num_ended < MAX_RUNS_PER_KILL * num_kills, "runs end before the moments come"
    return num_ended


@pytest.mark.slow
def test_a_rewrite_killed_a_hundred_times_is_there_or_not(folder: Path) -> None:
    """Into a new folder and, by turns, over a variant by another set: the old one or the new one stands there, whole."""
    base = build_checkpoint(folder / "tiny", hidden=48)
    sets = [write_set(folder / "a.json", [(1, 3), (3, 0)]), write_set(folder / "b.json", [(2, 5)])]
    target, before = folder / "out", tree_state(base)
    partial, inputs = ".out.mote-partial", {"tiny", "a.json", "b.json"}
    num_partial = num_whole = 0
    with Runs(*REWRITE) as runs:

        def arguments(number: int) -> list[str | Path]:
            return ["--model", base, "--suppress", sets[number], "-o", target, "--link", "copy", "--overwrite"]

        lengths_s, whole = [], []
        for number in (0, 1, 0, 1):
            lengths_s.append(runs.seconds(arguments(number)))
            whole.append(contents(target))
            verify(target, base, full=True)
        assert whole[0] == whole[2] != whole[1] == whole[3]
        shutil.rmtree(target)

        def into_nothing(kill_after_s: float) -> int:
            nonlocal num_partial, num_whole
            code = runs.run(arguments(0), kill_after_s)
            assert target.exists() or code != 0
            if target.exists():
                assert contents(target) == whole[0]
                num_whole += code != 0
                shutil.rmtree(target)
            num_partial += (folder / partial).exists()
            assert {path.name for path in folder.iterdir()} - {partial} == inputs
            assert tree_state(base) == before
            return code

        def over_another(kill_after_s: float) -> int:
            nonlocal num_partial, num_whole
            standing = whole.index(contents(target))
            code = runs.run(arguments(1 - standing), kill_after_s)
            found = whole.index(contents(target))  # neither missing nor mixed
            assert found == 1 - standing or code != 0
            num_whole += code != 0 and found != standing
            num_partial += (folder / partial).exists()
            assert {path.name for path in folder.iterdir()} - {partial} == {*inputs, "out"}
            assert tree_state(base) == before
            return code

        num_ended = kill_until(REWRITE_KILLS // 2, into_nothing, min(lengths_s), seed=1)
        assert runs.run(arguments(0)) == 0
        num_ended += kill_until(REWRITE_KILLS // 2, over_another, min(lengths_s), seed=2)
        assert num_partial >= REWRITE_KILLS // 10, "no moment fell into the work"
        assert runs.run(arguments(0)) == 0
    assert contents(target) == whole[0]
    assert {path.name for path in folder.iterdir()} == {*inputs, "out"}, "the next run clears what the killed ones left"
    print(
        f"rewrite: {REWRITE_KILLS} kills, {num_partial} left a partial folder, {num_whole} came after the variant stood"
        f" there, {num_ended} runs ended first"
    )


@pytest.mark.slow
def test_a_recording_killed_sixty_times_ends_with_the_same_content(folder: Path) -> None:
    target, whole = folder / "killed", folder / "whole"
    num_partial = num_finished = 0
    with Runs("fake_record:main", "safetensors.numpy") as runs:
        length_s = min(runs.seconds([folder / f"timed-{number}"]) for number in range(3))
        assert runs.run([whole]) == 0
        reader = TraceReader(whole)
        expected, digest = {record.key: record for record in reader}, reader.content_digest()
        names = {path.name for path in whole.iterdir() if not path.name.startswith("chunk-")}

        def run(kill_after_s: float) -> int:
            nonlocal num_partial, num_finished
            code = runs.run([target], kill_after_s)
            num_finished += code == 0
            if not (target / "manifest.json").exists():
                assert code != 0 and not (target / "index.jsonl").exists()
                return code
            # What has a line in the index is there, row by row.
            found = list(TraceReader(target))
            for record in found:
                same = expected[record.key]
                assert record.metadata() == same.metadata() and (record.experts == same.experts).all()
            num_partial += 0 < len(found) < len(expected)
            if code == 0:
                assert TraceReader(target).content_digest() == digest
                left = {path.name for path in target.iterdir() if not path.name.startswith("chunk-")}
                assert left == names and not list(target.glob("*.part*")) and not list(target.glob(".*.partial"))
                shutil.rmtree(target)
            return code

        kill_until(RECORD_KILLS, run, length_s, seed=3)
        assert num_partial >= RECORD_KILLS // 4, "no moment fell into the work"
        assert runs.run([target]) == 0
    assert TraceReader(target).content_digest() == digest
    print(f"record: {RECORD_KILLS} kills, {num_partial} left some of the responses, {num_finished} resumed runs ended")


def shown_files(folder: Path) -> dict[str, Any]:
    """The files that an evaluation is asked for, but for the moment of each and the order of the answers in the journal."""
    found: dict[str, Any] = {name: text for name, text in contents(folder).items() if name != "journal.jsonl"}
    results = json.loads(found.pop("results.json"))
    created = results.pop("created")
    found["report.html"] = found["report.html"].replace(created.encode(), b"")
    return found | {"results.json": results}


@pytest.mark.slow
def test_an_evaluation_killed_forty_times_ends_with_the_same_results(folder: Path) -> None:
    target, whole = folder / "killed", folder / "whole"
    num_partial = num_finished = 0
    with Runs(*EVALUATE) as runs:
        length_s = min(runs.seconds([folder / f"timed-{number}"]) for number in range(3))
        assert runs.run([whole]) == 0
        expected = shown_files(whole)
        answers = sorted((whole / "journal.jsonl").read_text().splitlines())

        def run(kill_after_s: float) -> int:
            nonlocal num_partial, num_finished
            code = runs.run([target], kill_after_s)
            num_finished += code == 0
            if code == 0:
                check_whole()
            elif (target / "results.json").exists():
                # It is written last: where it is, the rest is too.
                assert shown_files(target) == expected
                shutil.rmtree(target)
            else:
                num_partial += (target / "journal.jsonl").exists()
                for path in target.glob("[!.]*"):  # all but the journal are there whole or not at all
                    if path.name != "journal.jsonl" and path.name != "report.html":
                        assert path.read_bytes() == expected[path.name], path.name
            return code

        def check_whole() -> None:
            assert shown_files(target) == expected
            # Nothing asked twice, nothing lost.
            assert sorted((target / "journal.jsonl").read_text().splitlines()) == answers
            shutil.rmtree(target)

        kill_until(EVALUATION_KILLS, run, length_s, seed=4)
        assert num_partial >= EVALUATION_KILLS // 4, "no moment fell into the work"
        assert runs.run([target]) == 0
        check_whole()
    print(
        f"eval: {EVALUATION_KILLS} kills, {num_partial} left a journal to continue, {num_finished} resumed runs ended"
    )
