"""Pure: a variant's files and the file lists of the repos concerned -> what to upload, copy on the server, keep, delete."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from rewriter.checkpoint.other_files import OTHER_WEIGHTS
from rewriter.console import size_text
from rewriter.hub.models import RemoteFile, RemoteTree
from rewriter.push.files import LocalFile

Action = Literal["upload", "keep", "copy", "delete"]

NUM_FILES_SHOWN = 30

TERMS_PATTERNS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "USAGE_POLICY*")
"""Files of the base that state its terms and that a variant must not lose."""


@dataclass(frozen=True)
class FileAction:
    """What happens to one path of the target.

    "keep": the branch starts with this very content; "copy": the server copies it from source_repo (the target itself
    if None) at source_revision; "delete": the branch would start with it, but it belongs to other weights.
    """

    path: str
    action: Action
    size_bytes: int
    source_repo: str | None = None
    source_revision: str | None = None
    source_path: str | None = None


@dataclass(frozen=True)
class PushPlan:
    """All that a push does, worked out before anything moves.

    create is "empty", "duplicate" (of duplicate_of) or None where the repo exists; start_commit is the commit that
    branch points to, or will be created at. notes are sentences for the reader.
    """

    repo_id: str
    branch: str
    create: Literal["empty", "duplicate"] | None
    duplicate_of: str | None
    private: bool
    create_branch: bool
    start_commit: str | None
    actions: tuple[FileAction, ...]
    notes: tuple[str, ...] = ()

    def files(self, action: Action) -> list[FileAction]:
        """Return the actions of one kind."""
        return [item for item in self.actions if item.action == action]

    def size_bytes(self, action: Action) -> int:
        """Return the bytes of one kind of action."""
        return sum(item.size_bytes for item in self.files(action))

    @property
    def is_done(self) -> bool:
        """Whether the branch holds the variant already."""
        return self.create is None and not self.create_branch and all(item.action == "keep" for item in self.actions)

    def to_json(self) -> dict[str, Any]:
        """As --json prints it."""
        totals = {
            kind: {"files": len(self.files(kind)), "bytes": self.size_bytes(kind)}
            for kind in ("upload", "copy", "keep", "delete")
        }
        return {**asdict(self), "actions": [asdict(item) for item in self.actions], "totals": totals}


def needs_hash(file: LocalFile, target_trees: Iterable[RemoteTree], base: RemoteTree | None) -> bool:
    """Tell whether a file's unknown hash decides anything: the target has a file of its size that is not the base's.

    An edited shard differs from all of the base's, so a base's shard of the same size is no candidate.
    """
    if file.sha256 is not None:
        return False
    base_hashes = {entry.sha256 for entry in base.files.values()} if base is not None else set()
    return any(
        other.size_bytes == file.size_bytes and other.sha256 is not None and other.sha256 not in base_hashes
        for tree in target_trees
        for other in tree.files.values()
    )


def plan_actions(
    files: Sequence[LocalFile],
    start: RemoteTree | None,
    target_trees: Sequence[RemoteTree],
    source: RemoteTree | None,
    target_id: str,
) -> tuple[FileAction, ...]:
    """Decide for every file.

    Args:
        files: the variant's.
        start: the tree that the branch has or will start with; None for an empty repo.
        target_trees: further trees of the target repo, whose files may be copied within it.
        source: the base's tree, whose files may be copied across repos if they have a Xet hash; None if unknown.
        target_id: the target repo.
    """
    start_files = start.files if start is not None else {}
    within: dict[str | None, tuple[RemoteTree, RemoteFile]] = {
        other.sha256: (tree, other)
        for tree in reversed([*([start] if start else []), *target_trees])
        for other in tree.files.values()
        if other.sha256 is not None
    }
    across: Mapping[str | None, RemoteFile] = {}
    if source is not None and source.repo_id != target_id:
        across = {other.sha256: other for other in source.files.values() if other.sha256 and other.xet_hash}
    actions = [_decide(file, start_files.get(file.path), within, across, source) for file in files]
    actions += _terms(files, start_files, source)
    actions += [
        FileAction(path, "delete", entry.size_bytes)
        for path, entry in sorted(start_files.items())
        if is_other_weight(path) and path not in {file.path for file in files}
    ]
    return tuple(actions)


def is_other_weight(path: str) -> bool:
    """Tell whether a path of the base holds weights in any format: left beside a variant's, a runtime may load it."""
    name = path.rsplit("/", 1)[-1]
    return any(fnmatchcase(name, pattern) for pattern in OTHER_WEIGHTS)


def same_content(file: LocalFile, entry: RemoteFile | None) -> bool:
    """Tell whether a remote file has a local file's content, by SHA-256 or, for files kept in git, by git's id."""
    if entry is None or entry.size_bytes != file.size_bytes:
        return False
    if entry.sha256 is not None:
        return file.sha256 == entry.sha256
    return file.blob_id is not None and file.blob_id == entry.blob_id


def describe_plan(plan: PushPlan) -> list[str]:
    """A push plan for people, a line each."""
    target = f"{plan.repo_id}, branch {plan.branch}"
    first = {
        "empty": f"Create the {'private' if plan.private else 'public'} repo {target}",
        "duplicate": f"Duplicate {plan.duplicate_of} on the server as {target}",
        None: f"Push to {target}",
    }[plan.create]
    if plan.create_branch:
        first += f" (new, from {(plan.start_commit or 'its first commit')[:12]})"
    lines = [first]
    for kind, meaning in (
        ("upload", "sent from here, at most: Xet leaves out the chunks that the Hub has"),
        ("copy", "copied on the server"),
        ("keep", "there already, not touched"),
        ("delete", "other weights, deleted from the branch"),
    ):
        items = plan.files(kind)  # type: ignore[arg-type]
        if items:
            size = size_text(sum(item.size_bytes for item in items))
            lines.append(f"  {kind:<7}{len(items):>4} files {size:>9}  {meaning}")
        if kind in ("upload", "delete"):
            lines += [f"    {item.path}  {size_text(item.size_bytes)}" for item in items[:NUM_FILES_SHOWN]]
            lines += [f"    ... and {len(items) - NUM_FILES_SHOWN} more"] if len(items) > NUM_FILES_SHOWN else []
    return [*lines, *(f"  note: {note}" for note in plan.notes)]


def _decide(
    file: LocalFile,
    present: RemoteFile | None,
    within: Mapping[str | None, tuple[RemoteTree, RemoteFile]],
    across: Mapping[str | None, RemoteFile],
    source: RemoteTree | None,
) -> FileAction:
    if same_content(file, present):
        return FileAction(file.path, "keep", file.size_bytes)
    if file.sha256 is not None and file.sha256 in within:
        tree, other = within[file.sha256]
        return FileAction(file.path, "copy", file.size_bytes, None, tree.commit, other.path)
    if file.sha256 is not None and source is not None and file.sha256 in across:
        other = across[file.sha256]
        return FileAction(file.path, "copy", file.size_bytes, source.repo_id, source.commit, other.path)
    return FileAction(file.path, "upload", file.size_bytes)


def _terms(
    files: Sequence[LocalFile], start_files: Mapping[str, RemoteFile], source: RemoteTree | None
) -> list[FileAction]:
    """The base's licence files, where the variant's folder does not have them."""
    if source is None:
        return []
    present = {file.path for file in files} | set(start_files)
    return [
        FileAction(path, "copy", entry.size_bytes, source.repo_id, source.commit, path)
        for path, entry in sorted(source.files.items())
        if path not in present and any(fnmatchcase(path, pattern) for pattern in TERMS_PATTERNS)
    ]
