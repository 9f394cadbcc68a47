"""Runs a command again and again in ready processes, so that a kill's moment falls on its work and not on its imports."""

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

TESTS = Path(__file__).parent


class Runs:
    """Starts one function, `module:name`, with arguments as of a command line, and tells the exit codes."""

    def __init__(self, function: str, *also_imported: str) -> None:
        folders = [TESTS.parent, TESTS, TESTS / "rewriter", TESTS / "ftri", TESTS / "eval"]
        self.process = subprocess.Popen(
            [sys.executable, __file__, function, *also_imported],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # One thread a process, as a process of several threads does not survive a fork whole.
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )

    def run(self, arguments: Sequence[str | Path], kill_after_s: float | None = None) -> int:
        """The exit code of one run: 0, or minus the signal's number."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\t".join(map(str, arguments)) + "\n")
        self.process.stdin.flush()
        child = int(self.process.stdout.readline())
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            os.kill(child, signal.SIGKILL)  # it is reaped below, so the id is still its own even when it has ended
        self.process.stdin.write("reap\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def seconds(self, arguments: Sequence[str | Path]) -> float:
        """How long one whole run takes."""
        started = time.monotonic()
        assert self.run(arguments) == 0
        return time.monotonic() - started

    def __enter__(self) -> Self:
        """The ready process."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the ready process."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve(function: str, also_imported: Sequence[str]) -> None:
    """Fork a child for each line of arguments; say its id at once, and its exit code when the next line asks for it."""
    module, name = function.split(":")
    call = getattr(importlib.import_module(module), name)
    for other in also_imported:
        importlib.import_module(other)
    for line in iter(sys.stdin.readline, ""):
        read, write = os.pipe()
        child = os.fork()
        if not child:
            sys.argv = [name, *line.rstrip("\n").split("\t")]
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, 1)
            os.dup2(devnull, 2)
            os.read(read, 1)
            code = 1
            try:
                call()
                code = 0
            except SystemExit as leaving:
                code = int(leaving.code or 0)
            finally:
                os._exit(code)
        print(child, flush=True)
        os.write(write, b"g")
        sys.stdin.readline()
        _, status = os.waitpid(child, 0)
        os.close(read)
        os.close(write)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
