"""What a model folder is, by its content: the answer to "are these the weights that the earlier run had?".

A name and a config tell nothing, since fine-tunes share both, and hashing all of 689 GB would take the better part of an
hour. So this reads what two models cannot both have alike: every weight file's name, size and header, its one-dimensional
tensors of up to 64 KiB in full (router biases and norms, where an edit of a few bytes lies), blocks spread evenly over the
file, and files of up to 32 MiB whole. What it cannot see: an edit of nothing but larger tensors, between the blocks, with the
header left as it was (mote-rewrite marks the header of every shard that it edits).
"""

import hashlib
from pathlib import Path

from rewriter.checkpoint.reader import LENGTH_BYTES, SHARD_SUFFIX, Checkpoint
from rewriter.errors import CheckpointError

WEIGHT_SUFFIXES = (SHARD_SUFFIX, ".bin", ".pt", ".pth", ".gguf")
TOKENIZER_NAME = "tokenizer.json"
# Beside the weights, what turns text into tokens and the model into a program.
OTHER_NAMES = (
    "config.json",
    "generation_config.json",
    TOKENIZER_NAME,
    "tokenizer.model",
    "tokenizer_config.json",
    "chat_template.jinja",
)
# What is read in place of a tokenizer.json, and beside one lies unread.
SLOW_TOKENIZER_NAMES = ("merges.txt", "tiktoken.model", "vocab.json")
WHOLE_BYTES = 32 << 20
SMALL_TENSOR_BYTES = 64 << 10
BLOCK_BYTES = 4096
NUM_BLOCKS = 16


def content_sha256(folder: str | Path) -> str:
    """SHA-256 (hexadecimal) that stands for the weights, config and tokenizer of a model folder, see above for its reach.

    Raises: CheckpointError when the folder or a file cannot be read, or a shard is damaged.
    """
    checkpoint = Checkpoint.open(folder)
    digest = hashlib.sha256(b"mote.content/1")
    try:
        names = {path.name for path in Path(folder).iterdir() if path.suffix in WEIGHT_SUFFIXES}
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed ({error.strerror})") from None
    names.update(OTHER_NAMES)
    if checkpoint.source.size_bytes(TOKENIZER_NAME) is None:
        names.update(SLOW_TOKENIZER_NAMES)
    for name in sorted(names):
        size = checkpoint.source.size_bytes(name)
        if size is None:
            continue
        digest.update(f"\0{name}\0{size}\0".encode("utf-8", "surrogateescape"))
        digest.update(_file_digest(checkpoint, name, size))
    return digest.hexdigest()


def _file_digest(checkpoint: Checkpoint, name: str, size: int) -> bytes:
    """The SHA-256 of a file's telling parts."""
    digest = hashlib.sha256()
    for offset, length in _parts(checkpoint, name, size):
        end = offset + length
        while offset < end:  # one read may return less than asked for
            part = checkpoint.source.read(name, offset, min(end - offset, 1 << 20))
            if not part:
                break
            digest.update(part)
            offset += len(part)
    return digest.digest()


def _parts(checkpoint: Checkpoint, name: str, size: int) -> list[tuple[int, int]]:
    """(offset, length) of what is read of one file."""
    if size <= max(WHOLE_BYTES, NUM_BLOCKS * BLOCK_BYTES):
        return [(0, size)]
    step = (size - BLOCK_BYTES) / (NUM_BLOCKS - 1)
    parts = [(round(number * step), BLOCK_BYTES) for number in range(NUM_BLOCKS)]
    if name.endswith(SHARD_SUFFIX):
        header = checkpoint.header(name)
        parts.insert(0, (0, LENGTH_BYTES + header.length))
        parts += [
            (tensor.offset, tensor.size_bytes)
            for tensor in header.tensors.values()
            if len(tensor.shape) == 1 and tensor.size_bytes <= SMALL_TENSOR_BYTES
        ]
    return parts
