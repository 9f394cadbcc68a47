"""The reader of GGUF headers: what it reads, each lie that it refuses with one sentence, and random damage."""

import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from checkpoints import MemoryFolder
from gguf_files import (
    ARCHITECTURE,
    BOOL,
    STRING,
    U32,
    Tensor,
    Value,
    bias_name,
    gguf_bytes,
    info,
    model_metadata,
    model_tensors,
    outputs_name,
    string,
)

from rewriter.checkpoint.gguf.header import MAX_HEADER_BYTES, read_header
from rewriter.checkpoint.gguf.types import TENSOR_TYPES, ZERO_FILL_TYPES
from rewriter.errors import CheckpointError

NUM_MUTATIONS = 20_000
PAIR = {"general.architecture": Value(STRING, "deepseek2")}
TENSOR = {"a": Tensor("F32", (8,), bytes(32))}


class Strict(MemoryFolder):
    """A file in memory that may not be read outside its bytes."""

    def read(self, file_name, offset, size):
        assert offset >= 0 and offset + size <= len(self.files[file_name])
        return super().read(file_name, offset, size)


def read(data: bytes):
    return read_header(Strict({"a.gguf": data}), "a.gguf")


def fault(data: bytes) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(data)
    assert str(caught.value).startswith("memory/a.gguf: ")
    return str(caught.value)


def head(num_tensors: int = 0, num_pairs: int = 0, *, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", magic, version, num_tensors, num_pairs)


def test_reads_what_was_written():
    tensors = model_tensors(expert_dtype="Q8_0")
    data = gguf_bytes(model_metadata(), tensors)
    header = read(data)
    assert list(header.tensors) == list(tensors)
    for name, tensor in tensors.items():
        entry = header.tensors[name]
        assert (entry.dtype, entry.shape) == (tensor.dtype, tensor.shape)
        assert data[entry.offset : entry.offset + entry.size_bytes] == tensor.data
    assert header.text("general.architecture") == ARCHITECTURE
    assert header.integer(f"{ARCHITECTURE}.expert_count") == 16
    assert header.metadata[f"{ARCHITECTURE}.expert_weights_norm"].value is True
    assert header.metadata["tokenizer.ggml.token_type"].value == (1,) * 300
    assert header.metadata["tokenizer.ggml.tokens"].value is None
    assert header.alignment == 32
    assert header.tensors[bias_name(1)].shape == (16,)
    assert header.tensors[outputs_name(1)].shape == (16, 5, 32)


@pytest.mark.parametrize("alignment", [1, 8, 64, 4096])
def test_reads_every_alignment(alignment):
    metadata = model_metadata() | {"general.alignment": Value(U32, alignment)}
    tensors = model_tensors()
    data = gguf_bytes(metadata, tensors, alignment=alignment)
    entry = read(data).tensors[bias_name(3)]
    assert data[entry.offset : entry.offset + entry.size_bytes] == tensors[bias_name(3)].data


def test_the_last_tensor_may_lack_its_padding():
    data = gguf_bytes(PAIR, {"a": Tensor("F32", (3,), bytes(12))})
    assert read(data).tensors == read(data[:-20]).tensors


def test_a_file_may_hold_no_tensors():
    data = gguf_bytes(PAIR, {})
    assert read(data).tensors == {} == read(data.rstrip(b"\0")).tensors


def test_every_truncation_is_refused():
    data = gguf_bytes(model_metadata(), model_tensors())
    body = read(data).body_offset
    last = len(data.rstrip(b"\0"))
    for length in [*range(body), *range(body, last, 997), last - 1]:
        assert "truncated" in fault(data[:length]) or length < 24, length


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is 0 bytes long, too short"),
        (head(magic=b"GGML"), "starts with b'GGML', expected b'GGUF'"),
        (struct.pack(">4sIQQ", b"GGUF", 3, 0, 0), "big-endian"),
        (head(version=1), "is GGUF version 1, expected 3"),
        (head(version=2), "is GGUF version 2, expected 3"),
        (head(version=4), "is GGUF version 4, expected 3"),
        (head(num_pairs=2**60), "the metadata has 1152921504606846976 entries, but only 0 bytes of header can follow"),
        (head(num_tensors=2**60), "the list of tensors has 1152921504606846976 entries, but only 0 bytes"),
        (head(num_pairs=1) + struct.pack("<Q", 2**63) + bytes(99), "a metadata key of 9223372036854775808 bytes"),
        (head(num_pairs=1) + struct.pack("<Q", 90) + bytes(30), "ends at byte 62 within a metadata key"),
        (head(num_pairs=1) + string("") + struct.pack("<IQ", STRING, 0), "an empty metadata key"),
        (head(num_pairs=1) + struct.pack("<Q", 2) + b"\xff\xfe" + bytes(8), "a metadata key at byte 32 that is not UTF-8"),
        (head(num_pairs=1) + string("k") + struct.pack("<IQ", 13, 0), "value of 'k' of the unknown type 13"),
        (head(num_pairs=1) + string("k") + struct.pack("<IQ", STRING, 2**40), "ends at byte 45 within the value of 'k'"),
        (head(num_pairs=1) + string("k") + struct.pack("<IIQ", 9, 9, 1), "array of arrays"),
        (head(num_pairs=1) + string("k") + struct.pack("<IIQ", 9, 99, 1), "an array of the unknown type 99"),
        (head(num_pairs=1) + string("k") + struct.pack("<IIQ", 9, 8, 2**60), "has 1152921504606846976 entries"),
        (head(num_pairs=1) + string("k") + struct.pack("<IIQ", 9, 0, 2**60), "has 1152921504606846976 entries"),
        (head(num_pairs=1) + string("k") + struct.pack("<IIQQ", 9, 8, 1, 2**62), "within the value of 'k'"),
        (head(num_pairs=2) + (string("k") + struct.pack("<IB", 0, 1)) * 2, "the metadata key 'k' twice"),
        (gguf_bytes({"general.alignment": Value(U32, 48)}, TENSOR), "general.alignment 48, expected a power of two"),
        (gguf_bytes({"general.alignment": Value(U32, 0)}, TENSOR), "general.alignment 0, expected a power of two"),
        (gguf_bytes({"general.alignment": Value(U32, 2**31)}, TENSOR), "expected a power of two up to"),
        (gguf_bytes({"general.alignment": Value(BOOL, True)}, TENSOR), "general.alignment True, expected a power"),
        (gguf_bytes(PAIR, {"a" * 64: TENSOR["a"]}), "a tensor name of 64 bytes"),
        (head(num_tensors=1) + string("a") + struct.pack("<I", 5) + bytes(99), "gives a 5 dimensions"),
        (head(num_tensors=1) + string("a") + struct.pack("<IQIQ", 1, 8, 4, 0) + bytes(64), "the tensor type 4"),
        (head(num_tensors=1) + string("a") + struct.pack("<IQIQ", 1, 8, 8, 0) + bytes(64), "rows of 8 elements, but Q8_0"),
        (head(num_tensors=1) + string("a") + struct.pack("<IQIQ", 1, 2**60, 0, 0) + bytes(64), "the file is truncated"),
        (head(num_tensors=1) + string("a") + info("", TENSOR["a"], 32)[8:] + bytes(128), "leaves a gap before it"),
        (head(num_tensors=2) + info("a", TENSOR["a"], 0) * 2 + bytes(128), "has the tensor a twice"),
        (head(num_tensors=2) + info("a", TENSOR["a"], 0) + info("b", TENSOR["a"], 0) + bytes(128), "overlaps the tensor"),
        (head(num_tensors=2) + info("a", TENSOR["a"], 0) + info("b", TENSOR["a"], 96) + bytes(256), "leaves a gap"),
        (gguf_bytes(PAIR, TENSOR) + b"\0", "bytes follow the last tensor"),
        (gguf_bytes(PAIR, {}) + bytes(32), "bytes follow the last tensor"),
    ],
)  # fmt: skip
def test_each_lie_gets_one_sentence(data, said):
    message = fault(data)
    assert said in message
    assert "\n" not in message


def test_a_header_without_end_is_refused_before_it_is_read():
    class Endless:
        """A sparse file of zeros behind a prefix: every string in it is empty, every count could be true."""

        name, largest = "endless", 0

        def size_bytes(self, file_name):
            return 1 << 45

        def read(self, file_name, offset, size):
            self.largest = max(self.largest, offset + size)
            prefix = head(num_pairs=1) + string("k") + struct.pack("<IIQ", 9, 8, MAX_HEADER_BYTES // 8 + 1)
            return (prefix[offset : offset + size]).ljust(min(size, 1 << 20), b"\0")

    source = Endless()
    with pytest.raises(CheckpointError, match="entries"):
        read_header(source, "a.gguf")
    assert source.largest <= MAX_HEADER_BYTES


def test_a_file_that_shrinks_while_it_is_read_is_refused():
    class Shrinking(MemoryFolder):
        def size_bytes(self, file_name):
            return 2 * len(self.files[file_name])

    with pytest.raises(CheckpointError, match="shortened while it was read"):
        read_header(Shrinking({"a.gguf": gguf_bytes(model_metadata(), model_tensors())[:100]}), "a.gguf")


def headers_to_damage() -> list[tuple[bytes, int]]:
    """Files and the lengths of their headers: made ones, and the miniature's as llama.cpp's own tools wrote them."""
    made = [
        gguf_bytes(model_metadata(), model_tensors()),
        gguf_bytes(PAIR | {"general.alignment": Value(U32, 64)}, model_tensors(), alignment=64),
        gguf_bytes(PAIR, {}),
    ]
    shared = Path(os.environ.get("MOTE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "gguf"
    made += [path.read_bytes() for path in sorted(shared.glob("tiny-r1-Q4_K_M.gguf"))]
    return [(data, read(data).body_offset) for data in made]


def test_damaged_headers_are_read_or_refused():
    """Each mutation is read, consistently with the file's length, or refused with a sentence: nothing else may come out."""
    chance = random.Random(14)
    num_read = num_refused = 0
    files = headers_to_damage()
    for number in range(NUM_MUTATIONS):
        data, header_bytes = files[number % len(files)]
        damaged = damage(bytearray(data[: header_bytes + 256]), header_bytes, chance)
        source = Padded({"a.gguf": bytes(damaged)}, len(data) - min(header_bytes + 256, len(data)))
        try:
            header = read_header(source, "a.gguf")
        except CheckpointError as error:
            assert "\n" not in str(error)
            num_refused += 1
            continue
        num_read += 1
        assert header.body_offset <= header.file_size
        for entry in header.tensors.values():
            assert header.body_offset <= entry.offset <= entry.offset + entry.size_bytes <= header.file_size
    assert num_read > NUM_MUTATIONS // 20 and num_refused > NUM_MUTATIONS // 3


class Padded(Strict):
    """A file whose bytes behind the given ones are never looked at, so that megabytes need not be copied 20,000 times."""

    def __init__(self, files, rest: int):
        super().__init__(files)
        self.rest = rest

    def size_bytes(self, file_name):
        return len(self.files[file_name]) + self.rest

    def read(self, file_name, offset, size):
        assert offset >= 0 and offset + size <= self.size_bytes(file_name)
        return self.files[file_name][offset : offset + size] or bytes(min(size, 1 << 16))


def damage(data: bytearray, header_bytes: int, chance: random.Random) -> bytearray:
    """One to three changes: a bit, a byte, a number's worth of bytes, a piece cut out, doubled or put elsewhere."""
    extremes = [0, 1, 2, 8, 9, 13, 31, 32, 255, 2**16, 2**31, 2**32 - 1, 2**60, 2**63, 2**64 - 1]
    for _ in range(chance.choice((1, 1, 2, 3))):
        # Most faults lie in the first kilobyte and in the tensor infos, so half of the changes go there.
        limit = header_bytes if chance.random() < 0.5 else min(header_bytes, 1024)
        place = chance.randrange(max(1, min(limit, len(data))))
        kind = chance.randrange(6)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place] = chance.randrange(256)
        elif kind == 2:
            data[place : place + 8] = struct.pack("<Q", chance.choice(extremes))
        elif kind == 3:
            data[place : place + 4] = struct.pack("<I", chance.choice(extremes) & 0xFFFFFFFF)
        elif kind == 4:
            del data[place : place + chance.choice((1, 4, 8, 40))]
        else:
            data[place:place] = data[place : place + chance.choice((1, 8, 24, 100))]
    return data


def test_types_are_those_of_gguf_and_zero_bytes_decode_to_zeros():
    """Against llama.cpp's own Python package."""
    constants, quants = pytest.importorskip("gguf.constants"), pytest.importorskip("gguf.quants")
    num_decoded = 0
    for number, (block_elements, block_bytes) in constants.GGML_QUANT_SIZES.items():
        kind = TENSOR_TYPES[int(number)]
        if kind.name == "Q8_1":  # 36 bytes in ggml-common.h; the package still counts two floats of an older layout
            continue
        assert (kind.name, kind.block_elements, kind.block_bytes) == (number.name, block_elements, block_bytes)
        if kind.name not in ZERO_FILL_TYPES or block_elements == 1:
            continue
        try:
            decoded = quants.dequantize(np.zeros((2, block_bytes), np.uint8), number)
        except NotImplementedError:  # the package cannot decode every type
            continue
        assert decoded.size == 2 * block_elements and not decoded.any(), kind.name
        num_decoded += 1
    assert num_decoded >= 20
