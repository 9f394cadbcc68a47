"""Files that appear complete and durable or not at all: written beside their place, synced, then renamed.

The one way in which a file is replaced in this project; a folder that appears at once is rewriter/variant/output_folder.py.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rewriter.errors import OutputError


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8; a reader, a kill or a full disk never meets half of it.

    Raises:
        OutputError: the file cannot be written; what stood there before still does.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made a folder ({error.strerror})") from None


@contextmanager
def whole_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write into, which takes the place of `path` when the block ends without an error.

    It is written as `.NAME.partial` beside it, locked, so that two processes take turns. What a killed one leaves there is
    overwritten by the next.

    Raises:
        OutputError: the file cannot be written; what stood there before still does.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial")
    try:
        file = _open_alone(partial)
    except OSError as error:
        raise _explained(target, error) from None
    try:
        with file:
            try:
                yield file
                sync_file(file)
                partial.replace(target)
            except BaseException:
                partial.unlink(missing_ok=True)  # while it is still locked, so that it is nobody else's
                raise
        sync_folder(target.parent)
    except OSError as error:
        raise _explained(target, error) from None


def sync_file(file: IO[bytes]) -> None:
    """Bring what was written to an open file onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries (new names, renames) onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_alone(partial: Path) -> IO[bytes]:
    """The empty partial file, locked until it is closed."""
    while True:
        file = partial.open("ab")
        fcntl.flock(file, fcntl.LOCK_EX)
        if _is_at(partial, file):
            file.truncate(0)
            return file
        file.close()  # renamed away by the process that held it; try again with a new one


def _is_at(path: Path, file: IO[bytes]) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _explained(target: Path, error: OSError) -> OutputError:
    """The sentence for what the operating system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError(f"{target}: the disk is full ({error.strerror}); the file was not written")
    return OutputError(f"{target}: cannot be written ({error.strerror})")
