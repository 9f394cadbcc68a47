"""Tiny checkpoints with random weights, saved by transformers' own classes, that unmodified vLLM can load on a CPU."""

import json
from pathlib import Path
from typing import Any

# vLLM's CPU backend for multi-head latent attention wants R1's own latent sizes: 512 + 64.
TINY_R1_CONFIG: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "kv_lora_rank": 512,
    "max_position_embeddings": 1024,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 32,
    "moe_layer_freq": 1,
    "n_group": 4,
    "n_routed_experts": 16,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 64,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    # R1's kind of scaling with a factor of 1 that scales nothing: vLLM 0.32's CPU kernel rotates latent-attention queries
    # wrongly where a config has no scaling (it takes heads for tokens), and rightly through this one.
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 1024,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 2,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 512,
}


def build_tiny_r1(folder: Path, seed: int = 0, num_shards: int = 4, **changes: Any) -> Path:
    """Write a random DeepSeek-V3 checkpoint with R1's config keys, tensor names and latent sizes, in several shards."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = TINY_R1_CONFIG | changes
    torch.manual_seed(seed)
    model = DeepseekV3ForCausalLM(
        DeepseekV3Config(**{key: value for key, value in config.items() if key != "architectures"})
    ).to(torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Wider than the default initialisation, so that tokens do not all route alike.
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3 if name.endswith("gate.weight") else 0.08)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(4 + torch.randn(buffer.shape) * 0.05)
    single = folder.with_name(f"{folder.name}-single")
    model.save_pretrained(single)
    with safe_open(single / "model.safetensors", "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    tensors = {
        name: tensor.float() if name.endswith("e_score_correction_bias") else tensor for name, tensor in tensors.items()
    }
    folder.mkdir(parents=True)
    _write_shards(folder, tensors, num_shards, save_file)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 1}) + "\n")
    write_tiny_tokenizer(folder, config["vocab_size"])
    for leftover in single.iterdir():
        leftover.unlink()
    single.rmdir()
    return folder


def described_tiny_r1(folder: Path) -> Path:
    """What describes the tiny R1, without weights: config and tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TINY_R1_CONFIG))
    write_tiny_tokenizer(folder, TINY_R1_CONFIG["vocab_size"])
    return folder


def _write_shards(folder: Path, tensors: dict[str, Any], num_shards: int, save_file: Any) -> None:
    """Spread tensors over shards in the order of their layers, with an index."""
    names = sorted(tensors, key=lambda name: [int(part) if part.isdigit() else -1 for part in name.split(".")])
    weight_map = {}
    for number in range(num_shards):
        shard = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        chosen = names[number * len(names) // num_shards : (number + 1) * len(names) // num_shards]
        save_file({name: tensors[name].contiguous() for name in chosen}, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(chosen, shard)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_tiny_tokenizer(folder: Path, vocabulary_size: int) -> None:
    """A byte-level tokenizer without merges, with R1's style of special tokens and a January-2025 chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<user>", "<assistant>", "<think>", "</think>"]
    pieces = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    assert len(pieces) <= vocabulary_size
    tokenizer = Tokenizer(models.BPE(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>")
    fast.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    fast.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}<user>{{ message.content }}"
        "{% else %}<assistant>{{ message.content }}<eos>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    fast.save_pretrained(folder)
