"""What a variant folder holds, file by file, and the hashes that are known without reading hundreds of gigabytes."""

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rewriter.checkpoint.gguf.files import is_gguf
from rewriter.checkpoint.kinds import open_model
from rewriter.checkpoint.links import check_links
from rewriter.edit.record import VariantRecord, read_record
from rewriter.errors import InputError
from rewriter.hub.models import RemoteTree, missing_files
from rewriter.json_text import JsonError, read_json
from rewriter.variant.shared_blocks import shared_ranges
from rewriter.whole_file import write_whole

SMALL_FILE_BYTES = 10_000_000
"""Below this a file is simply read; the Hub keeps larger ones, and all weights, outside of git."""

WEIGHT_SUFFIX = ".safetensors"

SAME_DATA = "the base's own data on this disk"
BY_MOTE_BLOCK = "unchanged by the mote block, size as the base's"


@dataclass(frozen=True)
class LocalFile:
    """A file of the variant.

    content is set for files that exist in memory only (the card with the repo's name in it), source for those on disk.
    sha256 is None as long as it is unknown; blob_id, git's id, is known for small files. reason says how the hash is
    known.
    """

    path: str
    size_bytes: int
    source: Path | None = None
    content: bytes | None = None
    sha256: str | None = None
    blob_id: str | None = None
    reason: str = ""

    @property
    def is_weight(self) -> bool:
        """Whether it is a shard."""
        return self.path.endswith(WEIGHT_SUFFIX)


def read_variant(folder: Path) -> VariantRecord:
    """Return the record of a variant's folder.

    Raises:
        InputError: the folder is no complete variant.
        CheckpointError: its config.json cannot be read.
    """
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder, expected a variant; mote-rewrite -o FOLDER makes one")
    missing = [] if is_gguf(folder) else missing_files(folder)
    if missing:
        raise InputError(
            f"'{folder}' lacks {missing[0]}, expected a complete variant; mote-rewrite -o FOLDER makes one"
        )
    model = open_model(folder)
    return read_record(model.config, str(folder), model.config_place)


def list_files(folder: Path, record: VariantRecord) -> list[LocalFile]:
    """List a variant's files, hidden ones and caches apart; small ones come with their hashes.

    Links to shards of the base are followed, as in a variant made with --link symlink.

    Raises:
        CheckpointError: a link leads elsewhere.
        InputError: something is not a file, a folder is a link, or cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise InputError(f"'{error.filename}' cannot be read ({error.strerror}), so what it holds is not known")

    files = []
    for base, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        for name in folders:
            if (Path(base) / name).is_symlink():
                raise InputError(f"'{Path(base) / name}' is a link to a folder, expected none in a variant")
        for name in sorted(names):
            if name.startswith("."):
                continue
            source = Path(base) / name
            check_links(folder, [source.relative_to(folder)], base_name=record.base_folder)
            if not source.is_file():
                raise InputError(f"'{source}' is not a file, or a link to nothing, expected a complete variant")
            path, size_bytes = source.relative_to(folder).as_posix(), source.stat().st_size
            if path.endswith(WEIGHT_SUFFIX) or size_bytes > SMALL_FILE_BYTES:
                files.append(LocalFile(path, size_bytes, source))
            else:
                files.append(replace(file_in_memory(path, source.read_bytes()), source=source, content=None))
    return files


def file_in_memory(path: str, content: bytes) -> LocalFile:
    """Make a file of bytes, with its hashes."""
    return LocalFile(
        path,
        len(content),
        content=content,
        sha256=hashlib.sha256(content).hexdigest(),
        blob_id=hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        reason="read",
    )


def with_base_hashes(
    files: Iterable[LocalFile], changed: Collection[str], base: RemoteTree | None, snapshot: Path | None
) -> list[LocalFile]:
    """Give the unchanged shards the hashes that the base's file list on the Hub has for them.

    A shard is taken to be the base's if it is the very file of the local cache's snapshot (same inode, or all its
    blocks shared), or if it is not among `changed`, the shards that the record lists, and the sizes agree. What is then
    published is the base's own file, so the result is what the record says even if the local copy were damaged.
    """
    known = []
    for file in files:
        entry = base.files.get(file.path) if base is not None else None
        unchanged = file.is_weight and file.path not in changed and entry is not None and entry.sha256 is not None
        if file.sha256 is None and unchanged and entry is not None and entry.size_bytes == file.size_bytes:
            proven = (
                snapshot is not None and file.source is not None and is_same_data(file.source, snapshot / file.path)
            )
            reason = SAME_DATA if proven else BY_MOTE_BLOCK
            file = replace(file, sha256=entry.sha256, reason=reason)
        known.append(file)
    return known


def hash_files(
    files: Iterable[LocalFile], ledger: Path, progress: Callable[[int], None] = lambda num_bytes: None
) -> list[LocalFile]:
    """Give every file without a hash its SHA-256, from the ledger if the file has not changed since, else by reading.

    The ledger (JSON: device, inode, size and time of modification -> SHA-256) makes resuming after an interruption
    cheap; it is written after each file. progress receives the bytes read.
    """
    known = _read_ledger(ledger)
    hashed = []
    for file in files:
        if file.sha256 is None:
            assert file.source is not None
            status = file.source.stat()
            key = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"
            if key not in known:
                known[key] = _sha256(file.source, progress)
                _write_ledger(ledger, known)
            else:
                progress(file.size_bytes)
            file = replace(file, sha256=known[key], reason="hashed")
        hashed.append(file)
    return hashed


def ledger_path() -> Path:
    """Return where hashes are remembered: `mote/sha256.json` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mote" / "sha256.json"


def _sha256(path: Path, progress: Callable[[int], None]) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as opened:
        while part := opened.read(1 << 22):
            digest.update(part)
            progress(len(part))
    return digest.hexdigest()


def is_same_data(one: Path, other: Path) -> bool:
    """Tell, without reading them, whether two files are one inode or share all their blocks on disk."""
    if not other.exists():
        return False
    if os.path.samefile(one, other):
        return True
    size_bytes = one.stat().st_size
    if other.stat().st_size != size_bytes:
        return False
    with one.open("rb") as ours, other.open("rb") as theirs:
        position = 0
        for begin, end in shared_ranges(ours.fileno(), theirs.fileno(), 0):
            if begin > position:
                return False
            position = max(position, end)
    return position >= size_bytes


def _read_ledger(ledger: Path) -> dict[str, str]:
    try:
        known = read_json(ledger.read_bytes())
    except (OSError, JsonError):
        # A ledger that is not there or was damaged costs reading the files again, nothing else.
        return {}
    return known if isinstance(known, dict) and all(isinstance(value, str) for value in known.values()) else {}


def _write_ledger(ledger: Path, known: Mapping[str, str]) -> None:
    ledger.parent.mkdir(parents=True, exist_ok=True)
    write_whole(ledger, json.dumps(known))
