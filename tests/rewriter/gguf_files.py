"""GGUF files written by hand, after the format's description, for tests of the rewriter's own reader.

The small model looks like a DeepSeek-V3 in llama.cpp's names: a dense layer first, then layers with stacked experts and a
selection bias each.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

U16, U32, I32, F32, BOOL, STRING, ARRAY = 2, 4, 5, 6, 7, 8, 9
ALIGNMENT = 32
TYPE_NUMBERS = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_K": 12}
BLOCKS = {"F32": (1, 4), "F16": (1, 2), "Q8_0": (32, 34), "Q4_K": (256, 144)}
ARCHITECTURE = "deepseek2"
NUM_LAYERS, NUM_DENSE, NUM_EXPERTS, TOP_K, NUM_GROUPS, GROUPS_KEPT = 5, 1, 16, 4, 4, 2


class Value(NamedTuple):
    """A metadata value: the format's type number, and the number or string."""

    kind: int
    value: Any


class Tensor(NamedTuple):
    """A tensor as it goes into a file; its shape with the slowest dimension first."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def string(text: str) -> bytes:
    """A string of the format: its length in bytes, then the bytes."""
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def packed(value: Value) -> bytes:
    """A metadata value behind its type."""
    kind, content = value
    if kind == STRING:
        return struct.pack("<I", kind) + string(content)
    if kind == ARRAY:
        if content and isinstance(content[0], str):
            return struct.pack("<IIQ", kind, STRING, len(content)) + b"".join(map(string, content))
        return struct.pack(f"<IIQ{len(content)}i", kind, I32, len(content), *content)
    return struct.pack("<I" + {U16: "H", U32: "I", I32: "i", F32: "f", BOOL: "?"}[kind], kind, content)


def info(name: str, tensor: Tensor, offset: int) -> bytes:
    """A tensor's info."""
    lengths = tuple(reversed(tensor.shape))
    return string(name) + struct.pack(
        f"<I{len(lengths)}QIQ", len(lengths), *lengths, TYPE_NUMBERS[tensor.dtype], offset
    )


def gguf_bytes(metadata: Mapping[str, Value], tensors: Mapping[str, Tensor], *, alignment: int = ALIGNMENT) -> bytes:
    """A whole file."""
    infos, body, position = b"", b"", 0
    for name, tensor in tensors.items():
        infos += info(name, tensor, position)
        body += tensor.data + bytes(-len(tensor.data) % alignment)
        position = len(body)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata))
    head += b"".join(string(key) + packed(value) for key, value in metadata.items()) + infos
    return head + bytes(-len(head) % alignment) + body


def model_metadata(**changes: Value | None) -> dict[str, Value]:
    """The metadata of the small model; keys of `changes` are given without the architecture, None removes one."""
    numbers = {
        "block_count": NUM_LAYERS,
        "leading_dense_block_count": NUM_DENSE,
        "expert_count": NUM_EXPERTS,
        "expert_used_count": TOP_K,
        "expert_group_count": NUM_GROUPS,
        "expert_group_used_count": GROUPS_KEPT,
        "expert_gating_func": 2,
    }
    values: dict[str, Value | None] = {key: Value(U32, number) for key, number in numbers.items()}
    values |= {"expert_weights_norm": Value(BOOL, True)}
    values |= changes
    made = {
        "general.architecture": Value(STRING, ARCHITECTURE),
        "general.name": Value(STRING, "Tiny"),
        "general.license": Value(STRING, "mit"),
    }
    made |= {f"{ARCHITECTURE}.{key}": value for key, value in values.items() if value is not None}
    made |= {
        "tokenizer.ggml.tokens": Value(ARRAY, [f"t{number}" for number in range(300)]),
        "tokenizer.ggml.token_type": Value(ARRAY, [1] * 300),
    }
    return made


def model_tensors(*, seed: int = 0, hidden: int = 32, expert_dtype: str = "F16") -> dict[str, Tensor]:
    """The tensors of the small model, random."""
    rng = np.random.default_rng(seed)

    def floats(*shape: int, scale: float = 1.0, offset: float = 0.0) -> Tensor:
        return Tensor("F32", shape, (rng.standard_normal(shape) * scale + offset).astype("<f4").tobytes())

    def blocks(dtype: str, *shape: int) -> Tensor:
        elements, size = BLOCKS[dtype]
        return Tensor(dtype, shape, rng.bytes(int(np.prod(shape)) // elements * size))

    tensors = {"token_embd.weight": floats(300, hidden), "output_norm.weight": floats(hidden)}
    for layer in range(NUM_LAYERS):
        tensors[f"blk.{layer}.attn_norm.weight"] = floats(hidden)
        if layer < NUM_DENSE:
            tensors[f"blk.{layer}.ffn_down.weight"] = blocks("F16", hidden, hidden)
            continue
        tensors[f"blk.{layer}.ffn_gate_inp.weight"] = floats(NUM_EXPERTS, hidden)
        tensors[bias_name(layer)] = floats(NUM_EXPERTS, scale=0.5, offset=4.0)
        width = BLOCKS[expert_dtype][0] if BLOCKS[expert_dtype][0] > 1 else 7  # odd, so that padding is needed
        tensors[outputs_name(layer)] = blocks(expert_dtype, NUM_EXPERTS, 5, width)
    return tensors


def bias_name(layer: int) -> str:
    """The selection bias of a layer."""
    return f"blk.{layer}.exp_probs_b.bias"


def outputs_name(layer: int) -> str:
    """What makes the experts' outputs, stacked."""
    return f"blk.{layer}.ffn_down_exps.weight"


def write_model(path: Path, *, metadata: Mapping[str, Value] | None = None, **options: Any) -> Path:
    """Write the small model as one file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gguf_bytes(metadata if metadata is not None else model_metadata(), model_tensors(**options)))
    return path


def split_name(prefix: str, number: int, count: int) -> str:
    """The name of a file of a set, counted from 0."""
    return f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf"


def write_split(
    folder: Path, prefix: str = "tiny", count: int = 3, *, tensors: Mapping[str, Tensor] | None = None
) -> Sequence[Path]:
    """Write the small model as a set of files, as llama-gguf-split does; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = dict(tensors if tensors is not None else model_tensors())
    names, paths = list(chosen), []
    for number in range(count):
        metadata = model_metadata() if number == 0 else {}
        metadata |= {
            "split.no": Value(U16, number),
            "split.count": Value(U16, count),
            "split.tensors.count": Value(I32, len(names)),
        }
        part = names[number * len(names) // count : (number + 1) * len(names) // count]
        path = folder / split_name(prefix, number, count)
        path.write_bytes(gguf_bytes(metadata, {name: chosen[name] for name in part}))
        paths.append(path)
    return paths


def imatrix_bytes(counts: Mapping[int, Any], *, top_k: int = 2, chunk_size: int = 512) -> bytes:
    """A file as llama-imatrix writes it: for each layer the selections of each expert [E], and its number of tokens."""
    metadata = {
        "general.type": Value(STRING, "imatrix"),
        "imatrix.datasets": Value(ARRAY, ["prompts.txt"]),
        "imatrix.chunk_count": Value(U32, 1),
        "imatrix.chunk_size": Value(U32, chunk_size),
    }
    tensors = {}
    for layer, selections in counts.items():
        values = np.asarray(selections, "<f4")
        num_tokens = np.asarray([values.sum() / top_k], "<f4")
        for name, array in (("ffn_down_exps", values), ("ffn_gate_inp", num_tokens)):
            squares = np.ones((len(array), 4), "<f4")
            tensors[f"blk.{layer}.{name}.weight.in_sum2"] = Tensor("F32", squares.shape, squares.tobytes())
            tensors[f"blk.{layer}.{name}.weight.counts"] = Tensor("F32", (len(array), 1), array.tobytes())
    return gguf_bytes(metadata, tensors)
