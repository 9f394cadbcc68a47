"""Rows of a JSONL, JSON, CSV or Parquet file, on disk or in a Hub dataset: the reader behind every `--prompts`."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewriter.errors import HubError, InputError, printable
from rewriter.hub.errors import hub_errors
from rewriter.json_text import JsonError, read_json
from rewriter.small_file import MAX_TABLE_BYTES, read_small

MAX_NAMES_SHOWN = 8
TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
HUB_SPEC = re.compile(
    r"hub:(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[^/:]+))?(?:/(?P<file>[^:]+))?(?::(?P<column>.+))?"
)


class NoSuchFileError(HubError):
    """A dataset lacks the file that is asked for, or it is unclear which is meant; the cache would not know better."""


@dataclass(frozen=True)
class Table:
    """Rows of one file, with what is needed to name that exact file again."""

    name: str
    rows: list[dict[str, Any]]
    sha256: str
    revision: str | None = None
    column: str | None = None


def load_table(spec: str, *, revision: str | None = None) -> Table:
    """The rows of a local file or of a Hub dataset `hub:ORG/NAME[@REVISION][/FILE][:COLUMN]`.

    `Table.column` is that COLUMN. Of a dataset only the one file that is read is downloaded.

    Raises:
        InputError: the file is missing, malformed, empty or of an unknown kind.
        HubError: the dataset, its revision or a data file in it cannot be had.
    """
    if not spec.startswith("hub:"):
        return _read_table(Path(spec), Path(spec).name)
    match = HUB_SPEC.fullmatch(spec)
    if match is None:
        raise InputError(f"{spec!r} is not a dataset id: expected hub:ORG/NAME[@REVISION][/FILE][:COLUMN]")
    wanted = revision or match["revision"]
    path, commit, file_name = download_dataset_file(match["repo"], wanted, match["file"])
    table = _read_table(path, f"{match['repo']}/{file_name}")
    return Table(table.name, table.rows, table.sha256, commit, match["column"])


def download_dataset_file(repo: str, revision: str | None, file_name: str | None) -> tuple[Path, str, str]:
    """Download one data file of a Hub dataset: (local path, commit, file name in the repo).

    Raises:
        HubError: the dataset, its revision or a data file in it cannot be had, nor a copy of it in the local cache.
    """
    from huggingface_hub import HfApi, hf_hub_download

    asked = f"dataset {repo}" + (f" at revision {revision}" if revision else "")
    try:
        with hub_errors(repo, transfer=True):
            info = HfApi().dataset_info(repo, revision=revision)
            commit = info.sha or revision or "main"
            chosen = choose_data_file(repo, [sibling.rfilename for sibling in info.siblings or []], file_name)
            return Path(hf_hub_download(repo, chosen, repo_type="dataset", revision=commit)), commit, chosen
    except NoSuchFileError:
        raise
    except HubError as error:
        cached = _cached_dataset_file(repo, revision, file_name)
        if cached is not None:
            return cached
        raise HubError(f"cannot read {asked}: {error}") from error


def choose_data_file(repo: str, file_names: list[str], wanted: str | None) -> str:
    """The data file to read of a dataset: the one asked for, else the only one.

    Raises:
        HubError: there is none, or it is unclear which.
    """
    tables = [name for name in file_names if name.endswith(TABLE_SUFFIXES) and Path(name).name != "dataset_infos.json"]
    if wanted is not None:
        if wanted not in file_names:
            raise NoSuchFileError(
                f"dataset {repo} has no file {wanted!r}; it has {', '.join(tables) or 'no data file'}"
            )
        return wanted
    if not tables:
        raise NoSuchFileError(f"dataset {repo} has no .jsonl, .json, .csv or .parquet file")
    if len(tables) > 1:
        raise NoSuchFileError(
            f"dataset {repo} has {len(tables)} data files; name one as hub:{repo}/FILE: {', '.join(tables)}"
        )
    return tables[0]


def _cached_dataset_file(repo: str, revision: str | None, file_name: str | None) -> tuple[Path, str, str] | None:
    """The same file from the local Hub cache, for work without a network; None when it is not there or not clear."""
    from huggingface_hub import snapshot_download

    try:
        with hub_errors(repo, transfer=True):
            folder = Path(snapshot_download(repo, repo_type="dataset", revision=revision, local_files_only=True))
    except HubError:
        return None
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    tables = [name for name in names if name.endswith(TABLE_SUFFIXES)]
    if file_name in names:
        return folder / str(file_name), folder.name, str(file_name)
    return (folder / tables[0], folder.name, tables[0]) if file_name is None and len(tables) == 1 else None


def _read_table(path: Path, name: str) -> Table:
    if path.suffix not in TABLE_SUFFIXES:
        raise InputError(f"{name}: expected a {', '.join(TABLE_SUFFIXES)} file, found {path.suffix or 'no suffix'!r}")
    # A pipe would be waited for, and a device may never end.
    if path.exists() and not path.is_file():
        raise InputError(f"{name}: is no regular file, expected a {path.suffix} file")
    try:
        content = read_small(path, MAX_TABLE_BYTES)
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    rows = list(_parse(path, name, content))
    if not rows:
        raise InputError(f"{name}: has no rows")
    return Table(name, rows, hashlib.sha256(content).hexdigest())


def _parse(path: Path, name: str, content: bytes) -> Iterator[dict[str, Any]]:
    if path.suffix == ".parquet":
        yield from _parse_parquet(name, content)
        return
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{name}: is not UTF-8 text (byte {error.start})") from error
    if path.suffix == ".csv":
        yield from _parse_csv(name, text)
    else:
        yield from _parse_json(name, text, lines=path.suffix == ".jsonl" or not text.lstrip().startswith("["))


def _parse_csv(name: str, text: str) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if None in row:
                raise InputError(
                    f"{name}: line {reader.line_num} has more cells than the header's {len(reader.fieldnames or [])}"
                )
            yield dict(row)
    except csv.Error as error:
        raise InputError(f"{name}: line {reader.line_num} is not CSV ({error})") from error


def _parse_json(name: str, text: str, *, lines: bool) -> Iterator[dict[str, Any]]:
    if lines:
        # Not splitlines(): it also breaks at U+2028 and U+0085, which JSON strings may hold.
        for number, line in enumerate(text.split("\n"), start=1):
            if line.strip():
                yield _json_object(name, number, _load_json(name, line, number))
    else:
        for number, value in enumerate(_load_json(name, text), start=1):
            yield _json_object(name, number, value)


def _load_json(name: str, text: str, line: int | None = None) -> Any:
    try:
        return read_json(text, finite=False)
    except JsonError as error:
        raise InputError(f"{name}: {f'line {line}' if line else 'the file'} is not JSON ({error})") from None


def _json_object(name: str, number: int, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name}: entry {number} is a JSON {type(value).__name__}, expected an object")
    return value


def _parse_parquet(name: str, content: bytes) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(pyarrow.BufferReader(content)).to_pylist()
    # Damage in a page or a type comes as an OSError, NotImplementedError or KeyError, which Arrow's own errors derive from.
    except (pyarrow.ArrowException, ValueError, OSError, NotImplementedError, KeyError, MemoryError) as error:
        raise InputError(f"{name}: is not a Parquet file ({printable(_first_line(error)[:160])})") from None


def column_names(row: Mapping[str, Any]) -> str:
    """A table's columns within a sentence."""
    names = [printable(str(name)[:40]) for name in itertools.islice(row, MAX_NAMES_SHOWN)]
    return ", ".join(names) + (", ..." if len(row) > MAX_NAMES_SHOWN else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
