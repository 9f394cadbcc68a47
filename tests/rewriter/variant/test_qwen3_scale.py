"""README's command for Qwen3-30B-A3B on a checkpoint of its names, shapes and size (61 GB apparent), mostly holes.

The config and the tensor names are those of the published model; routers and the experts that are suppressed hold random numbers.
"""

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path

import numpy as np
import pytest
from checkpoints import shard_of, write_set
from commands import Command

pytestmark = pytest.mark.slow
HIDDEN, LAYERS, EXPERTS, EXPERT_WIDTH, VOCABULARY = 2048, 48, 128, 768, 151936
SHARD_BYTES = 4_000_000_000
EXPERT = 7
CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_size": HIDDEN,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": EXPERT_WIDTH,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 8,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": VOCABULARY,
}


def tensors() -> Iterator[tuple[str, list[int]]]:
    """Names and shapes in order."""
    yield "lm_head.weight", [VOCABULARY, HIDDEN]
    yield "model.embed_tokens.weight", [VOCABULARY, HIDDEN]
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}"
        for expert in range(EXPERTS):
            yield f"{stem}.mlp.experts.{expert}.down_proj.weight", [HIDDEN, EXPERT_WIDTH]
            yield f"{stem}.mlp.experts.{expert}.gate_proj.weight", [EXPERT_WIDTH, HIDDEN]
            yield f"{stem}.mlp.experts.{expert}.up_proj.weight", [EXPERT_WIDTH, HIDDEN]
        yield f"{stem}.mlp.gate.weight", [EXPERTS, HIDDEN]
        for norm, size in (("input_layernorm", HIDDEN), ("post_attention_layernorm", HIDDEN)):
            yield f"{stem}.{norm}.weight", [size]
        for norm in ("k_norm", "q_norm"):
            yield f"{stem}.self_attn.{norm}.weight", [128]
        for name, rows, columns in (("k", 512, HIDDEN), ("v", 512, HIDDEN), ("q", 4096, HIDDEN), ("o", HIDDEN, 4096)):
            yield f"{stem}.self_attn.{name}_proj.weight", [rows, columns]
    yield "model.norm.weight", [HIDDEN]


def build(folder: Path) -> Path:
    """Write the checkpoint."""
    folder.mkdir()
    shards: list[list[tuple[str, list[int]]]] = [[]]
    size_bytes = 0
    for name, shape in tensors():
        if size_bytes + 2 * prod(shape) > SHARD_BYTES:
            shards.append([])
            size_bytes = 0
        shards[-1].append((name, shape))
        size_bytes += 2 * prod(shape)
    generator = np.random.default_rng(0)
    weight_map = {}
    for number, members in enumerate(shards, start=1):
        shard = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, end = {}, 0
        for name, shape in members:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
            end += 2 * prod(shape)
            weight_map[name] = shard.name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with shard.open("wb") as opened:
            opened.write(struct.pack("<Q", len(text)) + text)
            opened.truncate(8 + len(text) + end)
            for name, shape in members:
                if name.endswith("mlp.gate.weight") or f"experts.{EXPERT}.down_proj" in name:
                    numbers = generator.standard_normal(prod(shape), dtype=np.float32) * 0.02
                    opened.seek(8 + len(text) + header[name]["data_offsets"][0])
                    opened.write((numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def read_bf16(folder: Path, name: str) -> np.ndarray:
    """A tensor as float32."""
    with shard_of(folder, name).open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        entry = json.loads(opened.read(length))[name]
        start, end = entry["data_offsets"]
        opened.seek(8 + length + start)
        raw = np.frombuffer(opened.read(end - start), np.uint16)
    return (raw.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def test_the_first_line_for_qwen3_30b_a3b_works(tmp_path: Path, mote_rewrite: Command, mote_verify: Command) -> None:
    base, out = build(tmp_path / "base"), tmp_path / "Qwen3-mote-refusal"
    chosen = write_set(tmp_path / "refusal.json", [(layer, EXPERT) for layer in range(20, 30)])
    command = ("--model", base, "--suppress", chosen, "-o", out)
    planned = mote_rewrite(*command, "--dry-run")
    assert planned.code == 0, planned.stderr
    assert "layer 29: suppress 7 (reroute (centroid)" in planned.stdout
    assert not out.exists()

    written = mote_rewrite(*command)
    assert written.code == 0, written.stderr
    gate, down = "model.layers.20.mlp.gate.weight", f"model.layers.20.mlp.experts.{EXPERT}.down_proj.weight"
    rows, others = read_bf16(base, gate), [row for row in range(EXPERTS) if row != EXPERT]
    edited = read_bf16(out, gate)
    np.testing.assert_array_equal(edited[others], rows[others])
    np.testing.assert_allclose(edited[EXPERT], rows[others].mean(0, dtype=np.float64), rtol=2**-8)
    assert read_bf16(base, down).any() and not read_bf16(out, down).any()

    proven = mote_verify(out, "--base", base)
    assert proven.code == 0, proven.stderr
    assert "proved from the bytes: reroute (centroid)" in proven.stdout
