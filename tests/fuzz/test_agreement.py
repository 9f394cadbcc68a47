"""A shard header that the safetensors library refuses is refused here as well, since the runtime would refuse it later."""

import random
from itertools import islice
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open

from fuzz.corpus import mutations, with_header_length
from rewriter.checkpoint.reader import Checkpoint
from rewriter.errors import CheckpointError

NAME = "model.safetensors"


def shard(header: bytes, body: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + body


VALID = shard(
    b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},'
    b'"b":{"dtype":"I8","shape":[3],"data_offsets":[16,19]}}',
    bytes(19),
)


def library_takes(path: Path) -> bool:
    try:
        with safe_open(path, "np") as opened:
            return opened.keys() is not None
    except (SafetensorError, OSError, ValueError, OverflowError):
        return False


def takes(folder: Path) -> bool:
    try:
        Checkpoint.open(folder).header(NAME)
    except CheckpointError:
        return False
    return True


def agree(folder: Path, data: bytes) -> bool:
    """Whether the library would read what is taken here."""
    (folder / NAME).write_bytes(data)
    return not takes(folder) or library_takes(folder / NAME)


def refused_more(folder: Path, num_inputs: int, seed: int) -> None:
    rng = random.Random(seed)
    taken = 0
    for data in islice(mutations(VALID, rng), num_inputs):
        data = with_header_length(rng, data)
        assert agree(folder, data), data[:400]
        taken += takes(folder)
    assert taken, "the test has no power: every input is refused"


def test_the_library_takes_what_is_taken_here(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(VALID)
    assert library_takes(tmp_path / NAME) and takes(tmp_path)
    refused_more(tmp_path, 1_000, 0)


@pytest.mark.slow
def test_the_library_takes_what_is_taken_here_of_many(tmp_path: Path) -> None:
    refused_more(tmp_path, 20_000, 1)


@pytest.mark.parametrize(
    "extra",
    [
        b'"c":{"dtype":"F32","shape":[0,18446744073709551616],"data_offsets":[19,19]}',
        b'"c":{"dtype":"F32","shape":[4611686018427387904,8,0],"data_offsets":[19,19]}',
        b'"c":{"dtype":"F32","shape":[0],"data_offsets":[19,19],"more":NaN}',
        b'"c":{"dtype":"F32","shape":[0],"data_offsets":[19,19],"more":1e999}',
        b'"c":{"dtype":"F32","shape":[0],"data_offsets":[19,19],"more":"\\ud800"}',
        b'"c":{"dtype":"F32","shape":[0],"data_offsets":[19,19],"more":' + b"[" * 200 + b"]" * 200 + b"}",
        b'"c":{"dtype":"F32","shape":[0],"data_offsets":[19,19],"dtype":"F32"}',
    ],
    ids=["size", "product", "NaN", "infinite", "surrogate", "depth", "twice"],
)
def test_what_only_a_strict_parser_refuses(extra: bytes, tmp_path: Path) -> None:
    header = VALID[8 : VALID.rfind(b"}") + 1]
    assert not (tmp_path / NAME).exists()
    assert agree(tmp_path, shard(header[:-1] + b"," + extra + b"}", bytes(19)))
    assert not takes(tmp_path)
