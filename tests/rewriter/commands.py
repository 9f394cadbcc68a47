"""What a command line did, as the rewriter's tests see it."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one sentence a failed command must say; anything else fails the test."""
        assert self.code == 1, (self.code, self.stdout, self.stderr)
        assert self.stdout == ""
        lines = self.stderr.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), self.stderr
        return lines[0].removeprefix("error: ")


Command = Callable[..., Outcome]
