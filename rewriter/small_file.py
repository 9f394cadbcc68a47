"""Reads text that others may have written: never more of a file than such a file can have, and nothing that is no file.

A file of holes has any size on no disk at all, and reading it whole takes that much memory.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rewriter.errors import InputError

MAX_TEXT_BYTES = 256 << 20  # the largest of all, an index of a trillion parameters, has a tenth of it
MAX_CARD_BYTES = 16 << 20
MAX_TABLE_BYTES = 1 << 30
MAX_LINE_BYTES = 64 << 20
PIPE_BYTES = 1 << 16

# What pipes gave, by device and inode.
_piped: dict[tuple[int, int], bytes] = {}


def read_small(path: str | Path, max_bytes: int = MAX_TEXT_BYTES, error: type[Exception] = InputError) -> bytes:
    """A file's bytes.

    Raises:
        OSError: it cannot be read.
        error: it is no regular file, or larger than `max_bytes`.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{path}: is no regular file, expected one that can be read")
        check_size(path, found.st_size, max_bytes, error)
        return file.read(found.st_size)  # not max_bytes, which would be allocated


def read_small_or_pipe(path: str | Path, max_bytes: int = MAX_TEXT_BYTES, error: type[Exception] = InputError) -> bytes:
    """A file's bytes, or what a pipe holds until its writers end, as of `<(command)` in a shell.

    A pipe gives its bytes once; asked again in this process, it answers what it gave then. One that nobody writes to is
    empty, and not waited for.

    Raises:
        OSError: it cannot be read.
        error: it is neither, or holds more than `max_bytes`.
    """
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISFIFO(found.st_mode):
            return read_small(path, max_bytes, error)
        os.set_blocking(file.fileno(), True)
        parts, size = [], 0
        while part := file.read(PIPE_BYTES):
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise error(f"{path}: a pipe that holds more than {max_bytes:,} bytes, expected at most that")
        pipe = (found.st_dev, found.st_ino)
        if parts:
            _piped[pipe] = b"".join(parts)
        return _piped.get(pipe, b"")


def check_size(path: str | Path, size_bytes: int, max_bytes: int, error: type[Exception] = InputError) -> None:
    """Refuse a file that is larger than its kind can be. Raises: error."""
    if size_bytes > max_bytes:
        raise error(f"{path}: has {size_bytes:,} bytes, expected at most {max_bytes:,}")


def lines_of(
    file: IO[bytes], path: str | Path, max_bytes: int = MAX_LINE_BYTES, error: type[Exception] = InputError
) -> Iterator[bytes]:
    """A file's lines, each with its end, of which the last may lack it. Raises: error for a line longer than `max_bytes`."""
    number = 0
    while line := file.readline(max_bytes + 1):
        number += 1
        if len(line) > max_bytes:
            raise error(f"{path}: line {number} has more than {max_bytes:,} bytes, expected no line as long as that")
        yield line


def _open_at_once(path: str, flags: int) -> int:
    """Without waiting for the other end of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)
