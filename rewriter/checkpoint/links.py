"""Which links among a model's files are followed: those that stay in its folder, or lead into the Hub cache that holds it.

A downloaded folder can hold a link to any file of its user (the Hub's token, a key); a variant would take that file's content
along, and a push would publish it.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from rewriter.errors import CheckpointError

SHARD_SUFFIXES = (".safetensors", ".gguf")
COMMIT = re.compile("[0-9a-f]{40}")


def check_links(
    folder: Path, names: Iterable[str | Path], *, base_name: str | None = None, base: Path | None = None
) -> None:
    """Refuse files whose links lead out of the model.

    names: files relative to the folder. For a variant, whose unchanged shards may be links (`--link symlink`), base_name is what
    its record calls the base's folder: a shard may be a link to the shard of the same name in a folder of that name, or to
    a blob of a Hub cache. base: a folder besides whose files may be linked to.

    Raises:
        CheckpointError: naming the link and where it leads.
    """
    roots = [root for place in (folder, base) if place is not None for root in _roots(place)]
    for name in names:
        path = folder / name
        real = Path(os.path.realpath(path))
        if any(root == real or root in real.parents for root in roots):
            continue
        if base_name is not None and path.suffix in SHARD_SUFFIXES and _is_shard_of(real, path.name, base_name):
            continue
        raise CheckpointError(
            f"{path}: is a link to {real}, which lies outside the model's folder, so it is not followed; if the file belongs to"
            " the model, put it there itself"
        )


def _roots(folder: Path) -> list[Path]:
    """A folder, and if it is a snapshot in a Hub cache (models--ORG--NAME/snapshots/COMMIT), the blobs beside it."""
    real = Path(os.path.realpath(folder))
    if real.parent.name != "snapshots" or COMMIT.fullmatch(real.name) is None:
        return [real]
    repo = real.parent.parent
    return [real, repo / "blobs", repo.parent / "blobs"]  # the latter are shared by the cache's repos


def _is_shard_of(real: Path, name: str, base_name: str) -> bool:
    if real.parent.name == "blobs":
        return re.fullmatch("[0-9a-f]{64}", real.name) is not None
    return real.name == name and real.parent.name == base_name
