"""What a base's files were before they were copied, so that no variant is made of two states of a base."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rewriter.errors import CheckpointError

# The kernel stamps a write with the time of its last tick, up to 10 ms old; a file stamped within it may change unseen.
SETTLING_SECONDS = 0.05


@dataclass(frozen=True)
class BaseState:
    """Size, time of the last write, device and inode of some files of a folder.

    Not the time of the last change of an inode: making a hard link is such a change, and another run may make one meanwhile.
    """

    folder: Path
    files: dict[str, tuple[int, int, int, int]]

    @classmethod
    def of(cls, folder: Path, names: Iterable[str]) -> "BaseState":
        """The state of the named files now.

        Raises:
            CheckpointError: a file is missing, or is being written.
        """
        chosen = sorted(names)
        files = {name: _state_of(folder / name) for name in chosen}
        if any(_is_fresh(state) for state in files.values()):
            time.sleep(SETTLING_SECONDS)
            files = {name: _state_of(folder / name) for name in chosen}
        for name, state in files.items():
            if _is_fresh(state):
                raise CheckpointError(f"{folder / name}: is being written; run again when the base is complete")
        return cls(folder, files)

    def check_unchanged(self) -> None:
        """Refuse what was copied while a file changed.

        Raises:
            CheckpointError: naming the file.
        """
        for name, before in self.files.items():
            if _state_of(self.folder / name) != before:
                raise CheckpointError(
                    f"{self.folder / name}: changed while it was copied, so the variant would have been of two states of the"
                    " base; run again when nothing writes to it"
                )


def _state_of(path: Path) -> tuple[int, int, int, int]:
    try:
        found = os.stat(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino


def _is_fresh(state: tuple[int, int, int, int]) -> bool:
    return 0 <= time.time_ns() - state[1] < SETTLING_SECONDS * 1e9
