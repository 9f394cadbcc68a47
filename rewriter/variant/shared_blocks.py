"""Which parts of two files are the same blocks on disk, asked of the filesystem (FIEMAP), so that they need not be read."""

import fcntl
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

FS_IOC_FIEMAP = 0xC020660B  # linux/fs.h
FIEMAP_FLAG_SYNC = 0x1
EXTENT_LAST, EXTENT_UNKNOWN, EXTENT_DELALLOC, EXTENT_ENCODED, EXTENT_INLINE = 0x1, 0x2, 0x4, 0x8, 0x200
EXTENT_UNWRITTEN = 0x800  # reads as zeros whatever the blocks hold
NOT_COMPARABLE = EXTENT_UNKNOWN | EXTENT_DELALLOC | EXTENT_ENCODED | EXTENT_INLINE | EXTENT_UNWRITTEN
HEADER, EXTENT = struct.Struct("=QQLLLL"), struct.Struct("=QQQQQLLLL")
NUM_EXTENTS = 512


@dataclass(frozen=True)
class Extent:
    """A run of a file's bytes that lies in one piece on disk."""

    logical: int
    physical: int
    length: int


def extents(descriptor: int) -> list[Extent] | None:
    """A file's comparable extents in order; None where the filesystem does not tell."""
    found, position, is_last = [], 0, False
    while not is_last:
        request = HEADER.pack(position, (1 << 63) - 1, FIEMAP_FLAG_SYNC, 0, NUM_EXTENTS, 0)
        buffer = bytearray(request + bytes(EXTENT.size * NUM_EXTENTS))
        try:
            fcntl.ioctl(descriptor, FS_IOC_FIEMAP, buffer)
        except OSError:
            return None  # every errno means the same to a caller: it must read instead
        num_mapped = HEADER.unpack_from(buffer)[3]
        if not num_mapped:
            break
        for number in range(num_mapped):
            logical, physical, length, _, _, flags, _, _, _ = EXTENT.unpack_from(
                buffer, HEADER.size + number * EXTENT.size
            )
            if not flags & NOT_COMPARABLE:
                found.append(Extent(logical, physical, length))
            position = logical + length
            is_last = bool(flags & EXTENT_LAST)
    return found


def shared_ranges(first: int, second: int, shift: int) -> list[tuple[int, int]]:
    """Ranges [begin, end) of the first file whose blocks the second file holds too, `shift` bytes further on.

    first, second: file descriptors. Empty where the filesystem does not tell.
    """
    if os.fstat(first).st_dev != os.fstat(second).st_dev:
        return []
    ours, theirs = extents(first), extents(second)
    if ours is None or theirs is None:
        return []
    return list(_matching(ours, theirs, shift))


def _matching(ours: list[Extent], theirs: list[Extent], shift: int) -> Iterator[tuple[int, int]]:
    """Overlaps of two extent lists in which both logical and physical positions agree."""
    index = 0
    for extent in ours:
        while index < len(theirs) and theirs[index].logical + theirs[index].length <= extent.logical + shift:
            index += 1
        at = index
        while at < len(theirs) and theirs[at].logical < extent.logical + extent.length + shift:
            other = theirs[at]
            if other.physical - other.logical + shift == extent.physical - extent.logical:
                begin = max(extent.logical, other.logical - shift)
                end = min(extent.logical + extent.length, other.logical + other.length - shift)
                if begin < end:
                    yield begin, end
            at += 1
