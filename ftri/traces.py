"""A trace folder: what a model answered to each prompt, and which experts every token selected.

Layout (schema `mote.traces/1`):

    manifest.json               the model, its MoE layers, the sampling, the engine: what must be equal to resume
    index.jsonl                 a line per response: prompt, tokens, text, and where its rows lie
    chunk-00000.safetensors     one tensor `experts` [N, L, K], the rows of many responses one after the other;
                                or `experts_zlib` [bytes], the same compressed, where that saves a quarter or more
    chunk-00001.part            the rows of the chunk being filled, raw

A response is durable when `TraceWriter.append` returns: its rows are synced to the `.part` file first, then its index
line. The index is the truth: rows it does not mention are cut off when writing resumes, so that a process killed at any
moment loses only the responses it had not finished.

Letters of shapes: T tokens of a response, N tokens of a chunk, L MoE layers, K selected experts per token.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from rewriter.errors import InputError

SCHEMA = "mote.traces/1"
MANIFEST_NAME = "manifest.json"
INDEX_NAME = "index.jsonl"
LOCK_NAME = ".lock"
REQUIRED_KEYS = ("schema", "model", "config_sha256", "moe_layers", "num_experts", "top_k")
PLACE_KEYS = frozenset({"prompt_id", "sample", "chunk", "start", "rows", "crc32"})
# Facts about the recording machine, which may change between a run and the one that resumes it.
UNCOMPARED_KEYS = frozenset({"versions", "capture"})
CHUNK_SIZE_BYTES = 32 * 1024 * 1024
# Below this gain the raw tensor is kept: any safetensors reader can map it and no time goes into decompression.
MAX_COMPRESSED_SHARE = 0.75
ZLIB_LEVEL = 1

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

    Raises TraceError when the folder is none, or its manifest is malformed or of another schema.
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


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level of dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def manifest_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What keeps a run from continuing a folder, as "name is X there, Y now" phrases."""
    there = flatten({key: value for key, value in found.items() if key not in UNCOMPARED_KEYS})
    now = flatten({key: value for key, value in wanted.items() if key not in UNCOMPARED_KEYS})
    # Compared as JSON, since that is what became of tuples and integer keys on disk.
    return [
        f"{name} is {json.dumps(there.get(name))} there, {json.dumps(now.get(name))} now"
        for name in sorted(there.keys() | now.keys())
        if json.dumps(there.get(name)) != json.dumps(now.get(name))
    ]


def encode_chunk(rows: Experts, compress: bool = True) -> bytes:
    """A chunk's safetensors file: `rows` [N, L, K] as they are, or compressed when that pays."""
    from safetensors.numpy import save

    if compress and rows.size:
        packed = zlib.compress(rows.tobytes(), ZLIB_LEVEL)
        if len(packed) <= MAX_COMPRESSED_SHARE * rows.nbytes:
            shape = {"encoding": "zlib", "shape": json.dumps(list(rows.shape)), "dtype": rows.dtype.str}
            return save({"experts_zlib": np.frombuffer(packed, np.uint8)}, metadata=shape)
    return save({"experts": rows}, metadata={"encoding": "raw"})


def read_chunk(path: Path) -> Experts:
    """The rows [N, L, K] of a finished chunk; a raw one is mapped, not read.

    Raises TraceError when the file is shorter or longer than its header says, or cannot be decompressed.
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

    Raises TraceError when the line is not such an entry.
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

        Raises TraceError when it is no trace folder.
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

        Raises TraceError when a chunk is missing, truncated or damaged.
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


class TraceWriter:
    """Appends responses to a trace folder, creating it or continuing one of the same manifest."""

    def __init__(
        self,
        folder: str | Path,
        manifest: Mapping[str, Any],
        chunk_size_bytes: int = CHUNK_SIZE_BYTES,
        compress: bool = True,
    ) -> None:
        """Create or resume `folder`; `manifest` needs the keys of REQUIRED_KEYS but for the schema.

        Raises TraceError when another process writes there, or when the folder was recorded with other settings.
        """
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = {"schema": SCHEMA, **manifest}
        missing = [key for key in REQUIRED_KEYS if key not in self.manifest]
        assert not missing, f"a manifest needs {missing}"
        self.row_shape = (len(self.manifest["moe_layers"]), int(self.manifest["top_k"]))
        self.dtype = expert_dtype(int(self.manifest["num_experts"]))
        self.row_size_bytes = int(np.prod(self.row_shape)) * self.dtype.itemsize
        self.chunk_size_bytes, self.compress = chunk_size_bytes, compress
        self.completed: set[tuple[str, int]] = set()
        self.raw_ids_bytes = 0  # of all rows in the folder, before any compression
        self._chunk_number, self._num_rows = 0, 0
        if self.folder.exists() and not self.folder.is_dir():
            raise TraceError(f"{self.folder} is a file, expected a folder to write traces to")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = lock_folder(self.folder)
        try:
            self._open_or_create()
        except BaseException:
            self._lock.close()
            raise

    def _open_or_create(self) -> None:
        if (self.folder / MANIFEST_NAME).exists():
            found = load_manifest(self.folder)
            differences = manifest_differences(found, self.manifest)
            if differences:
                raise TraceError(f"{self.folder} was recorded with other settings: {'; '.join(differences)}")
            self.manifest = found
        elif any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise TraceError(f"{self.folder} holds other files and no {MANIFEST_NAME}, expected an empty or new folder")
        else:
            write_synced(self.folder / MANIFEST_NAME, (json.dumps(self.manifest, indent=2) + "\n").encode())
        end_bytes = 0
        for entry, offset_bytes in iterate_index(self.folder):
            self.completed.add((entry["prompt_id"], int(entry["sample"])))
            self._chunk_number, self._num_rows = int(entry["chunk"]), int(entry["start"]) + int(entry["rows"])
            self.raw_ids_bytes += int(entry["rows"]) * self.row_size_bytes
            end_bytes = offset_bytes
        self._index = (self.folder / INDEX_NAME).open("ab")
        self._index.truncate(end_bytes)
        if chunk_path(self.folder, self._chunk_number).exists():
            # Killed between giving the chunk its name and removing the raw rows, or properly closed.
            part_path(self.folder, self._chunk_number).unlink(missing_ok=True)
            self._chunk_number, self._num_rows = self._chunk_number + 1, 0
        self._open_part()

    def note(self, **facts: Any) -> None:
        """Write down what became known later; only what may differ between the runs that fill a folder."""
        assert facts.keys() <= UNCOMPARED_KEYS, f"{facts.keys() - UNCOMPARED_KEYS} are compared on resume"
        self.manifest |= facts
        write_synced(self.folder / MANIFEST_NAME, (json.dumps(self.manifest, indent=2) + "\n").encode())

    def _open_part(self) -> None:
        path = part_path(self.folder, self._chunk_number)
        self._part = path.open("ab")
        expected_bytes = self._num_rows * self.row_size_bytes
        found_bytes = path.stat().st_size
        if found_bytes < expected_bytes:
            raise TraceError(f"{path} is truncated: {found_bytes} bytes found, {expected_bytes} expected")
        self._part.truncate(expected_bytes)
        sync_folder(self.folder)

    def append(self, *records: TraceRecord) -> None:
        """Add responses; when this returns they are on disk.

        Raises TraceError when a response is there already.
        """
        lines = []
        for record in records:
            if record.key in self.completed:
                raise TraceError(f"{self.folder} already holds sample {record.sample} of prompt {record.prompt_id!r}")
            expected = (record.num_rows, *self.row_shape)
            assert record.experts.shape == expected, f"experts {record.experts.shape}, expected {expected}"
            rows = np.ascontiguousarray(record.experts, self.dtype).tobytes()
            self._part.write(rows)
            place = {
                "chunk": self._chunk_number,
                "start": self._num_rows,
                "rows": record.num_rows,
                "crc32": zlib.crc32(rows),
            }
            lines.append(json.dumps(record.metadata() | place, ensure_ascii=False) + "\n")
            self._num_rows += record.num_rows
            self.raw_ids_bytes += len(rows)
            self.completed.add(record.key)
        sync(self._part)
        self._index.write("".join(lines).encode())
        sync(self._index)
        if self._num_rows * self.row_size_bytes >= self.chunk_size_bytes:
            self._finish_chunk()
            self._chunk_number, self._num_rows = self._chunk_number + 1, 0
            self._open_part()

    def _finish_chunk(self) -> None:
        self._part.close()
        path = part_path(self.folder, self._chunk_number)
        if self._num_rows:
            rows = np.fromfile(path, self.dtype).reshape(self._num_rows, *self.row_shape)
            write_synced(chunk_path(self.folder, self._chunk_number), encode_chunk(rows, self.compress))
        path.unlink()
        sync_folder(self.folder)

    def close(self) -> None:
        """Turn the rows of the chunk being filled into a finished one, and release the folder."""
        if not self._lock.closed:
            self._finish_chunk()
            self._index.close()
            self._lock.close()

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; all that was appended is complete, so a failure in the block changes nothing about it."""
        self.close()


def lock_folder(folder: Path) -> IO[str]:
    """Take the folder's lock, which the system gives back when the process ends, however it ends.

    Raises TraceError when another process has it.
    """
    path = folder / LOCK_NAME
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise TraceError(
            f"{folder} is being written by another process ({holder}), expected to be the only one"
        ) from error
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def sync(file: IO[bytes]) -> None:
    """Bring what was written to a file onto the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries (new names, renames) onto the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file beside its place and give it its name when it is complete on disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        sync(file)
    temporary.replace(path)
    sync_folder(path.parent)


def write_traces(folder: str | Path, manifest: Mapping[str, Any], records: Iterable[TraceRecord]) -> None:
    """Write a whole trace folder at once."""
    with TraceWriter(folder, manifest) as writer:
        for record in records:
            writer.append(record)
