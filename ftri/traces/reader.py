"""A trace folder: what a model answered to each prompt, and which experts every token selected.

Layout (schema `mote.traces/1`):

    manifest.json               the model, its MoE layers, the sampling, the engine: what must be equal to resume
    index.jsonl                 a line per response: prompt, tokens, text, where its rows lie, a checksum of the index so far
    chunk-00000.safetensors     one tensor `experts` [N, L, K], the rows of many responses one after the other;
                                or `experts_zlib` [bytes], the same compressed, where that saves a quarter or more
    chunk-00001.part            the rows of the chunk being filled, raw
    weights-00000.safetensors   where weights were asked for, one tensor `weights` [N, L, K] beside each chunk: those that the
    weights-00001.part          router gave to the experts of the same place

A response is durable when `TraceWriter.append` (ftri/traces/writer.py) returns: its rows are synced to the `.part` file
first, then its index line. The index is the truth: rows it does not mention are cut off when writing resumes, so that a
process killed at any moment loses only the responses it had not finished.

What a folder holds was written by somebody else, perhaps: both JSON files have a type (ftri/traces/schema.py), no chunk is
unpacked further than the index has tokens for, and rows are checked for what a router cannot have selected.

Letters of shapes: T tokens of a response, N tokens of a chunk, L MoE layers, K selected experts per token.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ftri.traces.rows import REMEDY, Experts, Weights, expert_dtype, fault_of, weights_fault_of
from ftri.traces.schema import (
    INDEX_NAME,
    IndexEntry,
    Manifest,
    TraceError,
    identity_difference,
    load_manifest,
    num_rows_of,
    parse_chunk_header,
    parse_index_line,
    shown,
)
from rewriter.errors import quoted
from rewriter.small_file import lines_of

# Compressed bytes handed over at a time.
PACKED_BLOCK_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20
# A tensor of a chunk, and how its files begin.
FILE_NAMES = {"experts": "chunk", "weights": "weights"}


@dataclass
class TraceRecord:
    """One response with its routing.

    `experts` [T, L, K], uint8 or uint16: the expert ids each token selected, ascending within K, the layers in the
    order of the manifest's `moe_layers`; T = prompt tokens + completion tokens - 1, as the last sampled token is never
    run through the model. `weights` [T, L, K], float16 or float32, are those of the same experts as the router hands them to
    the model's kernels, None where they were not kept. `prompt` is the user's text, `rendered_prompt` what the model was given.
    """

    prompt_id: str
    sample: int
    prompt: str
    rendered_prompt: str
    prompt_token_ids: list[int]
    completion_token_ids: list[int]
    text: str
    finish_reason: str
    factors: dict[str, str] = field(default_factory=dict)
    experts: Experts = field(default_factory=lambda: np.zeros((0, 0, 0), np.uint8))
    weights: Weights | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What identifies a response within a folder."""
        return (self.prompt_id, self.sample)

    @property
    def num_rows(self) -> int:
        """How many tokens were run through the model."""
        return num_rows_of(self.prompt_token_ids, self.completion_token_ids)

    def metadata(self) -> dict[str, Any]:
        """The record without its experts and weights, as the index keeps it."""
        return {
            "prompt_id": self.prompt_id,
            "sample": self.sample,
            "prompt": self.prompt,
            "rendered_prompt": self.rendered_prompt,
            "prompt_token_ids": self.prompt_token_ids,
            "completion_token_ids": self.completion_token_ids,
            "text": self.text,
            "finish_reason": self.finish_reason,
            "factors": self.factors,
        }

    def digest(self) -> str:
        """SHA-256 of the record's content, independent of where it is stored."""
        content = hashlib.sha256(json.dumps(self.metadata(), sort_keys=True, ensure_ascii=True).encode())
        content.update(repr(self.experts.shape).encode())
        content.update(np.ascontiguousarray(self.experts).astype("<u2").tobytes())
        if self.weights is not None:
            content.update(repr(self.weights.dtype).encode())
            content.update(np.ascontiguousarray(self.weights).tobytes())
        return content.hexdigest()


def chunk_path(folder: Path, number: int, tensor: str = "experts") -> Path:
    """Where a finished chunk of `experts`, or of their `weights`, lies."""
    return folder / f"{FILE_NAMES[tensor]}-{number:05d}.safetensors"


def part_path(folder: Path, number: int, tensor: str = "experts") -> Path:
    """Where the chunk being filled lies."""
    return folder / f"{FILE_NAMES[tensor]}-{number:05d}.part"


def read_chunk(
    path: Path,
    num_rows: int,
    row_shape: tuple[int, int],
    dtype: np.dtype[Any],
    is_exact: bool = True,
    name: str = "experts",
) -> npt.NDArray[Any]:
    """The rows [N, L, K] of a finished chunk; a raw one is mapped, not read.

    num_rows: N, what the index has of the chunk; row_shape: (L, K); is_exact: whether the file holds no more than that; name:
    of the tensor, "experts" or "weights".

    Raises:
        TraceError: the file is shorter or longer than its header says, holds other rows, or cannot be unpacked.
    """
    shape = (num_rows, *row_shape)
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 + header_length:
                raise TraceError(
                    f"{path} is truncated: {size_bytes} bytes found, at least {8 + header_length} expected"
                )
            if header_length > MAX_HEADER_BYTES:
                raise TraceError(f"{path}: its header has {header_length} bytes, expected {MAX_HEADER_BYTES} at most")
            tensor, is_packed = parse_chunk_header(file.read(header_length), path, name)
            expected_bytes = 8 + header_length + tensor.size_bytes
            if size_bytes != expected_bytes:
                state = "truncated" if size_bytes < expected_bytes else "too long"
                raise TraceError(f"{path} is {state}: {size_bytes} bytes found, {expected_bytes} expected")
            if is_packed:
                return np.frombuffer(_unpack(file, path, shape, dtype, is_exact), dtype).reshape(shape)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None
    is_enough = tensor.shape[0] == num_rows or (not is_exact and tensor.shape[0] > num_rows)
    if (
        not is_enough
        or tuple(tensor.shape[1:]) != row_shape
        or tensor.dtype != f"{dtype.kind.upper()}{8 * dtype.itemsize}"
    ):
        raise TraceError(
            f"{path} holds rows of shape {tensor.shape} ({tensor.dtype}), expected {list(shape)} ({dtype}) by the index"
        )
    return np.memmap(path, dtype, "r", 8 + header_length, shape) if num_rows else np.zeros(shape, dtype)


def _unpack(
    file: IO[bytes], path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], is_exact: bool
) -> bytearray:
    """The bytes of a compressed chunk, no more of them than `shape` takes: a few megabytes can unpack to gigabytes."""
    expected_bytes = int(np.prod(shape)) * dtype.itemsize
    raw, unpacker = bytearray(), zlib.decompressobj()
    try:
        while packed := unpacker.unconsumed_tail or file.read(PACKED_BLOCK_BYTES):
            raw += unpacker.decompress(packed, expected_bytes + 1 - len(raw))
            if len(raw) > expected_bytes or unpacker.eof:
                break
    except zlib.error as error:
        raise TraceError(f"{path} cannot be decompressed ({error})") from None
    is_over = len(raw) > expected_bytes or not unpacker.eof or bool(unpacker.unused_data or file.read(1))
    if len(raw) < expected_bytes or (is_exact and is_over):
        raise TraceError(
            f"{path} does not unpack to the {expected_bytes} bytes that the {shape[0]} tokens of the index take"
        )
    return raw[:expected_bytes]


@dataclass
class IndexScan:
    """Where a pass over the index is: bytes and lines read, their checksum, and whether lines carry one."""

    end_bytes: int = 0
    num_lines: int = 0
    checksum: int = 0
    is_summed: bool = False


def iterate_index(folder: Path, scan: IndexScan | None = None) -> Iterator[IndexEntry]:
    """The index entries in the order they were written; `scan` is kept up to date.

    A last line without its line end is a response that was being written when the recorder died; it is left out.

    Raises:
        TraceError: a line is no entry, was changed or cut out, or repeats a response, or its rows do not follow the last ones.
    """
    path, scan = folder / INDEX_NAME, scan or IndexScan()
    if not path.exists():
        return
    # A pipe in its place would be waited for.
    if not path.is_file():
        raise TraceError(f"{path} is no regular file, expected the index of a trace folder")
    seen: set[tuple[str, int]] = set()
    chunk, end_row = 0, 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(lines_of(file, path, error=TraceError), start=1):
                if not line.endswith(b"\n"):
                    return
                entry, checksum = parse_index_line(line, scan.checksum, path, number, scan.is_summed)
                if entry.key in seen:
                    raise TraceError(
                        f"{path}, line {number}: repeats sample {entry.sample} of prompt {shown(entry.prompt_id)}"
                    )
                seen.add(entry.key)
                chunk, end_row = (chunk, end_row) if entry.chunk == chunk else (max(entry.chunk, chunk + 1), 0)
                if (entry.chunk, entry.start) != (chunk, end_row):
                    raise TraceError(
                        f"{path}, line {number}: its rows are in chunk {entry.chunk} from row {entry.start}, expected them"
                        f" from row {end_row} of chunk {chunk}, since they are written one after the other"
                    )
                end_row += entry.rows
                scan.end_bytes, scan.num_lines, scan.checksum = scan.end_bytes + len(line), number, checksum
                scan.is_summed = scan.is_summed or entry.line_crc32 is not None
                yield entry
    except OSError as error:
        raise TraceError(f"{path}: cannot be read ({error.strerror})") from None


class TraceReader:
    """Reads a trace folder response by response; at most one chunk is in memory."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder, finished or still being written.

        Raises:
            TraceError: it is no trace folder.
        """
        self.folder = Path(folder)
        self.manifest = load_manifest(self.folder)
        self.facts = Manifest.model_validate(self.manifest)
        self.dtype = expert_dtype(self.facts.num_choices)
        self.weights_dtype = None if self.facts.weights is None else np.dtype(self.facts.weights)

    def __len__(self) -> int:
        """How many responses the folder holds."""
        path = self.folder / INDEX_NAME
        if not path.is_file():
            return 0
        with path.open("rb") as file:
            return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))

    def __iter__(self) -> Iterator[TraceRecord]:
        """The responses in the order they finished, each with its experts [T, L, K].

        Raises:
            TraceError: the index or a chunk is missing, truncated or damaged, or holds what no router selects.
        """
        waiting: list[IndexEntry] = []
        for entry in iterate_index(self.folder):
            if waiting and entry.chunk != waiting[0].chunk:
                yield from self._records(waiting)
                waiting = []
            waiting.append(entry)
        if waiting:
            yield from self._records(waiting)

    def metadata(self) -> Iterator[TraceRecord]:
        """The responses without their experts, which are left empty: text only, no chunk is touched.

        Raises:
            TraceError: the index is damaged.
        """
        for entry in iterate_index(self.folder):
            yield record_from_entry(entry)

    def content_digest(self) -> str:
        """SHA-256 of all responses, whatever the order and the chunks they were written in."""
        digests = sorted(record.digest() for record in self)
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def _records(self, entries: list[IndexEntry]) -> Iterator[TraceRecord]:
        """The responses of one chunk, all of its entries being known: what they add up to is what it must hold."""
        # Before lines had checksums, a failed write could leave rows behind that no line names.
        is_exact = entries[-1].line_crc32 is not None
        place = entries[0].chunk, entries[-1].start + entries[-1].rows, is_exact
        chunk, path = self._chunk(*place, self.dtype)
        weights, weights_path = (None, path) if self.weights_dtype is None else self._chunk(*place, self.weights_dtype)
        for entry in entries:
            record, where = record_from_entry(entry), path
            record.experts = self._rows(chunk, path, entry, entry.crc32)
            fault = fault_of(record.experts, entry.rows, self.facts.row_shape, self.facts.num_choices)
            if fault is None and weights is not None:
                where = weights_path
                record.weights = self._rows(weights, weights_path, entry, entry.weights_crc32)
                fault = weights_fault_of(record.weights, entry.rows, self.facts.row_shape)
            if fault is not None:
                raise TraceError(
                    f"{where}: sample {entry.sample} of prompt {shown(entry.prompt_id)} has {fault}; {REMEDY}"
                )
            yield record

    def _rows(self, chunk: npt.NDArray[Any], path: Path, entry: IndexEntry, checksum: int | None) -> npt.NDArray[Any]:
        """A response's rows of a chunk."""
        rows = chunk[entry.start : entry.start + entry.rows]
        found = zlib.crc32(rows.tobytes())
        if found != checksum:
            raise TraceError(
                f"{path}: the rows of prompt {shown(entry.prompt_id)} have checksum {found}, {checksum} expected"
            )
        return rows

    def _chunk(self, number: int, num_rows: int, is_exact: bool, dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], Path]:
        name = "experts" if dtype.kind == "u" else "weights"
        finished, part = chunk_path(self.folder, number, name), part_path(self.folder, number, name)
        if finished.is_file():
            return read_chunk(finished, num_rows, self.facts.row_shape, dtype, is_exact, name), finished
        if not part.is_file():
            raise TraceError(f"{finished} is missing, though {self.folder / INDEX_NAME} names it")
        shape = (num_rows, *self.facts.row_shape)
        size_bytes = part.stat().st_size
        expected_bytes = int(np.prod(shape)) * dtype.itemsize
        if size_bytes < expected_bytes:
            raise TraceError(f"{part} is truncated: {size_bytes} bytes found, at least {expected_bytes} expected")
        return np.memmap(part, dtype, "r", 0, shape), part


def check_one_model(readers: Sequence[TraceReader]) -> None:
    """See to it that folders can be one analysis or one folder.

    Raises:
        TraceError: they are of different models or chat templates.
    """
    for reader in readers[1:]:
        difference = identity_difference(readers[0].facts, reader.facts)
        if difference is not None:
            key, expected, found = difference
            raise TraceError(
                f"{reader.folder} has {key} {quoted(found)}, expected {quoted(expected)} as in {readers[0].folder}"
            )


class Responses:
    """The responses of one or several folders, each once, however many of the folders hold it."""

    def __init__(self, readers: Sequence[TraceReader]) -> None:
        """Iterate over `readers`; `num_repeated` counts what was passed over in the last pass."""
        self.readers = readers
        self.num_repeated = 0

    def __iter__(self) -> Iterator[TraceRecord]:
        """The responses with their experts, folder by folder.

        Raises:
            TraceError: a folder is damaged, or two hold different responses as the same sample of a prompt.
        """
        self.num_repeated = 0
        known: dict[tuple[str, int], tuple[str, Path]] = {}
        for reader in self.readers:
            for record in reader:
                if len(self.readers) > 1 and not self._is_new(record, reader.folder, known):
                    self.num_repeated += 1
                    continue
                yield record

    def _is_new(self, record: TraceRecord, folder: Path, known: dict[tuple[str, int], tuple[str, Path]]) -> bool:
        digest = record.digest()
        first, where = known.setdefault(record.key, (digest, folder))
        if first != digest:
            raise TraceError(
                f"{folder} and {where} hold different responses as sample {record.sample} of prompt"
                f" {shown(record.prompt_id)}, expected equal or separate ones"
            )
        return where is folder


def record_from_entry(entry: IndexEntry) -> TraceRecord:
    """A record without experts from its index entry."""
    return TraceRecord(
        prompt_id=entry.prompt_id,
        sample=entry.sample,
        prompt=entry.prompt,
        rendered_prompt=entry.rendered_prompt,
        prompt_token_ids=entry.prompt_token_ids,
        completion_token_ids=entry.completion_token_ids,
        text=entry.text,
        finish_reason=entry.finish_reason,
        factors=entry.factors,
    )
