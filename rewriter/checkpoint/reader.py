"""A model folder read lazily: config, index, shard headers, and where each tensor's bytes lie.

Only what is asked for is read, so that a 689 GB checkpoint costs its config, its index and a few headers. The bytes come
from a ByteSource, so that a folder on disk and a repository on the Hub are read alike.
"""

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from math import prod
from operator import mul
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar, Literal

from rewriter.checkpoint.edited_json import MARK, config_text, mark_header, unmarked
from rewriter.checkpoint.other_files import CARD_NAME, companion_files
from rewriter.checkpoint.source import ByteSource, LocalFolder, TensorEntry
from rewriter.errors import CheckpointError, UnknownFamilyError, quoted
from rewriter.families.family import RouterLayout
from rewriter.families.lookup import router_layout, rows_named_alike
from rewriter.json_text import JsonError, read_json
from rewriter.small_file import MAX_CARD_BYTES, MAX_TEXT_BYTES, check_size, read_small

CONFIG_NAME = "config.json"
INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
SHARD_SUFFIX = ".safetensors"
FETCH_AGAIN = "fetch the file anew, as hf download does"
LENGTH_BYTES = 8  # the header's length, little-endian, before the header
NUM_HEADERS_KEPT = 16  # work goes shard by shard; keeping all headers of R1 would take a hundred megabytes
LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how the text starts that git-lfs keeps in a file's place
MAX_NUMBER = 1 << 63  # what the runtimes count sizes with
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format

# Bits per element of the format's data types (safetensors/src/tensor.rs).
DTYPE_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E5M2FNUZ": 8, "F8_E4M3FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class ShardHeader:
    """The parsed header of one shard."""

    shard: str
    length: int  # bytes of JSON, padding included
    document: Mapping[str, Any]  # the JSON object as it stands
    tensors: Mapping[str, TensorEntry]
    file_size: int

    @property
    def body_offset(self) -> int:
        """First byte behind the header."""
        return LENGTH_BYTES + self.length


@dataclass
class Checkpoint:
    """A checkpoint and what has been read of it so far."""

    format: ClassVar[Literal["safetensors"]] = "safetensors"
    config_place: ClassVar[str] = CONFIG_NAME
    settings_need_stamp: ClassVar[bool] = False
    bias_dtypes: ClassVar[tuple[str, ...]] = ("F32", "F16", "BF16", "F64")

    source: ByteSource
    _headers: dict[str, ShardHeader] = field(default_factory=dict, repr=False)
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)

    @classmethod
    def open(cls, folder: str | Path) -> "Checkpoint":
        """A checkpoint in a local folder.

        Raises: CheckpointError when the folder does not exist.
        """
        path = Path(folder)
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such folder, expected a model folder with {CONFIG_NAME}")
        return cls(LocalFolder(path))

    @property
    def folder(self) -> Path:
        """The folder on disk; only a checkpoint there is written from and verified."""
        assert isinstance(self.source, LocalFolder)
        return self.source.path

    @property
    def title(self) -> str:
        """The folder's own name."""
        return os.path.basename(os.path.abspath(self.source.name))

    @cached_property
    def config_text(self) -> str:
        """config.json as it stands."""
        return self._text(CONFIG_NAME)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, key order kept."""
        return self._object(CONFIG_NAME, self.config_text)

    @cached_property
    def layout(self) -> RouterLayout:
        """The routers as the config describes them.

        Raises: UnknownFamilyError, which names the rows whose tensors are called as here, where there are such.
        """
        try:
            return router_layout(self.config)
        except UnknownFamilyError as error:
            alike = rows_named_alike(self.weight_map)
            if not alike:
                raise
            raise UnknownFamilyError(f"{error} (tensors are named here as in row {' or '.join(alike[:3])})") from None

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """Tensor name to shard, from the index, or from the one shard's header.

        Raises: CheckpointError for an index that names files it must not or that are not there.
        """
        if self.source.size_bytes(INDEX_NAME) is None:
            if self.source.size_bytes(SINGLE_NAME) is None:
                raise CheckpointError(
                    f"{self.source.name}: neither {INDEX_NAME} nor {SINGLE_NAME} is there, expected one of them; transformers'"
                    " save_pretrained writes safetensors of other weights, and a .gguf file is given itself"
                )
            return dict.fromkeys(self.header(SINGLE_NAME).tensors, SINGLE_NAME)
        weight_map = self._object(INDEX_NAME, self._text(INDEX_NAME)).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{self._path(INDEX_NAME)}: weight_map is missing or empty")
        shards: dict[str, str] = {}
        for tensor, shard in weight_map.items():
            if not isinstance(shard, str) or shard not in shards:
                self._check_shard_name(shard)
                shards[shard] = shard
            weight_map[tensor] = shards[shard]  # one string a shard instead of one a tensor: megabytes less for R1
        return weight_map

    @cached_property
    def shards(self) -> tuple[str, ...]:
        """The shards' file names, sorted."""
        return tuple(sorted(set(self.weight_map.values())))

    @cached_property
    def _sorted_names(self) -> list[str]:
        return sorted(self.weight_map)

    def names_from(self, prefix: str) -> Iterator[str]:
        """The tensors whose names begin with a prefix, sorted."""
        names = self._sorted_names
        for number in range(bisect_left(names, prefix), len(names)):
            if not names[number].startswith(prefix):
                return
            yield names[number]

    def shard_size(self, shard: str) -> int:
        """Size of a shard in bytes.

        Raises: CheckpointError when it is not there.
        """
        size = self.source.size_bytes(shard)
        if size is None:
            raise CheckpointError(f"{self._path(shard)}: no such file, but {INDEX_NAME} names it; {FETCH_AGAIN}")
        return size

    def header(self, shard: str) -> ShardHeader:
        """The header of a shard, checked against the format and kept for a while.

        Raises: CheckpointError for a truncated or malformed shard.
        """
        with self._lock:  # two shards are written at a time
            if shard not in self._headers:
                if len(self._headers) >= NUM_HEADERS_KEPT:
                    del self._headers[next(iter(self._headers))]
                self._headers[shard] = self._read_header(shard)
            return self._headers[shard]

    def check_whole(self, shard: str) -> None:
        """Check that a shard is as long as its header says, at a fraction of the cost of `header`.

        Raises:
            CheckpointError: it is truncated, or malformed in another way.
        """
        size = self.shard_size(shard)
        length = int.from_bytes(self.source.read(shard, 0, LENGTH_BYTES), "little")
        try:
            document = read_json(self.source.read(shard, LENGTH_BYTES, min(length, size, MAX_HEADER_BYTES)))
            ends = [value["data_offsets"][1] for name, value in document.items() if name != "__metadata__"]
            is_whole = LENGTH_BYTES + length + max(ends, default=0) == size
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            is_whole = False
        if not is_whole:
            self.header(shard)  # says what is wrong

    def find(self, names: tuple[str, ...]) -> TensorEntry | None:
        """The first of several possible tensor names that the checkpoint has."""
        for name in names:
            shard = self.weight_map.get(name)
            if shard is not None:
                entry = self.header(shard).tensors.get(name)
                if entry is None:
                    raise CheckpointError(
                        f"{self._path(shard)}: has no tensor {name}, but {INDEX_NAME} says it is there"
                    )
                return entry
        return None

    def read(self, entry: TensorEntry) -> bytes:
        """The bytes of a tensor.

        Raises: CheckpointError when the file ends within it.
        """
        parts, position, end = [], entry.offset, entry.offset + entry.size_bytes
        while position < end:  # one read may return less than asked for
            part = self.source.read(entry.shard, position, end - position)
            if not part:
                raise CheckpointError(
                    f"{self._path(entry.shard)}: ends at byte {position} within {entry.name}, expected {end}"
                )
            parts.append(part)
            position += len(part)
        return b"".join(parts)

    def settings_shard(self, stamped: bool) -> str | None:
        """None: the record and the router's settings stand in config.json."""
        return None

    def marked_head(self, shard: str, fingerprint: str, config: Mapping[str, Any]) -> bytes:
        """The bytes before an edited shard's tensors: the header grown by whole blocks, with the edit's fingerprint."""
        header = self.header(shard)
        text = mark_header(header.document, header.length, fingerprint)
        return len(text).to_bytes(LENGTH_BYTES, "little") + text

    def bare_head(self, shard: str) -> Any:
        """What a shard's header says of its tensors, the edit's mark left out."""
        return unmarked(self.header(shard).document)

    def mark(self, shard: str) -> str | None:
        """The fingerprint in a shard's header."""
        return (self.header(shard).document.get("__metadata__") or {}).get(MARK)

    def side_file(self, config: Mapping[str, Any], stamped: bool) -> tuple[str, str] | None:
        """config.json."""
        return CONFIG_NAME, config_text(dict(config))

    def other_files(self) -> tuple[list[Path], list[Path]]:
        """The other files that come along (the index among them), and those left out, relative to the folder and sorted."""
        taken, left = companion_files(self.folder, {*self.shards, INDEX_NAME, CONFIG_NAME, CARD_NAME})
        return taken + [Path(INDEX_NAME)] * (self.source.size_bytes(INDEX_NAME) is not None), left

    def card(self) -> str | None:
        """README.md."""
        path = self.folder / CARD_NAME
        return (
            read_small(path, MAX_CARD_BYTES, CheckpointError).decode("utf-8", errors="replace")
            if path.exists()
            else None
        )

    def _path(self, file_name: str) -> str:
        return f"{self.source.name}/{file_name}"

    def _text(self, file_name: str) -> str:
        size = self.source.size_bytes(file_name)
        if size is None:
            what = ", expected a model folder with it" if file_name == CONFIG_NAME else ""
            raise CheckpointError(f"{self._path(file_name)}: no such file{what}")
        check_size(self._path(file_name), size, MAX_TEXT_BYTES, CheckpointError)
        data = self.source.read(file_name, 0, size)
        _refuse_pointer(self._path(file_name), data)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self._path(file_name)}: not UTF-8 text (byte {error.start})") from None

    def _object(self, file_name: str, text: str) -> dict[str, Any]:
        try:
            document = read_json(text, finite=file_name != CONFIG_NAME)
        except JsonError as error:
            raise CheckpointError(f"{self._path(file_name)}: not JSON ({error})") from None
        if not isinstance(document, dict):
            raise CheckpointError(
                f"{self._path(file_name)}: holds a JSON {type(document).__name__}, expected an object"
            )
        return document

    def _check_shard_name(self, shard: object) -> None:
        if not is_shard_name(shard):
            raise CheckpointError(
                f"{self._path(INDEX_NAME)}: names the shard {shard!r}, expected the name of a {SHARD_SUFFIX} file inside the"
                " folder"
            )
        self.shard_size(str(shard))

    def _read_header(self, shard: str) -> ShardHeader:
        size, path = self.shard_size(shard), self._path(shard)
        if size < LENGTH_BYTES:
            raise CheckpointError(f"{path}: {size} bytes long, too short for a safetensors header; {FETCH_AGAIN}")
        start = self.source.read(shard, 0, len(LFS_POINTER))
        _refuse_pointer(path, start)
        length = int.from_bytes(start[:LENGTH_BYTES], "little")
        if length > min(MAX_HEADER_BYTES, size - LENGTH_BYTES):
            raise CheckpointError(
                f"{path}: says its header has {length} bytes, but the file has {size} and the format allows"
                f" {MAX_HEADER_BYTES}: truncated, or not a safetensors file; {FETCH_AGAIN}"
            )
        try:
            text = self.source.read(shard, LENGTH_BYTES, length)
            document = read_json(text, parse_int=_whole_number, object_pairs_hook=_unique_keys)
        except JsonError as error:
            raise CheckpointError(f"{path}: the header is not a safetensors header ({error})") from None
        if not isinstance(document, dict) or not text.startswith(b"{"):
            raise CheckpointError(f"{path}: the header is a JSON {type(document).__name__}, expected an object")
        metadata = document.get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise CheckpointError(
                f"{path}: the header's __metadata__ is {quoted(metadata)}, expected an object of strings"
            )
        tensors = {
            name: _entry(path, shard, name, value, LENGTH_BYTES + length)
            for name, value in document.items()
            if name != "__metadata__"
        }
        _check_contiguous(path, tensors, LENGTH_BYTES + length, size)
        return ShardHeader(shard=shard, length=length, document=document, tensors=tensors, file_size=size)


def _refuse_pointer(path: str, data: bytes) -> None:
    """A repository cloned without git-lfs holds small text files in place of the large ones."""
    if data.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path}: is a Git LFS pointer, a text that stands for the file, expected the file itself; run git lfs pull"
        )


def _whole_number(literal: str) -> int:
    """-0 is a whole number to Python, and none to the library that the runtimes read headers with."""
    if literal == "-0":
        raise JsonError("the number -0 is not a count")
    return int(literal)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """json.loads keeps the last of duplicate keys; in a header two would mean two places for one tensor."""
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        duplicate = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonError(f"key {quoted(duplicate)} stands twice")
    return document


def is_shard_name(name: object) -> bool:
    """Whether an index may name this: a plain .safetensors file in the folder. A path could reach outside it, and another
    name could be that of a file which a variant writes anew."""
    return isinstance(name, str) and name.endswith(SHARD_SUFFIX) and not set(name) & set("/\\\0")


def _entry(path: str, shard: str, name: str, value: Any, body_offset: int) -> TensorEntry:
    """One tensor's line of a header, checked."""
    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        if not all(type(number) is int and 0 <= number < MAX_NUMBER for number in (*shape, begin, end)):
            raise ValueError("expected whole numbers")
        if any(size >= MAX_NUMBER for size in accumulate(shape, mul)):  # also where a later one is zero
            raise ValueError("expected a shape that can be counted")
        bits = DTYPE_BITS[dtype] * prod(shape)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{path}: the header's line for {name} is {quoted(value)}, expected dtype, shape and data_offsets"
        ) from None
    if bits % 8 or end - begin != bits // 8:
        raise CheckpointError(
            f"{path}: {name} is {dtype} {list(shape)}, which needs {bits / 8:g} bytes, but its data_offsets are"
            f" [{begin}, {end}]"
        )
    return TensorEntry(name, shard, dtype, shape, body_offset + begin, end - begin)


def _check_contiguous(path: str, tensors: Mapping[str, TensorEntry], body_offset: int, file_size: int) -> None:
    """The format allows neither holes nor overlaps nor trailing bytes."""
    position = body_offset
    for entry in sorted(tensors.values(), key=lambda entry: (entry.offset, entry.size_bytes)):
        if entry.offset != position:
            fault = "overlaps the tensor before it" if entry.offset < position else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: {entry.name} starts at byte {entry.offset}, expected {position}: it {fault}"
            )
        position += entry.size_bytes
    if position != file_size:
        fault = "the file is truncated" if file_size < position else "bytes follow the last tensor"
        raise CheckpointError(
            f"{path}: {file_size} bytes long, expected {position} by its header: {fault}; {FETCH_AGAIN}"
        )
