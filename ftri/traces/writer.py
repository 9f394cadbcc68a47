"""Writing trace folders (layout: ftri/traces/reader.py) so that a process killed at any moment loses only unfinished responses.

Letters of shapes: N tokens of a chunk, L MoE layers, K selected experts per token.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from ftri.traces.reader import IndexScan, TraceRecord, chunk_path, iterate_index, part_path
from ftri.traces.rows import REMEDY, Experts, expert_dtype, fault_of, weights_fault_of
from ftri.traces.schema import (
    INDEX_NAME,
    MANIFEST_NAME,
    SCHEMA,
    Manifest,
    TraceError,
    checksummed,
    load_manifest,
    shown,
)
from rewriter.errors import OutputError, printable, quoted
from rewriter.hub.errors import redact
from rewriter.whole_file import sync_file, sync_folder, write_whole

LOCK_NAME = ".lock"
# Facts about the recording machine, which may change between a run and the one that resumes it; a server's probe is held against
# the next with its noise (ftri/probe.py).
UNCOMPARED_KEYS = frozenset({"versions", "capture", "model_type", "tokens_per_second", "server_probe"})
CHUNK_SIZE_BYTES = 32 * 1024 * 1024
# Below this gain the raw tensor is kept: any safetensors reader can map it and no time goes into decompression.
MAX_COMPRESSED_SHARE = 0.75
ZLIB_LEVEL = 1
NUM_DIFFERENCES_SHOWN = 4


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level of dotted names."""
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def manifest_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What keeps a run from continuing a folder, as "name is X there, Y now" phrases; secrets in values are left out."""
    there = flatten({key: value for key, value in found.items() if key not in UNCOMPARED_KEYS})
    now = flatten({key: value for key, value in wanted.items() if key not in UNCOMPARED_KEYS})
    # Compared as JSON, since that is what became of tuples and integer keys on disk.
    return [
        redact(f"{printable(name[:80])} is {quoted(there.get(name))} there, {quoted(now.get(name))} now")
        # Hashes last: what they are of says more.
        for name in sorted(there.keys() | now.keys(), key=lambda name: (name.endswith("sha256"), name))
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


def encode_weights(weights: npt.NDArray[Any]) -> bytes:
    """The safetensors file of a chunk's weights [N, L, K], whose mantissas no compression is worth trying on."""
    from safetensors.numpy import save

    return save({"weights": weights}, metadata={"encoding": "raw"})


class TraceWriter:
    """Appends responses to a trace folder, creating it or continuing one of the same manifest.

    After a failure, in a `with` block or in a write, the folder is let go as it is: what was appended is there, and the next
    writer continues behind it.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Mapping[str, Any],
        chunk_size_bytes: int = CHUNK_SIZE_BYTES,
        compress: bool = True,
    ) -> None:
        """Create or resume `folder`; `manifest` is one of ftri/traces/schema.py but for the schema's name.

        Raises:
            TraceError: another process writes there, or the folder was recorded with other settings.
            OutputError: the folder cannot be written.
        """
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = {"schema": SCHEMA, **manifest}
        # As JSON has it: tuples become lists.
        self.facts = Manifest.model_validate_json(json.dumps(self.manifest))
        self.dtype = expert_dtype(self.facts.num_choices)
        self.weights_dtype = None if self.facts.weights is None else np.dtype(self.facts.weights)
        # What lies beside each other in a chunk: the selected experts, and their weights where they are kept.
        self._dtypes = {"experts": self.dtype} | ({} if self.weights_dtype is None else {"weights": self.weights_dtype})
        self.row_size_bytes = self._row_size_bytes("experts")
        self.chunk_size_bytes, self.compress = chunk_size_bytes, compress
        self.completed: set[tuple[str, int]] = set()
        self.raw_ids_bytes = 0  # of all rows in the folder, before any compression
        self._chunk_number, self._num_rows, self._checksum = 0, 0, 0
        self._has_failed = False
        if self.folder.exists() and not self.folder.is_dir():
            raise TraceError(f"{self.folder} is a file, expected a folder to write traces to; choose another -o")
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.folder)
        try:
            with self._writing():
                self._open_or_create()
        except BaseException:
            self._lock.close()
            raise

    def _row_size_bytes(self, tensor: str) -> int:
        """What a token takes of a chunk's experts, or of its weights."""
        return int(np.prod(self.facts.row_shape)) * self._dtypes[tensor].itemsize

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what the system refuses into a sentence, and see to it that nothing is made complete after it."""
        try:
            yield
        except (OSError, OutputError) as error:
            self._has_failed = True
            what = f"{self.folder}: cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
            raise OutputError(f"{what}; what was recorded is kept, and the same command continues behind it") from None

    def _open_or_create(self) -> None:
        if (self.folder / MANIFEST_NAME).exists():
            found = load_manifest(self.folder)
            differences = manifest_differences(found, self.manifest)
            if differences:
                more = len(differences) - NUM_DIFFERENCES_SHOWN
                sentence = "; ".join(differences[:NUM_DIFFERENCES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
                raise TraceError(
                    f"{self.folder} was recorded with other settings: {sentence}; give those, or choose another -o"
                )
            self.manifest = found
        elif any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise TraceError(
                f"{self.folder} holds other files and no {MANIFEST_NAME}, expected an empty or new folder; choose another -o"
            )
        else:
            write_whole(self.folder / MANIFEST_NAME, (json.dumps(self.manifest, indent=2) + "\n").encode())
        scan = IndexScan()
        for entry in iterate_index(self.folder, scan):
            self.completed.add(entry.key)
            self._chunk_number, self._num_rows = entry.chunk, entry.start + entry.rows
            self.raw_ids_bytes += entry.rows * self.row_size_bytes
        self._checksum = scan.checksum
        self._index = (self.folder / INDEX_NAME).open("ab")
        self._index.truncate(scan.end_bytes)
        if chunk_path(self.folder, self._chunk_number).exists():
            # Killed between giving the chunk its name and removing the raw rows, or properly closed.
            for tensor in self._dtypes:
                part_path(self.folder, self._chunk_number, tensor).unlink(missing_ok=True)
            self._num_rows = 0
            # A chunk that the index does not name is nobody's to overwrite.
            while chunk_path(self.folder, self._chunk_number).exists():
                self._chunk_number += 1
        else:
            # Killed between a chunk's weights and its experts: rows that are added now would not be in it.
            for tensor in self._dtypes:
                chunk_path(self.folder, self._chunk_number, tensor).unlink(missing_ok=True)
        self._open_part()

    def note(self, **facts: Any) -> None:
        """Write down what became known later; only what may differ between the runs that fill a folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        assert facts.keys() <= UNCOMPARED_KEYS, f"{facts.keys() - UNCOMPARED_KEYS} are compared on resume"
        self.manifest |= facts
        with self._writing():
            write_whole(self.folder / MANIFEST_NAME, (json.dumps(self.manifest, indent=2) + "\n").encode())

    def _open_part(self) -> None:
        self._parts: dict[str, IO[bytes]] = {}
        for tensor in self._dtypes:
            path = part_path(self.folder, self._chunk_number, tensor)
            self._parts[tensor] = path.open("ab")
            expected_bytes = self._num_rows * self._row_size_bytes(tensor)
            found_bytes = path.stat().st_size
            if found_bytes < expected_bytes:
                raise TraceError(f"{path} is truncated: {found_bytes} bytes found, {expected_bytes} expected")
            self._parts[tensor].truncate(expected_bytes)
        sync_folder(self.folder)

    def append(self, *records: TraceRecord) -> None:
        """Add responses; when this returns they are on disk.

        Raises:
            TraceError: a response is there already, or its rows are not what a router can have selected; then none is added.
            OutputError: the folder cannot be written.
        """
        self._check(records)
        lines: list[bytes] = []
        with self._writing():
            for record in records:
                rows = {
                    tensor: np.ascontiguousarray(getattr(record, tensor), dtype).tobytes()
                    for tensor, dtype in self._dtypes.items()
                }
                for tensor, content in rows.items():
                    self._parts[tensor].write(content)
                place = {
                    "chunk": self._chunk_number,
                    "start": self._num_rows,
                    "rows": record.num_rows,
                    "crc32": zlib.crc32(rows["experts"]),
                }
                if "weights" in rows:
                    place["weights_crc32"] = zlib.crc32(rows["weights"])
                body = json.dumps(record.metadata() | place, ensure_ascii=False).encode()
                line, self._checksum = checksummed(body, self._checksum)
                lines.append(line)
                self._num_rows += record.num_rows
                self.raw_ids_bytes += len(rows["experts"])
                self.completed.add(record.key)
                if self._num_rows * self.row_size_bytes >= self.chunk_size_bytes:
                    self._sync_lines(lines)
                    self._finish_chunk()
                    self._chunk_number, self._num_rows = self._chunk_number + 1, 0
                    self._open_part()
            self._sync_lines(lines)

    def _check(self, records: Iterable[TraceRecord]) -> None:
        new: set[tuple[str, int]] = set()
        for record in records:
            name = f"sample {record.sample} of prompt {shown(record.prompt_id)}"
            if record.key in self.completed or record.key in new:
                raise TraceError(f"{self.folder} already holds {name}")
            new.add(record.key)
            fault = fault_of(record.experts, record.num_rows, self.facts.row_shape, self.facts.num_choices)
            if fault is None:
                fault = self._weights_fault(record)
            if fault is not None:
                raise TraceError(f"{name} has {fault}; {REMEDY}")

    def _weights_fault(self, record: TraceRecord) -> str | None:
        if self.weights_dtype is None:
            return None
        if record.weights is None:
            raise TraceError(f"{self.folder} keeps weights, but there are none of prompt {shown(record.prompt_id)}")
        # As they will be read: a value may be beyond the range of float16.
        with np.errstate(over="ignore"):
            weights = np.asarray(record.weights, self.weights_dtype)
        return weights_fault_of(weights, record.num_rows, self.facts.row_shape)

    def _sync_lines(self, lines: list[bytes]) -> None:
        """Bring the rows written so far onto the disk, then the index lines that name them; empties `lines`."""
        if lines:
            for part in self._parts.values():
                sync_file(part)
            self._index.write(b"".join(lines))
            sync_file(self._index)
            lines.clear()

    def _finish_chunk(self) -> None:
        # The experts' chunk comes last: where it stands, the whole chunk is finished.
        for tensor, dtype in reversed(self._dtypes.items()):
            self._parts[tensor].close()
            if self._num_rows:
                path = part_path(self.folder, self._chunk_number, tensor)
                rows: Any = np.fromfile(path, dtype).reshape(self._num_rows, *self.facts.row_shape)
                encoded = encode_chunk(rows, self.compress) if tensor == "experts" else encode_weights(rows)
                write_whole(chunk_path(self.folder, self._chunk_number, tensor), encoded)
        for tensor in self._dtypes:
            part_path(self.folder, self._chunk_number, tensor).unlink()
        sync_folder(self.folder)

    def close(self) -> None:
        """Turn the rows of the chunk being filled into a finished one, and release the folder.

        Raises:
            OutputError: the folder cannot be written.
        """
        if self._lock.closed:
            return
        try:
            if not self._has_failed:
                with self._writing():
                    self._finish_chunk()
        finally:
            self.release()

    def release(self) -> None:
        """Let the folder go as it is, without another write; the next writer continues it."""
        for file in (*self._parts.values(), self._index):
            # What a full disk has left in the buffer cannot be written, and no line names it.
            with suppress(OSError):
                file.close()
        self._lock.close()

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close; after a failure in the block only let the folder go, so that its error is the one that is seen."""
        if kind is None:
            self.close()
        else:
            self.release()


def lock_folder(folder: Path) -> IO[str]:
    """Take the folder's lock, which the system gives back when the process ends, however it ends.

    Raises:
        TraceError: another process has it.
    """
    path = folder / LOCK_NAME
    # A pipe in its place would be waited for.
    if path.exists() and not path.is_file():
        raise TraceError(f"{path} is no regular file, expected the lock of a trace folder")
    file = path.open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = printable(file.read(80).strip()) or "unknown"
        file.close()
        raise TraceError(
            f"{folder} is being written by another process ({holder}), expected to be the only one"
        ) from None
    except OSError:
        file.close()
        raise
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def write_traces(folder: str | Path, manifest: Mapping[str, Any], records: Iterable[TraceRecord]) -> None:
    """Write a whole trace folder at once."""
    with TraceWriter(folder, manifest) as writer:
        for record in records:
            writer.append(record)
