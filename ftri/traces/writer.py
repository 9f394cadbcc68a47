"""Writing trace folders (layout: ftri/traces/reader.py) so that a process killed at any moment loses only unfinished responses.

Letters of shapes: N tokens of a chunk, L MoE layers, K selected experts per token.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np

from ftri.traces.reader import (
    INDEX_NAME,
    MANIFEST_NAME,
    REQUIRED_KEYS,
    SCHEMA,
    Experts,
    TraceError,
    TraceRecord,
    chunk_path,
    expert_dtype,
    iterate_index,
    load_manifest,
    part_path,
)
from rewriter.whole_file import sync_file, sync_folder, write_whole

LOCK_NAME = ".lock"
# Facts about the recording machine, which may change between a run and the one that resumes it.
UNCOMPARED_KEYS = frozenset({"versions", "capture", "model_type"})
CHUNK_SIZE_BYTES = 32 * 1024 * 1024
# Below this gain the raw tensor is kept: any safetensors reader can map it and no time goes into decompression.
MAX_COMPRESSED_SHARE = 0.75
ZLIB_LEVEL = 1


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

        Raises:
            TraceError: another process writes there, or the folder was recorded with other settings.
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
            write_whole(self.folder / MANIFEST_NAME, (json.dumps(self.manifest, indent=2) + "\n").encode())
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
        write_whole(self.folder / MANIFEST_NAME, (json.dumps(self.manifest, indent=2) + "\n").encode())

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

        Raises:
            TraceError: a response is there already.
        """
        lines: list[str] = []
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
            if self._num_rows * self.row_size_bytes >= self.chunk_size_bytes:
                self._sync_lines(lines)
                self._finish_chunk()
                self._chunk_number, self._num_rows = self._chunk_number + 1, 0
                self._open_part()
        self._sync_lines(lines)

    def _sync_lines(self, lines: list[str]) -> None:
        """Bring the rows written so far onto the disk, then the index lines that name them; empties `lines`."""
        if lines:
            sync_file(self._part)
            self._index.write("".join(lines).encode())
            sync_file(self._index)
            lines.clear()

    def _finish_chunk(self) -> None:
        self._part.close()
        path = part_path(self.folder, self._chunk_number)
        if self._num_rows:
            rows = np.fromfile(path, self.dtype).reshape(self._num_rows, *self.row_shape)
            write_whole(chunk_path(self.folder, self._chunk_number), encode_chunk(rows, self.compress))
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

    Raises:
        TraceError: another process has it.
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


def write_traces(folder: str | Path, manifest: Mapping[str, Any], records: Iterable[TraceRecord]) -> None:
    """Write a whole trace folder at once."""
    with TraceWriter(folder, manifest) as writer:
        for record in records:
            writer.append(record)
