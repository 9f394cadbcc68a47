"""Proves that a variant's folder holds nothing beside its shards but what the base has, and says what it cannot prove."""

import filecmp
import os
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from rewriter.checkpoint.kinds import Model
from rewriter.checkpoint.links import check_links
from rewriter.checkpoint.other_files import CARD_NAME, is_weights
from rewriter.errors import VerificationError

# What mote-eval and mote-push put beside a variant: notes for people, which no runtime reads.
NOTES = ("mote-*.md", "mote-*.json")


def check_other_files(variant: Model, base: Model, base_folder: str | None) -> list[str]:
    """Compare all files that are neither shards nor the config; returns those that are compared with nothing.

    base_folder: what the variant's record calls the base's folder, which shards may be links into.

    Raises:
        VerificationError: a file of the base is missing or differs, a file is not the base's, or a folder cannot be read.
        CheckpointError: a link leads out of the variant and the base.
    """
    wanted, _ = base.other_files()
    found = list(_files(variant.folder))
    check_links(variant.folder, found, base_name=base_folder, base=base.folder)
    for path in wanted:
        if not (variant.folder / path).is_file():
            raise VerificationError(f"{variant.folder / path}: no such file, but the base has it")
        _check_same(variant.folder / path, base.folder / path)
    known = {*map(Path, variant.shards), Path(variant.config_place), *wanted}
    not_compared = []
    for path in found:
        if path in known:
            continue
        if is_weights(path):
            raise VerificationError(
                f"{variant.folder / path}: holds weights that the index does not name, expected none: some runtimes would"
                " load them"
            )
        is_hidden = any(part.startswith(".") or part == "__pycache__" for part in path.parts)
        is_note = len(path.parts) == 1 and any(fnmatchcase(path.name, pattern) for pattern in NOTES)
        if path == Path(CARD_NAME) or is_hidden or is_note:
            not_compared.append(str(path))
        elif (base.folder / path).is_file():
            _check_same(variant.folder / path, base.folder / path)
        else:
            raise VerificationError(
                f"{variant.folder / path}: the base has no such file, expected only the base's: a runtime or a reader would"
                " take it for part of the model"
            )
    return not_compared


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, hidden ones too, relative to it.

    Raises:
        VerificationError: a folder cannot be read, or is a link.
    """

    def refuse(error: OSError) -> None:
        raise VerificationError(f"{error.filename}: cannot be read ({error.strerror}), so what it holds is not known")

    for here, folders, files in os.walk(folder, onerror=refuse):
        for name in sorted(folders):
            if (Path(here) / name).is_symlink():
                raise VerificationError(f"{Path(here) / name}: is a link to a folder, expected none in a variant")
        folders.sort()
        yield from (Path(here).relative_to(folder) / name for name in sorted(files))


def _check_same(path: Path, wanted: Path) -> None:
    if not filecmp.cmp(wanted, path, shallow=False):
        raise VerificationError(f"{path}: differs from the base's, expected the same bytes")
