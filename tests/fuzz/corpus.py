"""Builds the corpus: a small valid input for each parser, and mutations of it."""

import random
import re
import struct
from collections.abc import Callable, Iterator

# A number, a text or a word of a JSON file, which a mutation replaces by one that does not belong there.
SCALAR = re.compile(rb'"(?:[^"\\]|\\.){0,200}"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|true|false|null')
HOSTILE = (
    b"null", b"true", b"-1", b"0", b"-0", b"1.5", b"1e400", b"-1e400", b"NaN", b"-Infinity", b"1e13", b"1E5",
    b"4294967296", b"9223372036854775808", b"18446744073709551616", b"1" * 400, b"1" * 5000,
    b'""', b'"4"', b'"\\ud800"', b'"\\u0000"', b'"\\u202e\\u2066"', b'"\\u001b[31mred\\n\\r"', b'"\\u00001E5\\u0000"',
    b'"---\\n<!-- mote-eval:start -->"', b'"../../../etc/passwd"', b'"' + b"B" * 20_000 + b'"', b'"[[0, 1]]"',
    b"[]", b"{}", b"[null]", b"[1, 2]", b'{"a":1,"a":2}', b"[" * 300 + b"]" * 300, b'{"a":' * 300 + b"1" + b"}" * 300,
    b"[" * 5000, b"[" * 100_000,
)  # fmt: skip
RAW = (
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\r\n",
    b"---\n",
    b"&a [*a, *a]",
    b"\xef\xbb\xbf",
    b'"',
    b"{",
    b"}",
    b"\x1b[2J",
    b",",
)
MAX_LENGTH = 200_000
Mutation = Callable[[random.Random, bytes], bytes]


def mutations(seed: bytes, rng: random.Random) -> Iterator[bytes]:
    """Endless mutations of a valid input, one to three steps away from it."""
    while True:
        data = seed
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            data = rng.choice(MUTATIONS)(rng, data)[:MAX_LENGTH]
        yield data


def replace_scalar(rng: random.Random, data: bytes) -> bytes:
    """A value of another type, size or alphabet in the place of one."""
    found = list(SCALAR.finditer(data))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(HOSTILE) + data[match.end() :]


def swap_scalars(rng: random.Random, data: bytes) -> bytes:
    """A value of the same file in another's place: right by itself, and wrong there."""
    found = list(SCALAR.finditer(data))
    if not found:
        return data
    match, other = rng.choice(found), rng.choice(found)
    return data[: match.start()] + other.group() + data[match.end() :]


def flip_bytes(rng: random.Random, data: bytes) -> bytes:
    """One to eight bytes changed."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """A range taken out, or the end."""
    begin = rng.randrange(len(data) + 1)
    return data[:begin] if rng.random() < 0.4 else data[:begin] + data[begin + rng.randint(1, 40) :]


def repeat(rng: random.Random, data: bytes) -> bytes:
    """A range that stands twice."""
    begin = rng.randrange(len(data) + 1)
    end = begin + rng.randint(1, 200)
    return data[:end] + data[begin:end] + data[end:]


def insert(rng: random.Random, data: bytes) -> bytes:
    """Bytes that mean something to a parser, where they do not belong."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.choice(RAW) + data[place:]


MUTATIONS: tuple[Mutation, ...] = (
    replace_scalar,
    replace_scalar,
    replace_scalar,
    swap_scalars,
    flip_bytes,
    cut,
    repeat,
    insert,
)


def with_header_length(rng: random.Random, data: bytes) -> bytes:
    """A mutated safetensors file whose first eight bytes fit its header again, so that the header is looked at."""
    end = data.rfind(b"}") + 1
    if end < 9 or rng.random() < 0.3:
        return data
    return struct.pack("<Q", end - 8) + data[8:]
