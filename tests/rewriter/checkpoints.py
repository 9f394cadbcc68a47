"""Cheap checkpoints for the rewriter's tests: bytes written by hand, without torch, so that a test costs milliseconds.

They look like a small DeepSeek-V3: a dense layer first, then layers with routed experts, each with a selection bias. Headers
have odd lengths on purpose, as in DeepSeek-R1.
"""

import hashlib
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

NUMPY_DTYPES: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
}
CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "num_hidden_layers": 5,
    "first_k_dense_replace": 1,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "n_group": 4,
    "topk_group": 2,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "rms_norm_eps": 1e-06,
    "auto_map": {"AutoModelForCausalLM": "modeling_custom.CustomForCausalLM"},
    "an_unknown_key": {"kept": [1, 2.50, None]},
}
NUM_SHARDS = 4
INDEX = "model.safetensors.index.json"


class Tensor(NamedTuple):
    """A tensor as it goes into a shard."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def random_tensor(
    rng: np.random.Generator, dtype: str, shape: tuple[int, ...], scale: float = 1.0, offset: float = 0.0
) -> Tensor:
    """Normal numbers in a dtype."""
    values = (rng.standard_normal(shape) * scale + offset).astype(NUMPY_DTYPES[dtype])
    return Tensor(dtype, shape, values.tobytes())


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, str] | None = None, padding: int = 0
) -> None:
    """Write a safetensors file with the tensors in the order given and `padding` spaces behind the header's JSON."""
    document: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, tensor in tensors.items():
        end = position + len(tensor.data)
        document[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(document, separators=(",", ":")).encode() + b" " * padding
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in tensors.values()))


def build_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    num_shards: int = NUM_SHARDS,
    bias_dtype: str = "F32",
    expert_dtype: str = "F8_E4M3",
    hidden: int = 8,
    **changes: Any,
) -> Path:
    """Write a checkpoint of CONFIG with `changes`; None removes a key. hidden: size of the experts, and so of the shards."""
    rng = np.random.default_rng(seed)
    config = {key: value for key, value in (CONFIG | changes).items() if value is not None}
    tensors: dict[str, Tensor] = {"model.embed_tokens.weight": random_tensor(rng, "BF16", (32, hidden))}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors[f"{prefix}input_layernorm.weight"] = random_tensor(rng, "BF16", (hidden + 1,))  # odd on purpose
        if layer < config["first_k_dense_replace"]:
            tensors[f"{prefix}mlp.down_proj.weight"] = random_tensor(rng, "BF16", (hidden, hidden))
            continue
        num_experts = config["n_routed_experts"]
        tensors[f"{prefix}mlp.gate.weight"] = random_tensor(rng, "BF16", (num_experts, hidden))
        tensors[bias_name(layer)] = random_tensor(rng, bias_dtype, (num_experts,), 0.5, 4.0)
        for expert in range(num_experts):
            tensors[down_proj_name(layer, expert)] = random_tensor(rng, expert_dtype, (hidden, hidden - 1))
    folder.mkdir(parents=True)
    names = list(tensors)
    weight_map = {}
    for number in range(num_shards):
        shard = shard_name(number, num_shards)
        chosen = names[number * len(names) // num_shards : (number + 1) * len(names) // num_shards]
        write_shard(
            folder / shard, {name: tensors[name] for name in chosen}, metadata={"format": "pt"}, padding=number % 3
        )
        weight_map |= dict.fromkeys(chosen, shard)
    total = sum(len(tensor.data) for tensor in tensors.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", config)
    write_json(folder / "tokenizer.json", {"version": "1.0"})
    write_json(folder / "generation_config.json", {"temperature": 0.6})
    (folder / "modeling_custom.py").write_text("# remote code\n")
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [conversational]\n---\n\n# Base\n")
    return folder


def memory_folder() -> Path | None:
    """A folder on a filesystem in memory, where Linux has one that can be written."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and os.access(shared, os.W_OK) else None


def write_json(path: Path, document: Any) -> Path:
    """Write a JSON file; returns its path."""
    path.write_text(json.dumps(document, indent=2))
    return path


def write_set(path: Path, pairs: list[tuple[int, int]], /, **changes: Any) -> Path:
    """Write an expert set; returns its path."""
    document = {
        "schema": "mote.expert-set/1",
        "layer_index": "model",
        "behavior": path.stem,
        "experts": [{"layer": layer, "expert": expert} for layer, expert in pairs],
    }
    return write_json(path, document | changes)


def bias_name(layer: int) -> str:
    """The selection bias of a layer."""
    return f"model.layers.{layer}.mlp.gate.e_score_correction_bias"


def down_proj_name(layer: int, expert: int) -> str:
    """What makes an expert's output."""
    return f"model.layers.{layer}.mlp.experts.{expert}.down_proj.weight"


def shard_name(number: int, num_shards: int = NUM_SHARDS) -> str:
    """A shard's file name, counted from 0."""
    return f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"


def shard_of(folder: Path, tensor: str) -> Path:
    """The shard that holds a tensor, by the index."""
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][tensor]


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A shard's header and the first byte behind it."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), 8 + length


def rewrite_header(path: Path, change: Any) -> None:
    """Replace a shard's header by what `change` makes of the parsed one: an object, or the header's bytes."""
    document, body = read_header(path)
    made = change(document)
    text = made if isinstance(made, bytes) else json.dumps(made, separators=(",", ":")).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + path.read_bytes()[body:])


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, read in the plainest way."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        document, body = read_header(path)
        data = path.read_bytes()
        for name, line in document.items():
            if name != "__metadata__":
                begin, end = line["data_offsets"]
                tensors[name] = Tensor(line["dtype"], tuple(line["shape"]), data[body + begin : body + end])
    return tensors


def values_of(tensor: Tensor) -> Any:
    """A tensor's numbers."""
    return np.frombuffer(tensor.data, NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)


def tree_state(folder: Path) -> dict[str, tuple[Any, ...]]:
    """All that a write would change of a folder: names, contents, sizes, times of change, link targets.

    Link counts and change times are left out, since hard links to a file count as neither its change nor a write.
    """
    state: dict[str, tuple[Any, ...]] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        status = path.lstat()
        if path.is_symlink():
            content: Any = path.readlink()
        else:
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        state[str(path.relative_to(folder))] = (
            content,
            status.st_size,
            status.st_mtime_ns,
            status.st_mode,
            status.st_ino,
        )
    return state


class MemoryFolder:
    """A checkpoint folder in memory, for properties tried on hundreds of them (a ByteSource)."""

    name = "memory"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def size_bytes(self, file_name: str) -> int | None:
        """Size of a file, or None when there is no such file."""
        return len(self.files[file_name]) if file_name in self.files else None

    def read(self, file_name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes of a file from `offset`."""
        return self.files[file_name][offset : offset + size]


def one_router(bias: Any, dtype: str, **config: Any) -> MemoryFolder:
    """A checkpoint in memory whose only MoE layer, 1, has this bias [E]."""
    data = np.asarray(bias, NUMPY_DTYPES[dtype]).tobytes()
    header = {bias_name(1): {"dtype": dtype, "shape": [len(bias)], "data_offsets": [0, len(data)]}}
    text = json.dumps(header).encode()
    full = CONFIG | {"num_hidden_layers": 2, "n_routed_experts": len(bias)} | config
    return MemoryFolder(
        {"config.json": json.dumps(full).encode(), "model.safetensors": struct.pack("<Q", len(text)) + text + data}
    )
