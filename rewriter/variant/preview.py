"""What executing a plan would move, found out without writing the output."""

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rewriter.checkpoint.kinds import Model
from rewriter.edit.plan import Plan
from rewriter.errors import OutputError
from rewriter.variant.copying import LinkMethod, LinkMode, can_hardlink, can_reflink, disk_bytes, would_hardlink

PROBE_NAME = ".mote-probe"


@dataclass(frozen=True)
class Preview:
    """What executing a plan would move, worked out without writing the output."""

    unchanged_method: LinkMethod
    num_unchanged: int
    unchanged_bytes: int
    changed_shares_blocks: bool
    num_changed: int
    changed_bytes: int  # on disk: holes of sparse files do not count
    free_bytes: int

    @property
    def needed_bytes(self) -> int:
        """Disk space that will be used, metadata apart."""
        needed = 0 if self.changed_shares_blocks else self.changed_bytes
        return needed + (self.unchanged_bytes if self.unchanged_method == "copy" else 0)


def preview(plan: Plan, checkpoint: Model, target: Path, link: LinkMode, scratch: Path | None = None) -> Preview:
    """Find out which ways of copying work from the base to the target's filesystem, and count the bytes.

    checkpoint: the base; scratch: a folder in which ways may be tried on small files. Without one nothing is written:
    sharing blocks is tried in a file that has no name, and a hard link is predicted.

    Raises: OutputError when the target's parent cannot be written, or the asked-for way does not work there.
    """
    parent = scratch or target.absolute().parent
    while not parent.exists():
        parent = parent.parent
    changed, base = set(plan.changed_shards), checkpoint.folder
    unchanged = [base / shard for shard in checkpoint.shards if shard not in changed]
    method, shares = _ways(base, unchanged, sorted(changed), parent, scratch, link)
    return Preview(
        unchanged_method=method,
        num_unchanged=len(unchanged),
        unchanged_bytes=sum(disk_bytes(path) if method == "copy" else path.stat().st_size for path in unchanged),
        changed_shares_blocks=shares,
        num_changed=len(changed),
        changed_bytes=sum(disk_bytes(base / shard) for shard in changed),
        free_bytes=shutil.disk_usage(parent).free,
    )


def _ways(
    base: Path, unchanged: list[Path], changed: list[str], parent: Path, scratch: Path | None, link: LinkMode
) -> tuple[LinkMethod, bool]:
    """How unchanged shards will come over, and whether edited ones can share blocks."""
    sample = unchanged[0] if unchanged else base / changed[0]
    try:
        shares = can_reflink(sample, parent)
        if not os.access(parent, os.W_OK | os.X_OK):  # which is how a filesystem without nameless files tells
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if link in ("copy", "symlink"):
            return link, shares
        if shares:
            return "reflink", True
        if link == "reflink":
            raise OutputError(f"{parent}: cannot share blocks with {sample}; use --link auto")
        hard = would_hardlink(sample, parent) if scratch is None else can_hardlink(sample, scratch / PROBE_NAME)
        if link == "hardlink" and not hard:
            raise OutputError(f"{parent}: cannot hold a hard link to {sample}; use --link auto")
        return ("hardlink" if hard else "copy"), False
    except OSError as error:
        raise OutputError(f"{parent}: cannot be written ({error.strerror})") from None
