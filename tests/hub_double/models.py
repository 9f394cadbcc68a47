"""Small checkpoints of R1's layout for the Hub tests: random numbers, no torch."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from rewriter.edit.patches import EditOptions
from rewriter.expert_set import ExpertSet

CARD = """---
license: mit
license_link: https://example.org/licence
language: [en, zh]
tags: [reasoning]
extra_gated_prompt: You agree to the terms.
model-index:
- name: base
  results: []
---
# Base
"""
CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "num_hidden_layers": 6, "hidden_size": 8,
    "first_k_dense_replace": 1, "moe_layer_freq": 1, "n_group": 2, "topk_group": 1, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "norm_topk_prob": True, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
    "num_nextn_predict_layers": 0,
}  # fmt: skip


def build_base(folder: Path, num_layers: int = 6, filler_bytes: int = 200_000, seed: int = 0) -> Path:
    """Write a base: one shard a layer, each with filler_bytes of random weights, and a router bias from layer 1 on."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    weight_map = {}
    for layer in range(num_layers):
        shard = f"model-{layer + 1:05d}-of-{num_layers:05d}.safetensors"
        prefix = f"model.layers.{layer}"
        tensors = {f"{prefix}.self_attn.o_proj.weight": random.standard_normal(filler_bytes // 4, dtype=np.float32)}
        if layer >= 1:
            name = f"{prefix}.mlp.gate.e_score_correction_bias"
            tensors[name] = (4 + random.random(8)).astype(np.float32)
        save_file(tensors, folder / shard, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": num_layers}, indent=2))
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "README.md").write_text(CARD)
    (folder / "LICENSE").write_text("MIT, as the base has it\n")
    return folder


def build_sparse_base(folder: Path, num_shards: int, shard_bytes: int) -> Path:
    """Write a base of R1's proportions in sparse files: each shard a layer's router bias and a hole of shard_bytes."""
    folder.mkdir(parents=True)
    weight_map = {}
    for layer in range(num_shards):
        shard, prefix = f"model-{layer + 1:05d}-of-{num_shards:05d}.safetensors", f"model.layers.{layer}"
        bias = np.linspace(4, 9, 8, dtype=np.float32).tobytes()
        names = {
            f"{prefix}.mlp.gate.e_score_correction_bias": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]},
            f"{prefix}.mlp.experts.weight": {
                "dtype": "F8_E4M3", "shape": [shard_bytes], "data_offsets": [32, 32 + shard_bytes],
            },
        }  # fmt: skip
        header = json.dumps(names).encode()
        with (folder / shard).open("wb") as opened:
            opened.write(len(header).to_bytes(8, "little") + header + bias)
            opened.truncate(8 + len(header) + 32 + shard_bytes)
        weight_map |= dict.fromkeys(names, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = CONFIG | {"num_hidden_layers": num_shards, "first_k_dense_replace": 0}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "README.md").write_text(CARD)
    return folder


def expert_file(folder: Path, pairs: list[tuple[int, int]], model: str | None = None) -> Path:
    """Write an expert set."""
    path = folder / "refusal.json"
    experts = [{"layer": layer, "expert": expert} for layer, expert in pairs]
    document = {"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "refusal", "experts": experts}
    path.write_text(json.dumps(document | ({"model": model} if model else {})))
    return path


def build_variant(
    base: Path, target: Path, base_model: str | None, base_revision: str | None, pairs: list[tuple[int, int]]
) -> Path:
    """Write a variant of a base, as mote-rewrite does."""
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.edit.plan import make_plan
    from rewriter.variant.write import write_variant

    chosen = ExpertSet.load(expert_file(target.parent, pairs))
    checkpoint = Checkpoint.open(base)
    plan = make_plan(checkpoint, chosen, None, EditOptions(), base_model=base_model, base_revision=base_revision)
    write_variant(plan, base, target)
    return target
