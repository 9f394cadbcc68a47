"""A run that is killed at any moment leaves no output folder or a complete one, an untouched source, and a clear way."""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from checkpoints import build_checkpoint, memory_folder, tree_state, write_set
from commands import Command
from gguf_files import model_tensors, write_split

from rewriter.variant.verify import verify

NUM_KILLS = 60
# Forks from a process that has imported everything, so that the moments fall on the work rather than on the imports.
SERVER = """
import os, sys
import ftri.cli.rewrite, rewriter.cli.text, rewriter.hub.models, rewriter.rewrite, rewriter.variant.write
import tqdm
for line in iter(sys.stdin.readline, ""):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        sys.argv = ["mote-rewrite", *line.rstrip("\\n").split("\\t")]
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1); os.dup2(devnull, 2)
        os.read(read, 1)
        try:
            ftri.cli.rewrite.main()
        except SystemExit as leaving:
            os._exit(leaving.code or 0)
        os._exit(0)
    print(child, flush=True)
    os.write(write, b"g")
    sys.stdin.readline()
    _, status = os.waitpid(child, 0)
    os.close(read); os.close(write)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


class Runs:
    """Starts mote-rewrite in ready processes and tells their exit codes."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, arguments: list[str], kill_after_s: float | None) -> int:
        """The exit code of one run: 0, or minus the signal's number."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\t".join(arguments) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)  # it is reaped below, so the id is still its own even when it has ended
        self.process.stdin.write("reap\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        """End the ready process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def build_gguf(folder: Path) -> Path:
    """A GGUF model in three files, large enough for a kill to fall into the work."""
    write_split(folder, tensors=model_tensors(hidden=1024))
    return folder


@pytest.mark.parametrize(
    ("build", "num_kills"), [(partial(build_checkpoint, hidden=48), NUM_KILLS), (build_gguf, NUM_KILLS // 3)]
)
def test_sigkill_at_random_moments(build: Callable[[Path], Path], num_kills: int, mote_verify: Command) -> None:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        kill_at_random_moments(Path(folder), build, num_kills, mote_verify)


def kill_at_random_moments(tmp_path: Path, build: Callable[[Path], Path], num_kills: int, mote_verify: Command) -> None:
    """The test in a folder of its own."""
    base = build(tmp_path / "tiny")
    chosen = write_set(tmp_path / "refusal.json", [(1, 3), (3, 0)])
    target, before = tmp_path / "out", tree_state(base)
    arguments = ["--model", str(base), "--suppress", str(chosen), "-o", str(target), "--link", "copy"]
    runs, rng = Runs(), random.Random(0)
    try:
        times_s = []
        for _ in range(5):
            started = time.monotonic()
            assert runs.run(arguments, None) == 0
            times_s.append(time.monotonic() - started)
            shutil.rmtree(target)
        num_killed = num_complete = num_left_siblings = 0
        for _ in range(num_kills):
            code = runs.run(arguments, rng.uniform(0, 1.1 * min(times_s)))
            num_killed += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL)
            num_left_siblings += target.with_name(".out.mote-partial").exists()
            if target.exists():
                num_complete += 1
                verify(target, base, full=True)
                shutil.rmtree(target)
            else:
                assert code != 0
            others = {path.name for path in tmp_path.iterdir()} - {".out.mote-partial"}
            assert others == {"tiny", "refusal.json"}
            assert tree_state(base) == before
        # The moments must have fallen into the work, else nothing was tested.
        counted = (num_killed, num_complete, num_left_siblings)
        assert num_killed >= num_kills // 2 and num_left_siblings >= num_kills // 12, counted
        assert runs.run(arguments, None) == 0
    finally:
        runs.close()
    assert mote_verify(target, "--base", base, "--full").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "refusal.json", "out"}
    assert tree_state(base) == before


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C ends with the usual exit code and no traceback, and nothing stays behind."""
    base = build_checkpoint(tmp_path / "tiny")
    chosen = write_set(tmp_path / "refusal.json", [(1, 3)])
    script = (
        "import os, signal, sys\n"
        # A shell that runs the tests in the background hands down SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import rewriter.variant.write as write, ftri.cli.rewrite as cli\n"
        "write.check_patched = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "cli.main()\n"
    )
    command = [sys.executable, "-c", script, "--model", str(base), "--suppress", str(chosen), "-o", str(tmp_path / "o")]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 130 and completed.stdout == "" and "Traceback" not in completed.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "refusal.json"}
