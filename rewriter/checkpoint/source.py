"""Where a checkpoint's bytes come from, and where in a file a tensor lies."""

import os
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rewriter.errors import CheckpointError


class ByteSource(Protocol):
    """Where a checkpoint's files come from."""

    @property
    def name(self) -> str:
        """How messages call it."""
        ...

    def size_bytes(self, file_name: str) -> int | None:
        """Size of a file, or None when there is no such file."""
        ...

    def read(self, file_name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file from `offset`."""
        ...


@dataclass(frozen=True)
class LocalFolder:
    """A folder on disk; symbolic links, as in the Hub's cache, are followed."""

    path: Path

    @property
    def name(self) -> str:
        """How messages call it."""
        return str(self.path)

    def size_bytes(self, file_name: str) -> int | None:
        """Size of a file, or None when there is no such file."""
        try:
            status = (self.path / file_name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise CheckpointError(f"{self.path / file_name}: cannot be read ({error.strerror})") from None
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for, a device read without end
            raise CheckpointError(f"{self.path / file_name}: is not a regular file, expected one that can be read")
        return status.st_size

    def read(self, file_name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file from `offset`."""
        try:
            with (self.path / file_name).open("rb", buffering=0) as opened:
                return os.pread(opened.fileno(), size, offset)
        except OSError as error:
            raise CheckpointError(f"{self.path / file_name}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies."""

    name: str
    shard: str
    dtype: str  # as safetensors names it: F32, BF16, F8_E4M3, ...
    shape: tuple[int, ...]
    offset: int  # first byte, counted from the start of the shard
    size_bytes: int

    def part(self, start: int, size_bytes: int) -> "TensorEntry":
        """A byte range of the tensor, counted from its own start, as an entry that can be read."""
        return replace(self, shape=(), offset=self.offset + start, size_bytes=size_bytes)
