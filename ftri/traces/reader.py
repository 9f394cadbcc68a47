"""A trace folder: what a model answered to each prompt, and which experts every token selected.

Layout (schema `mote.traces/1`):

    manifest.json               the model, its MoE layers, the sampling, the engine: what must be equal to resume
    index.jsonl                 a line per response: prompt, tokens, text, and where its rows lie
    chunk-00000.safetensors     one tensor `experts` [N, L, K], the rows of many responses one after the other;
                                or `experts_zlib` [bytes], the same compressed, where that saves a quarter or more
    chunk-00001.part            the rows of the chunk being filled, raw

A response is durable when `TraceWriter.append` (ftri/traces/writer.py) returns: its rows are synced to the `.part` file
first, then its index line. The index is the truth: rows it does not mention are cut off when writing resumes, so that a
process killed at any moment loses only the responses it had not finished.

Letters of shapes: T tokens of a response, N tokens of a chunk, L MoE layers, K selected experts per token.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.errors import InputError

SCHEMA = "mote.traces/1"
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.jsonl"
REQUIRED_KEYS = ("schema", "model", "config_sha256", "moe_layers", "num_experts", "top_k")
PLACE_KEYS = frozenset({"prompt_id", "sample", "chunk", "start", "rows", "crc32"})

Experts = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class TraceError(InputError):
    """A trace folder is damaged, in use, or does not fit what is asked of it."""


@dataclass
class TraceRecord:
    """One response with its routing.

    `experts` [T, L, K], uint8 or uint16: the expert ids each token selected, ascending within K, the layers in the
    order of the manifest's `moe_layers`; T = prompt tokens + completion tokens - 1, as the last sampled token is never
    run through the model. `prompt` is the user's text, `rendered_prompt` what the model was given.
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

    @property
    def key(self) -> tuple[str, int]:
        """What identifies a response within a folder."""
        return (self.prompt_id, self.sample)

    @property
    def num_rows(self) -> int:
        """How many tokens were run through the model."""
        return len(self.prompt_token_ids) + max(len(self.completion_token_ids), 1) - 1

    def metadata(self) -> dict[str, Any]:
        """The record without its experts, as the index keeps it."""
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
        return content.hexdigest()


def expert_dtype(num_experts: int) -> np.dtype[Any]:
    """The narrowest dtype that holds every expert id: uint8 up to 256 experts, else uint16 (little-endian)."""
    return np.dtype(np.uint8) if num_experts <= 256 else np.dtype("<u2")


def chunk_path(folder: Path, number: int) -> Path:
    """Where a finished chunk lies."""
    return folder / f"chunk-{number:05d}.safetensors"


def part_path(folder: Path, number: int) -> Path:
    """Where the chunk being filled lies."""
    return folder / f"chunk-{number:05d}.part"


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read and check a trace folder's manifest.

    Raises:
        TraceError: the folder is none, or its manifest is malformed or of another schema.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise TraceError(f"{folder} is not a trace folder: it has no {MANIFEST_NAME} (mote-record writes one)")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TraceError(f"{path} is not JSON ({error}), expected the manifest of a trace folder") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else type(manifest).__name__
        raise TraceError(f"{path} has schema {found!r}, expected {SCHEMA!r}")
    missing = [key for key in REQUIRED_KEYS if key not in manifest]
    if missing:
        raise TraceError(f"{path} lacks {', '.join(missing)}, expected every one of {', '.join(REQUIRED_KEYS)}")
    return manifest


def read_chunk(path: Path) -> Experts:
    """The rows [N, L, K] of a finished chunk; a raw one is mapped, not read.

    Raises:
        TraceError: the file is shorter or longer than its header says, or cannot be decompressed.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 + header_length:
            raise TraceError(f"{path} is truncated: {size_bytes} bytes found, at least {8 + header_length} expected")
        try:
            header = json.loads(file.read(header_length))
        except ValueError as error:
            raise TraceError(f"{path} has no readable safetensors header ({error})") from error
    metadata = header.pop("__metadata__", {})
    name = "experts_zlib" if metadata.get("encoding") == "zlib" else "experts"
    if name not in header:
        raise TraceError(f"{path} holds {', '.join(header) or 'no tensor'}, expected {name}")
    begin, end = header[name]["data_offsets"]
    expected_bytes = 8 + header_length + end
    if size_bytes != expected_bytes:
        state = "truncated" if size_bytes < expected_bytes else "too long"
        raise TraceError(f"{path} is {state}: {size_bytes} bytes found, {expected_bytes} expected")
    if name == "experts":
        dtype = np.dtype("<u2") if header[name]["dtype"] == "U16" else np.dtype(np.uint8)
        shape = tuple(header[name]["shape"])
        if begin == end:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", 8 + header_length + begin, shape)
    with path.open("rb") as file:
        file.seek(8 + header_length + begin)
        try:
            raw = zlib.decompress(file.read(end - begin))
            return np.frombuffer(raw, np.dtype(metadata["dtype"])).reshape(json.loads(metadata["shape"]))
        except (zlib.error, ValueError, KeyError) as error:
            raise TraceError(f"{path} cannot be decompressed ({error})") from error


def parse_index_line(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One response's index entry.

    Raises:
        TraceError: the line is not such an entry.
    """
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise TraceError(f"{path}, line {number}: not a trace entry ({error})") from error
    missing = PLACE_KEYS - entry.keys() if isinstance(entry, dict) else PLACE_KEYS
    if missing:
        raise TraceError(f"{path}, line {number}: not a trace entry (it lacks {', '.join(sorted(missing))})")
    return entry


def iterate_index(folder: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The index entries in the order they were written, each with the byte offset behind its line.

    A last line without its line end is a response that was being written when the recorder died; it is left out.
    """
    path = folder / INDEX_NAME
    if not path.is_file():
        return
    offset_bytes = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            offset_bytes += len(line)
            yield parse_index_line(line, path, number), offset_bytes


class TraceReader:
    """Reads a trace folder response by response; at most one chunk is in memory."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder, finished or still being written.

        Raises:
            TraceError: it is no trace folder.
        """
        self.folder = Path(folder)
        self.manifest = load_manifest(self.folder)
        self.row_shape = (len(self.manifest["moe_layers"]), int(self.manifest["top_k"]))
        self.dtype = expert_dtype(int(self.manifest["num_experts"]))
        self._open_chunk: tuple[Path, Experts] | None = None

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
            TraceError: a chunk is missing, truncated or damaged.
        """
        for entry, _ in iterate_index(self.folder):
            record = record_from_entry(entry)
            record.experts = self._rows(entry)
            yield record

    def metadata(self) -> Iterator[TraceRecord]:
        """The responses without their experts, which are left empty: text only, no chunk is touched."""
        for entry, _ in iterate_index(self.folder):
            yield record_from_entry(entry)

    def content_digest(self) -> str:
        """SHA-256 of all responses, whatever the order and the chunks they were written in."""
        digests = sorted(record.digest() for record in self)
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def _rows(self, entry: Mapping[str, Any]) -> Experts:
        start, count = int(entry["start"]), int(entry["rows"])
        chunk, path = self._chunk(int(entry["chunk"]))
        rows = chunk[start : start + count]
        if rows.shape != (count, *self.row_shape) or rows.dtype != self.dtype:
            expected = (start + count, *self.row_shape)
            raise TraceError(
                f"{path} holds rows of shape {chunk.shape} ({chunk.dtype}), at least {expected} ({self.dtype}) expected"
            )
        found = zlib.crc32(rows.tobytes())
        if found != entry["crc32"]:
            raise TraceError(
                f"{path}: the rows of prompt {entry['prompt_id']!r} have checksum {found}, {entry['crc32']} expected"
            )
        return rows

    def _chunk(self, number: int) -> tuple[Experts, Path]:
        finished, part = chunk_path(self.folder, number), part_path(self.folder, number)
        if self._open_chunk is not None and self._open_chunk[0] == finished:
            return self._open_chunk[1], finished
        if finished.is_file():
            self._open_chunk = (finished, read_chunk(finished))
            return self._open_chunk[1], finished
        if part.is_file():
            row_size_bytes = int(np.prod(self.row_shape)) * self.dtype.itemsize
            num_rows = part.stat().st_size // row_size_bytes
            if not num_rows:
                return np.zeros((0, *self.row_shape), self.dtype), part
            # Not kept open: it grows while a recorder runs.
            return np.memmap(part, self.dtype, "r", 0, (num_rows, *self.row_shape)), part
        raise TraceError(f"{finished} is missing, though {self.folder / INDEX_NAME} names it")


def record_from_entry(entry: Mapping[str, Any]) -> TraceRecord:
    """A record without experts from its index entry."""
    return TraceRecord(
        prompt_id=entry["prompt_id"],
        sample=int(entry["sample"]),
        prompt=entry["prompt"],
        rendered_prompt=entry["rendered_prompt"],
        prompt_token_ids=entry["prompt_token_ids"],
        completion_token_ids=entry["completion_token_ids"],
        text=entry["text"],
        finish_reason=entry["finish_reason"],
        factors=entry.get("factors", {}),
    )
