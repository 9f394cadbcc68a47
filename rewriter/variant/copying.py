"""Getting a file into the output folder with as little work as the filesystem allows, never touching the source.

The kernel does the copying: reflink (FICLONERANGE) where the filesystem shares blocks, else copy_file_range over the parts of
the file that hold data, so that holes stay holes.
"""

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rewriter.console import Progress
from rewriter.errors import OutputError

LinkMode = Literal["auto", "reflink", "hardlink", "symlink", "copy"]
LinkMethod = Literal["reflink", "hardlink", "symlink", "copy"]

FICLONERANGE = 0x4020940D  # linux/fs.h: _IOW(0x94, 13, struct file_clone_range)
SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h
BLOCK_BYTES = 4096  # reflinks share whole blocks; XFS and btrfs use this size, smaller ones divide it
CHUNK_BYTES = 64 << 20  # between two calls the progress bar moves and Ctrl-C is heard
PLAIN_CHUNK_BYTES = 4 << 20

# What says "this filesystem, or this pair of filesystems, cannot": fall back. All else (no space, I/O error) is an error.
CANNOT_CLONE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}
)
CANNOT_COPY_RANGE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM})
# Filesystems without O_TMPFILE (FUSE, NFS, older overlays) cannot share blocks either.
CANNOT_BE_NAMELESS = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL, errno.ENOSYS})
CANNOT_HARDLINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS, errno.EACCES})


def place_unchanged(source: Path, target: Path, mode: LinkMode, progress: Progress) -> LinkMethod:
    """Make `target` hold what `source` holds, by the first way of `mode` that works here, and say which it was.

    `auto` is reflink, else hardlink, else copy. Links go to the real file: in the Hub's cache a snapshot's entries are
    symbolic links, and a hard link to a link would be a link.

    Raises: OutputError when the asked-for way does not work here.
    """
    real = Path(os.path.realpath(source))
    if mode in ("auto", "reflink"):
        if _reflink_whole(real, target):
            progress(real.stat().st_size)
            return "reflink"
        if mode == "reflink":
            raise OutputError(f"{target.parent}: cannot share blocks with {real}; use --link auto")
    if mode in ("auto", "hardlink"):
        try:
            target.hardlink_to(real)
        except OSError as error:
            if mode == "hardlink" or error.errno not in CANNOT_HARDLINK:
                raise OutputError(f"{target}: cannot be a hard link to {real} ({error.strerror})") from None
        else:
            progress(real.stat().st_size)
            return "hardlink"
    if mode == "symlink":
        target.symlink_to(real)
        progress(real.stat().st_size)
        return "symlink"
    with real.open("rb", buffering=0) as opened, target.open("xb", buffering=0) as created:
        copy_range(opened.fileno(), created.fileno(), 0, 0, os.fstat(opened.fileno()).st_size, progress)
        os.fsync(created.fileno())
    return "copy"


def copy_range(
    source: int, target: int, source_offset: int, target_offset: int, size: int, progress: Progress
) -> LinkMethod:
    """Copy a range between two open files, sharing blocks where both offsets lie on block borders and it is possible.

    source, target: file descriptors. The target's range must be new (a hole), since holes of the source are skipped.
    """
    end = target_offset + size
    if os.fstat(target).st_size < end:
        os.ftruncate(target, end)
    is_aligned = source_offset % BLOCK_BYTES == target_offset % BLOCK_BYTES == 0
    if size and is_aligned and _clone_range(source, target, source_offset, target_offset, size):
        progress(size)
        return "reflink"
    position = source_offset
    for begin, stop in data_ranges(source, source_offset, source_offset + size):
        progress(begin - position)
        _copy_data(source, target, begin, target_offset + begin - source_offset, stop - begin, progress)
        position = stop
    progress(source_offset + size - position)
    return "copy"


def data_ranges(descriptor: int, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """The parts of [begin, end) of a file that are not holes, as (begin, end)."""
    position = begin
    while position < end:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            if error.errno == errno.EINVAL:  # the filesystem cannot tell
                yield position, end
                return
            raise
        if start >= end:
            return
        stop = min(os.lseek(descriptor, start, os.SEEK_HOLE), end)
        yield start, stop
        position = stop


def can_reflink(source: Path, folder: Path) -> bool:
    """Whether `source` could share its blocks with a file in `folder`, tried on its first block in a file without a name."""
    real = Path(os.path.realpath(source))
    try:
        created = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno in CANNOT_BE_NAMELESS:
            return False
        raise
    try:
        with real.open("rb", buffering=0) as opened:
            size = min(BLOCK_BYTES, os.fstat(opened.fileno()).st_size)
            return size > 0 and _clone_range(opened.fileno(), created, 0, 0, size)
    finally:
        os.close(created)


def can_hardlink(source: Path, scratch: Path) -> bool:
    """Whether a hard link to `source` can be made at `scratch`, tried there."""
    try:
        scratch.hardlink_to(os.path.realpath(source))
    except OSError as error:
        if error.errno in CANNOT_HARDLINK:
            return False
        raise
    scratch.unlink()
    return True


def would_hardlink(source: Path, folder: Path) -> bool:
    """Whether a hard link to `source` could be made in `folder`, told from what link(2) and proc(5) ask for: one filesystem
    that has links, and with protected_hardlinks a file that is one's own or that one may read and write."""
    found = os.stat(source)
    if found.st_dev != folder.stat().st_dev or found.st_nlink >= os.pathconf(folder, "PC_LINK_MAX"):
        return False
    return os.geteuid() in (0, found.st_uid) or os.access(source, os.R_OK | os.W_OK)


def fsync_file(path: Path) -> None:
    """Make a written file durable."""
    with path.open("rb") as opened:
        os.fsync(opened.fileno())


def disk_bytes(path: Path) -> int:
    """Bytes a file takes on disk; a sparse file's holes do not count."""
    status = path.stat()
    return min(status.st_size, status.st_blocks * 512)


def _reflink_whole(source: Path, target: Path) -> bool:
    """Make `target` share all blocks of `source`; False, and no target, where that cannot be."""
    with source.open("rb", buffering=0) as opened:
        size = os.fstat(opened.fileno()).st_size
        with target.open("xb", buffering=0) as created:
            if _clone_range(opened.fileno(), created.fileno(), 0, 0, size):
                os.fsync(created.fileno())
                return True
    target.unlink()
    return False


def _clone_range(source: int, target: int, source_offset: int, target_offset: int, size: int) -> bool:
    """Share a block-aligned range (its end may be the source's end); False where the filesystem cannot."""
    try:
        fcntl.ioctl(target, FICLONERANGE, struct.pack("=qQQQ", source, source_offset, size, target_offset))
    except OSError as error:
        if error.errno in CANNOT_CLONE:
            return False
        raise
    return True


def _copy_data(source: int, target: int, source_offset: int, target_offset: int, size: int, progress: Progress) -> None:
    """Copy a range that holds data: by the kernel, else through a small buffer."""
    done = 0
    while done < size:
        try:
            count = os.copy_file_range(
                source, target, min(CHUNK_BYTES, size - done), source_offset + done, target_offset + done
            )
        except OSError as error:
            if error.errno not in CANNOT_COPY_RANGE:
                raise
            count = 0
        if not count:  # this pair of files cannot, or not on from here
            _copy_through_buffer(source, target, source_offset + done, target_offset + done, size - done, progress)
            return
        _start_writeback(target, target_offset + done, count)
        done += count
        progress(count)


def _start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Let the disk begin on a written range while the next one is copied. Only a hint: what makes the file durable is the
    fsync at its end, which then has less to wait for."""
    start = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if start is not None:
        start(
            ctypes.c_int(descriptor), ctypes.c_int64(offset), ctypes.c_int64(size), ctypes.c_uint(SYNC_FILE_RANGE_WRITE)
        )


def _copy_through_buffer(
    source: int, target: int, source_offset: int, target_offset: int, size: int, progress: Progress
) -> None:
    """Copy a range with pread and pwrite.

    Raises: OSError when the source ends early.
    """
    done = 0
    while done < size:
        data = os.pread(source, min(PLAIN_CHUNK_BYTES, size - done), source_offset + done)
        if not data:
            raise OSError(errno.EIO, "the source ended while it was copied")
        write_fully(target, data, target_offset + done)
        done += len(data)
        progress(len(data))


def write_fully(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """pwrite all of `data`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def write_repeated(descriptor: int, byte: int, offset: int, size: int) -> None:
    """Write `size` times the same byte."""
    piece = memoryview(bytes([byte]) * min(size, PLAIN_CHUNK_BYTES))
    for start in range(0, size, PLAIN_CHUNK_BYTES):
        write_fully(descriptor, piece[: min(PLAIN_CHUNK_BYTES, size - start)], offset + start)
