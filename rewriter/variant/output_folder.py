"""An output folder that appears all at once or not at all, even when the process is killed or two runs race.

Everything is written into a hidden sibling, locked for as long as the process lives, and renamed into place at the end. A sibling
that a killed run left behind is no longer locked, and the next run into the same folder, whatever its output, clears it away.
"""

import ctypes
import errno
import fcntl
import os
import shutil
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rewriter.checkpoint.kinds import is_variant
from rewriter.errors import OutputError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
CANNOT_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})

PARTIAL_SUFFIX, OLD_SUFFIX = ".mote-partial", ".mote-old"
LEFTOVERS = (f".*{PARTIAL_SUFFIX}", f".*{OLD_SUFFIX}", ".mote-probe-*")  # the last are of 0.1.0's dry runs
# A sibling that is younger may be one that its run has made and not locked yet.
LEFTOVER_AGE_SECONDS = 60.0


class OutputFolder:
    """Write into `.partial`, then `commit()`; leaving without a commit removes all that was written.

    Raises: OutputError when the target exists (unless `overwrite`), overlaps the source, is being written by another run, or
    cannot be created.
    """

    def __init__(self, target: Path, source: Path, *, overwrite: bool = False) -> None:
        self.target = Path(os.path.abspath(target))
        self.partial = self.target.with_name(f".{self.target.name}{PARTIAL_SUFFIX}")
        self._overwrite = overwrite
        self._descriptor = -1
        self._made: list[Path] = []  # parents of the target that were not there
        self._committed = False
        check_target(self.target, source, overwrite=overwrite)

    def __enter__(self) -> Self:
        try:
            self._make_parents()
            self._descriptor = self._lock()
            _clear(self.partial)
            _clear_leftovers(self.target.parent, self.partial)
            check_target_is_free(self.target, overwrite=self._overwrite)
        except OSError as error:
            self._remove_all()
            raise OutputError(f"{self.target.parent}: cannot be written ({error.strerror})") from None
        except OutputError:
            self._remove_all()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_all()

    def commit(self) -> None:
        """Make the folder durable and give it its name.

        Raises: OutputError when the name was taken meanwhile.
        """
        try:
            for folder, _, _ in os.walk(self.partial, topdown=False):
                fsync_folder(Path(folder))
            if self._overwrite and self.target.exists():
                self._replace()
            else:
                self.partial.rename(self.target)
            self._committed = True
        except OSError as error:
            raise OutputError(
                f"{self.target}: cannot be created from {self.partial.name} ({error.strerror}); was it made meanwhile?"
            ) from None
        fsync_folder(self.target.parent)

    def _lock(self) -> int:
        """Create the sibling and hold a lock on it, which the kernel drops when this process ends however it ends."""
        while True:
            self.partial.mkdir(exist_ok=True)
            descriptor = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found = os.stat(self.partial)
            except BlockingIOError:
                os.close(descriptor)
                raise OutputError(
                    f"{self.target}: another run is writing it now ({self.partial.name} is locked); wait for it, or"
                    " choose another -o"
                ) from None
            except FileNotFoundError:
                os.close(descriptor)  # renamed away by the run that held it; try again with a new one
                continue
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
            os.close(descriptor)

    def _replace(self) -> None:
        """Put the new folder in the old one's place, and remove the old one, which is locked so that no other run takes it for
        a sibling of its own meanwhile."""
        descriptor = os.open(self.target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _exchange(self.partial, self.target)
            shutil.rmtree(self.partial, ignore_errors=True)
        finally:
            os.close(descriptor)

    def _make_parents(self) -> None:
        """Create the folders that lead to the target, remembering which, so that a failure leaves none of them."""
        missing = [self.target.parent, *self.target.parent.parents]
        for folder in reversed([folder for folder in missing if not folder.exists()]):
            folder.mkdir(exist_ok=True)
            self._made.append(folder)

    def _remove_all(self) -> None:
        """Without a commit, remove what was written; after one there is nothing that is ours to remove."""
        if self._committed:
            self._close()
            return
        if self._descriptor >= 0:  # else the sibling is another run's
            shutil.rmtree(self.partial, ignore_errors=True)
            self._close()
        for folder in reversed(self._made):
            try:
                folder.rmdir()
            except OSError:  # another run writes there now
                return

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def check_target(target: Path, source: Path, *, overwrite: bool) -> None:
    """Refuse an output that exists or that overlaps the source.

    Raises: OutputError.
    """
    real_target, real_source = Path(os.path.realpath(target)), Path(os.path.realpath(source))
    # By device and inode: by a bind mount the same folder has a second path.
    if _identity(real_source) in {_identity(folder) for folder in (real_target, *real_target.parents)} - {None}:
        raise OutputError(f"{target}: lies in the source {source}, which is never written; choose another -o")
    holds = OutputError(f"{target}: holds the source {source}, which is never written; choose another -o")
    if _identity(real_target) in {_identity(folder) for folder in real_source.parents} - {None}:
        raise holds
    check_target_is_free(target, overwrite=overwrite)
    if any(_identity(Path(folder)) == _identity(real_source) for folder, _, _ in os.walk(real_target)):
        raise holds


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at a path; None where nothing is."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_target_is_free(target: Path, *, overwrite: bool) -> None:
    """Refuse an existing output, and with `overwrite` one that is not a variant.

    Raises: OutputError.
    """
    if not os.path.lexists(target):
        return
    if target.is_dir() and not target.is_symlink():
        if not any(target.iterdir()):
            return
        if overwrite and is_variant(target):
            return
        if overwrite:
            raise OutputError(f"{target}: exists and is not a MoTE variant, so --overwrite does not replace it")
    raise OutputError(f"{target}: exists; choose another -o, or give --overwrite to replace a variant")


def fsync_folder(folder: Path) -> None:
    """Make a folder's entries durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Remove what a killed run left in the sibling."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _exchange(partial: Path, target: Path) -> None:
    """Swap two folders in one step; where the filesystem cannot, move the old one aside first."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(partial), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code not in CANNOT_EXCHANGE:
        raise OSError(code, os.strerror(code))
    aside = target.with_name(f".{target.name}{OLD_SUFFIX}")
    shutil.rmtree(aside, ignore_errors=True)
    target.rename(aside)
    try:
        partial.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _clear_leftovers(parent: Path, own: Path) -> None:
    """Remove what killed runs left in a folder, and give a variant its name back that was moved aside to be replaced."""
    for pattern in LEFTOVERS:
        for found in parent.glob(pattern):
            if found == own or found.is_symlink() or not found.is_dir():
                continue
            if time.time() - found.stat().st_mtime < LEFTOVER_AGE_SECONDS:
                continue
            descriptor = os.open(found, os.O_RDONLY | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                replaced = found.with_name(found.name.removeprefix(".").removesuffix(OLD_SUFFIX))
                if found.name.endswith(OLD_SUFFIX) and not os.path.lexists(replaced):
                    found.rename(replaced)
                else:
                    shutil.rmtree(found, ignore_errors=True)
            except BlockingIOError:
                pass  # another run is at work in it
            finally:
                os.close(descriptor)
