"""The header of one GGUF file, parsed within bounds: no read outside the file, no loop or buffer that a count in it could drive.

The format is little-endian: magic, version, number of tensors, number of metadata pairs, the pairs, one info a tensor, padding
to the alignment, the tensors' bytes (llama.cpp: docs of gguf-py, ggml/include/gguf.h, ggml/src/gguf.cpp). Whatever llama.cpp
refuses is refused here, and so is what it would ignore but a rewrite could not carry over (bytes behind the last tensor).
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import NoReturn

from rewriter.checkpoint.gguf.types import ARRAY, SCALAR_BYTES, SCALAR_FORMATS, STRING, TENSOR_TYPES, UINT32
from rewriter.checkpoint.source import ByteSource, TensorEntry
from rewriter.errors import CheckpointError

MAGIC, VERSION = b"GGUF", 3
PREFIX = struct.Struct("<4sIQQ")  # magic, version, number of tensors, number of metadata pairs
ALIGNMENT_KEY, DEFAULT_ALIGNMENT = "general.alignment", 32
FIRST_READ_BYTES = 1 << 18
MAX_HEADER_BYTES = 128 << 20  # the largest vocabularies make headers of 20 MB
MAX_NAME_BYTES = 63  # GGML_MAX_NAME, its closing zero apart
MAX_KEY_BYTES = 65535
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20
NUM_VALUES_DECODED = 4096  # of an array: enough for one value a layer; vocabularies are skipped
Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class MetadataValue:
    """One metadata pair: its value, and where the whole pair lies in the file."""

    kind: int  # the format's number of the value's type
    value: Scalar | tuple[int | float | bool, ...] | None  # None: an array of strings, or a long one
    start: int  # first byte of the pair
    end: int


@dataclass(frozen=True)
class GgufHeader:
    """The parsed header of one file."""

    file: str
    metadata: Mapping[str, MetadataValue]
    tensors: Mapping[str, TensorEntry]  # in the order of the file; shapes with the slowest dimension first
    infos_offset: int  # first byte of the tensor infos, behind the metadata
    infos_end: int
    body_offset: int  # first byte of the tensors' bytes
    alignment: int
    file_size: int

    def integer(self, key: str) -> int | None:
        """A whole number of the metadata, or None where there is none under that key."""
        found = self.metadata.get(key)
        return found.value if found is not None and type(found.value) is int else None

    def text(self, key: str) -> str | None:
        """A string of the metadata, or None where there is none under that key."""
        found = self.metadata.get(key)
        return found.value if found is not None and isinstance(found.value, str) else None


def read_header(source: ByteSource, file: str) -> GgufHeader:
    """Parse the header of a file and check it against the format and the file's length.

    Raises:
        CheckpointError: no such file, or it is not a GGUF file of version 3 that is whole and free of contradictions.
    """
    size = source.size_bytes(file)
    if size is None:
        raise CheckpointError(f"{source.name}/{file}: no such file")
    cursor = _Cursor(source, file, size)
    num_tensors, num_pairs = _read_counts(cursor)
    metadata: dict[str, MetadataValue] = {}
    for _ in range(num_pairs):
        start = cursor.position
        key = cursor.text("a metadata key", MAX_KEY_BYTES)
        if not key:
            cursor.fail("has an empty metadata key")
        if key in metadata:
            cursor.fail(f"has the metadata key {key!r} twice")
        kind = cursor.number("<I", f"the type of {key!r}")
        metadata[key] = MetadataValue(kind, _read_value(cursor, key, kind), start, cursor.position)
    alignment = _alignment(cursor, metadata.get(ALIGNMENT_KEY))
    infos_offset = cursor.position
    infos = [_read_info(cursor) for _ in range(num_tensors)]
    infos_end = cursor.position
    body_offset = _padded(infos_end, alignment) if infos else min(_padded(infos_end, alignment), size)
    tensors = _place(cursor, infos, body_offset, alignment)
    return GgufHeader(file, metadata, tensors, infos_offset, infos_end, body_offset, alignment, size)


class _Cursor:
    """A position in a file's first bytes, which are read as far as they are needed and never past the file's end."""

    def __init__(self, source: ByteSource, file: str, size: int) -> None:
        self.position = 0
        self.size = size
        self.path = f"{source.name}/{file}"
        self.file = file
        self._source = source
        self._buffer = bytearray()

    def fail(self, fault: str) -> NoReturn:
        """Say what is wrong with the file."""
        raise CheckpointError(f"{self.path}: {fault}")

    def take(self, count: int, what: str) -> int:
        """Make sure that `count` bytes are there, move behind them, and give the place where they start."""
        start, end = self.position, self.position + count
        if end > len(self._buffer):
            self._fill(end, what)
        self.position = end
        return start

    def number(self, form: str, what: str) -> int:
        """One number of a struct format."""
        start = self.take(struct.calcsize(form), what)
        value: int = struct.unpack_from(form, self._buffer, start)[0]
        return value

    def numbers(self, form: str, what: str) -> tuple[int | float | bool, ...]:
        """Several numbers of a struct format."""
        start = self.take(struct.calcsize(form), what)
        return struct.unpack_from(form, self._buffer, start)

    def raw(self, count: int, what: str) -> bytes:
        """So many bytes."""
        start = self.take(count, what)
        return bytes(self._buffer[start : start + count])

    def text(self, what: str, longest: int) -> str:
        """A string that must be UTF-8: the name of something."""
        length = self.number("<Q", f"the length of {what}")
        if length > longest:
            self.fail(f"has {what} of {length} bytes at byte {self.position}, expected at most {longest}")
        data = self.raw(length, what)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            self.fail(f"has {what} at byte {self.position - length} that is not UTF-8")

    def skip_strings(self, count: int, what: str) -> None:
        """Move behind `count` strings; the one long loop, 257,000 turns for R1's vocabulary."""
        self.check_room(count, 8, what)
        position, buffer, end = self.position, self._buffer, len(self._buffer)
        length_at = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if position + 8 > end:
                self._fill(position + 8, what)
                end = len(buffer)
            position += 8 + length_at(buffer, position)[0]
            if position > end:
                self._fill(position, what)
                end = len(buffer)
        self.position = position

    def check_room(self, count: int, least_bytes: int, what: str) -> None:
        """Refuse a count of things that the rest of the file, or of any header, could not hold."""
        room = min(self.size, MAX_HEADER_BYTES) - self.position
        if count * least_bytes > room:
            self.fail(
                f"says at byte {self.position} that {what} has {count} entries, but only {max(room, 0)} bytes of header can"
                " follow; it is truncated or damaged"
            )

    def _fill(self, end: int, what: str) -> None:
        """Have the first `end` bytes in the buffer."""
        if end > self.size:
            self.fail(
                f"ends at byte {self.size} within {what}, expected at least {end} bytes; it is truncated or damaged"
            )
        if end > MAX_HEADER_BYTES:
            self.fail(
                f"has {what} end at byte {end}, expected a header of at most {MAX_HEADER_BYTES} bytes; it is damaged"
            )
        wanted = min(self.size, max(end, 2 * len(self._buffer), FIRST_READ_BYTES))
        while len(self._buffer) < wanted:
            data = self._source.read(self.file, len(self._buffer), wanted - len(self._buffer))
            if not data:
                self.fail(f"ends at byte {len(self._buffer)} within {what}; it was shortened while it was read")
            self._buffer += data


def _read_counts(cursor: _Cursor) -> tuple[int, int]:
    """The numbers of tensors and of metadata pairs, behind the magic and the version."""
    if cursor.size < PREFIX.size:
        cursor.fail(f"is {cursor.size} bytes long, too short for a GGUF header")
    magic, version, num_tensors, num_pairs = PREFIX.unpack(cursor.raw(PREFIX.size, "the header"))
    if magic != MAGIC:
        cursor.fail(f"starts with {magic!r}, expected {MAGIC!r}: it is not a GGUF file")
    if version and not version & 0xFFFF:
        cursor.fail("is a big-endian GGUF file, expected little-endian as llama.cpp's usual builds read it")
    if version != VERSION:
        cursor.fail(
            f"is GGUF version {version}, expected {VERSION}; convert the model again, or copy an older file with a current"
            " llama-quantize (type COPY)"
        )
    cursor.check_room(num_pairs, 13, "the metadata")  # a length, one letter, a type
    cursor.check_room(num_tensors, 24, "the list of tensors")  # a length, dimensions, type, offset
    return num_tensors, num_pairs


def _read_value(cursor: _Cursor, key: str, kind: int) -> Scalar | tuple[int | float | bool, ...] | None:
    """The value of a metadata pair whose type was read."""
    what = f"the value of {key!r}"
    if kind in SCALAR_FORMATS:
        return cursor.numbers(SCALAR_FORMATS[kind], what)[0]
    if kind == STRING:
        length = cursor.number("<Q", f"the length of {what}")
        return cursor.raw(length, what).decode("utf-8", errors="replace")
    if kind != ARRAY:
        cursor.fail(f"has {what} of the unknown type {kind}, expected one of 0..{max(SCALAR_FORMATS)}")
    element = cursor.number("<I", f"the type of {what}")
    count = cursor.number("<Q", f"the length of {what}")
    if element == STRING:
        cursor.skip_strings(count, what)
        return None
    if element == ARRAY:
        cursor.fail(f"has {what} an array of arrays, expected plain values, as llama.cpp does")
    if element not in SCALAR_FORMATS:
        cursor.fail(f"has {what} an array of the unknown type {element}, expected one of 0..{max(SCALAR_FORMATS)}")
    cursor.check_room(count, SCALAR_BYTES[element], what)
    if count > NUM_VALUES_DECODED:
        cursor.take(count * SCALAR_BYTES[element], what)
        return None
    return cursor.numbers(f"<{count}{SCALAR_FORMATS[element][1]}", what)


def _alignment(cursor: _Cursor, found: MetadataValue | None) -> int:
    """What tensors are aligned to: a power of two."""
    if found is None:
        return DEFAULT_ALIGNMENT
    value = found.value
    if found.kind != UINT32 or not isinstance(value, int) or value < 1 or value & (value - 1) or value > MAX_ALIGNMENT:
        cursor.fail(f"has the {ALIGNMENT_KEY} {value!r}, expected a power of two up to {MAX_ALIGNMENT}, as u32")
    return value


def _read_info(cursor: _Cursor) -> TensorEntry:
    """One tensor's info; its offset counts from the body's start as yet."""
    name = cursor.text("a tensor name", MAX_NAME_BYTES)
    num_dimensions = cursor.number("<I", f"the dimensions of {name}")
    if num_dimensions > MAX_DIMENSIONS:
        cursor.fail(f"gives {name} {num_dimensions} dimensions, expected at most {MAX_DIMENSIONS}")
    lengths = [cursor.number("<Q", f"the dimensions of {name}") for _ in range(num_dimensions)]
    number = cursor.number("<I", f"the type of {name}")
    offset = cursor.number("<Q", f"the offset of {name}")
    kind = TENSOR_TYPES.get(number)
    if kind is None:
        cursor.fail(
            f"gives {name} the tensor type {number}, which has no row in rewriter/checkpoint/gguf/types.py; add one with the"
            " type's block size from ggml/src/ggml.c"
        )
    row = lengths[0] if lengths else 1
    if row % kind.block_elements:
        cursor.fail(f"gives {name} rows of {row} elements, but {kind.name} packs {kind.block_elements} to a block")
    size = prod(lengths) // kind.block_elements * kind.block_bytes
    return TensorEntry(name, cursor.file, kind.name, tuple(reversed(lengths)), offset, size)


def _place(cursor: _Cursor, infos: list[TensorEntry], body_offset: int, alignment: int) -> dict[str, TensorEntry]:
    """The tensors with their places in the file; the format allows neither gaps nor overlaps, nor bytes behind the last."""
    tensors: dict[str, TensorEntry] = {}
    position = end = 0
    for info in infos:
        if info.name in tensors:
            cursor.fail(f"has the tensor {info.name} twice")
        if info.offset != position:
            fault = "overlaps the tensor before it" if info.offset < position else "leaves a gap before it"
            cursor.fail(f"has {info.name} start at byte {info.offset} of the tensors, expected {position}: it {fault}")
        end = position + info.size_bytes
        position = _padded(end, alignment)
        if body_offset + end > cursor.size:
            cursor.fail(
                f"is {cursor.size} bytes long, but {info.name} ends at byte {body_offset + end}: the file is truncated"
            )
        tensors[info.name] = TensorEntry(
            info.name, info.shard, info.dtype, info.shape, body_offset + info.offset, info.size_bytes
        )
    if cursor.size > body_offset + position:
        cursor.fail(f"is {cursor.size} bytes long, expected {body_offset + position}: bytes follow the last tensor")
    return tensors


def _padded(size: int, alignment: int) -> int:
    """A size rounded up to the alignment."""
    return -(-size // alignment) * alignment
