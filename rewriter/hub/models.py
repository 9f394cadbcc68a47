"""Finds a model: a local folder, the local Hub cache, or a download into that cache, in this order."""

import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewriter.checkpoint.gguf.files import GGUF_SUFFIX
from rewriter.checkpoint.other_files import OTHER_WEIGHTS, TRAINING_STATE
from rewriter.checkpoint.reader import INDEX_NAME, SINGLE_NAME, is_shard_name
from rewriter.checkpoint.source import LocalFolder
from rewriter.console import size_text
from rewriter.errors import CheckpointError, HubError, InputError
from rewriter.hub.errors import hub_errors, quiet_hub_logs, with_retries
from rewriter.json_text import JsonError, read_json
from rewriter.small_file import read_small

# Other formats of the same weights, and training leftovers: never read, never part of a variant.
IGNORED_PATTERNS = (
    *(pattern for pattern in OTHER_WEIGHTS if "safetensors" not in pattern),
    "consolidated*.safetensors",
    "original/*",
    *TRAINING_STATE,
    *(f"{pattern}/*" for pattern in TRAINING_STATE),
)

# What describes a model without its weights.
DESCRIPTION_PATTERNS = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")

LARGE_DOWNLOAD_BYTES = 50 * 10**9
"""From here on (R1 has 689 GB) the announcement also says how to see the plan without downloading."""


@dataclass(frozen=True)
class ResolvedModel:
    """A model found on this machine; usable as a path.

    folder holds config.json and the shards (symlinks into the cache's blobs, never to be written, if it is a Hub
    snapshot), or is a GGUF file or a folder with one; repo_id and revision (a commit) are known for Hub models; source is
    "folder", "cache" or "download".
    """

    folder: Path
    repo_id: str | None
    revision: str | None
    source: str

    def __fspath__(self) -> str:
        return str(self.folder)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a Hub repo: size in bytes, git blob id, and for LFS or Xet files their SHA-256 and Xet hash."""

    path: str
    size_bytes: int
    blob_id: str
    sha256: str | None
    xet_hash: str | None


@dataclass(frozen=True)
class RemoteTree:
    """All files of a Hub repo at one commit, and whether the repo is private or gated."""

    repo_id: str
    commit: str
    files: dict[str, RemoteFile]
    private: bool
    gated: bool


def is_local(model: str) -> bool:
    """Tell whether a model argument names files on this machine: a folder that is there, or a GGUF file."""
    # Not Path.is_dir, which raises where a name is too long for the system.
    return os.path.isdir(os.path.expanduser(model)) or model.endswith(GGUF_SUFFIX)


def looks_like_repo_id(model: str) -> bool:
    """Tell whether a model argument can be a Hub id (ORG/NAME or NAME) at all."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", model) is not None


def shared_name(model: str) -> str:
    """What files that are shared call a model: a Hub id as it is, of a path the last part."""
    return model if looks_like_repo_id(model) else Path(model).name


def cache_identity(folder: Path) -> tuple[str, str] | None:
    """Return (repo id, commit) if folder is a snapshot in a Hub cache, else None.

    Source: huggingface_hub 2.4, `file_download.py: repo_folder_name` (models--ORG--NAME/snapshots/COMMIT).
    """
    snapshot = folder.absolute()
    if snapshot.parent.name != "snapshots" or not re.fullmatch(r"[0-9a-f]{40}", snapshot.name):
        return None
    match = re.fullmatch(r"models--(.+)", snapshot.parent.parent.name)
    return (match.group(1).replace("--", "/"), snapshot.name) if match else None


def resolve_model(
    model: str | Path,
    revision: str | None = None,
    say: Callable[[str], None] = lambda message: None,
    download: bool = True,
) -> ResolvedModel:
    """Find a model: a local folder, else the local Hub cache, else (unless download is False) a download.

    Args:
        model: a folder, a GGUF file, or a Hub id such as deepseek-ai/DeepSeek-R1.
        revision: branch, tag or commit of a Hub model; None is main. Not for folders.
        say: receives one line on where the model comes from, and before a download its size.
        download: whether the Hub may be asked when the cache lacks the model.

    Raises:
        InputError: neither a folder nor a possible Hub id, or a revision given with a folder.
        HubError: the Hub refused, could not be reached, or the disk lacks space for the download.
        CheckpointError: the repo holds no safetensors weights.
    """
    folder = Path(model).expanduser()
    if is_local(str(model)):
        return _resolve_folder(folder, revision)
    name = str(model)
    if not looks_like_repo_id(name):
        raise InputError(f"'{name}' is neither an existing folder nor a Hub model id, expected a path or ORG/NAME")
    cached = find_in_cache(name, revision)
    if cached is not None:
        say(f"{name}: using the local cache at revision {cached.revision}")
        return cached
    if not download:
        raise HubError(f"'{name}' is not in the local Hub cache, and downloads were not asked for")
    return _download(name, revision, say)


def resolve_description(
    model: str | Path, revision: str | None = None, say: Callable[[str], None] = lambda message: None
) -> ResolvedModel:
    """Find what describes a model (config, tokenizer, chat template) without its weights; as `resolve_model` else.

    Raises:
        InputError: neither a folder nor a possible Hub id, or a revision given with a folder.
        HubError: the Hub refused, or could not be reached.
        CheckpointError: there is no config.json.
    """
    from huggingface_hub import snapshot_download

    name, folder = str(model), Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{folder} is a folder, which has no revision {revision!r}; give a Hub id, or no revision")
        found = ResolvedModel(folder, None, None, "folder")
    elif is_local(name) or not looks_like_repo_id(name):
        return resolve_model(model, revision, say)
    else:
        say(f"{name}: config and tokenizer only")
        with hub_errors(name, transfer=True):
            folder = Path(
                snapshot_download(
                    name, revision=revision, allow_patterns=list(DESCRIPTION_PATTERNS), library_name="mote"
                )
            )
        found = ResolvedModel(folder, name, folder.name, "download")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{model}: has no config.json, expected a model's description")
    return found


def find_in_cache(repo_id: str, revision: str | None = None) -> ResolvedModel | None:
    """Return the complete snapshot of a Hub model in the local cache, or None; nothing is written, nothing asked.

    An interrupted download leaves a snapshot that lacks files, so config.json and every shard named by the index must
    be there.
    """
    from huggingface_hub import snapshot_download

    quiet_hub_logs()
    try:
        with hub_errors(repo_id):
            folder = Path(
                snapshot_download(
                    repo_id, revision=revision, local_files_only=True, ignore_patterns=list(IGNORED_PATTERNS)
                )
            )
    except HubError:
        return None
    if missing_files(folder):
        return None
    return ResolvedModel(folder, repo_id, folder.name, "cache")


def missing_files(folder: Path) -> list[str]:
    """Return which of config.json, the index's shards or the single shard a checkpoint folder lacks."""
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    index = folder / INDEX_NAME
    if not index.is_file():
        return missing + ([] if (folder / SINGLE_NAME).is_file() else [SINGLE_NAME])
    source = LocalFolder(folder)
    return missing + [
        name for name in shard_names(read_small(index, error=CheckpointError), index) if source.size_bytes(name) is None
    ]


def shard_names(index_text: str | bytes, index_name: str | Path) -> list[str]:
    """Return the sorted file names in an index's weight map.

    Raises:
        CheckpointError: the text is not an index, or names what is no shard in the folder.
    """
    try:
        names = read_json(index_text)["weight_map"].values()
    except (JsonError, KeyError, TypeError, AttributeError):
        names = [None]
    names = list(names)
    if not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{index_name}: is not a safetensors index, expected a weight_map of strings")
    for name in names:
        if not is_shard_name(name):
            raise CheckpointError(
                f"{index_name}: names the shard {name!r}, expected the name of a .safetensors file inside the folder"
            )
    return sorted(set(names))


def remote_tree(
    repo_id: str, revision: str | None = None, say: Callable[[str], None] = lambda message: None
) -> RemoteTree:
    """List a repo's files at one commit: two requests, no content.

    Raises:
        HubError: the repo or revision does not exist, or the Hub refused.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    quiet_hub_logs()
    api = HfApi(library_name="mote")
    with hub_errors(repo_id):
        info = with_retries(lambda: api.model_info(repo_id, revision=revision), say)
        entries = list(api.list_repo_tree(repo_id, recursive=True, revision=info.sha))
    files = {
        entry.path: RemoteFile(
            entry.path, entry.size, entry.blob_id, entry.lfs.sha256 if entry.lfs else None, entry.xet_hash
        )
        for entry in entries
        if isinstance(entry, RepoFile)
    }
    return RemoteTree(repo_id, str(info.sha), files, bool(info.private), bool(info.gated))


def files_to_download(tree: RemoteTree) -> list[RemoteFile]:
    """Return the files of a repo that a rewrite needs: all but other weight formats and training leftovers."""
    from huggingface_hub.utils import filter_repo_objects

    return list(
        filter_repo_objects(tree.files.values(), ignore_patterns=list(IGNORED_PATTERNS), key=lambda file: file.path)
    )


def _resolve_folder(folder: Path, revision: str | None) -> ResolvedModel:
    identity = cache_identity(folder)
    if revision is not None and (identity is None or identity[1] != revision):
        raise InputError(f"'{folder}' is a local folder: --revision {revision} can only be given with a Hub model id")
    repo_id, commit = identity or (None, None)
    return ResolvedModel(folder, repo_id, commit, "folder")


def _download(repo_id: str, revision: str | None, say: Callable[[str], None]) -> ResolvedModel:
    from huggingface_hub import constants, snapshot_download

    tree = remote_tree(repo_id, revision, say)
    wanted = files_to_download(tree)
    if not any(file.path.endswith(".safetensors") for file in wanted):
        raise CheckpointError(f"'{repo_id}' holds no safetensors weights, expected {SINGLE_NAME} or {INDEX_NAME}")
    cache = Path(constants.HF_HUB_CACHE)
    _announce_download(repo_id, tree.commit, wanted, cache, say)
    with hub_errors(repo_id, transfer=True):
        folder = snapshot_download(
            repo_id, revision=revision, ignore_patterns=list(IGNORED_PATTERNS), library_name="mote"
        )
    missing = missing_files(Path(folder))
    if missing:
        raise CheckpointError(f"'{repo_id}' at {tree.commit} lacks {missing[0]}, expected by its index")
    return ResolvedModel(Path(folder), repo_id, Path(folder).name, "download")


def _announce_download(
    repo_id: str, commit: str, wanted: Sequence[RemoteFile], cache: Path, say: Callable[[str], None]
) -> None:
    size_bytes = sum(file.size_bytes for file in wanted)
    existing = next(folder for folder in (cache, *cache.absolute().parents) if folder.is_dir())
    # Files of an interrupted download or another revision are kept under their hash and not fetched again.
    blobs = cache / f"models--{repo_id.replace('/', '--')}" / "blobs"
    needed_bytes = sum(file.size_bytes for file in wanted if not (blobs / (file.sha256 or file.blob_id)).is_file())
    free_bytes = shutil.disk_usage(existing).free
    say(
        f"{repo_id} is not in the local cache: downloading {len(wanted)} files, {size_text(size_bytes)}, "
        f"at revision {commit} to {cache} ({size_text(free_bytes)} free)"
    )
    if size_bytes >= LARGE_DOWNLOAD_BYTES:
        say(
            "this is a large download; it can be interrupted and resumed. `mote-rewrite --remote-plan` shows the plan "
            "without it, and `mote-push --recipe` shares a variant without its weights"
        )
    if needed_bytes > free_bytes:
        raise HubError(
            f"'{repo_id}' needs {size_text(needed_bytes)} at {cache}, but only {size_text(free_bytes)} are free: "
            "set HF_HUB_CACHE to a larger disk"
        )
