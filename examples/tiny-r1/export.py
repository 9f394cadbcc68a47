"""Writes a trained miniature as a checkpoint folder that stock runtimes load."""

import json
import os
from pathlib import Path

import tokens
import torch
from model import AnyConfig, Miniature, ModelConfig, named_tensors
from qwen import QwenConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer

CONFIGS: dict[str, type[ModelConfig] | type[QwenConfig]] = {"deepseek_v3": ModelConfig, "qwen3_moe": QwenConfig}


def shard_of(name: str, config: AnyConfig) -> int:
    """Dense layers and the embedding first, a shard for each MoE layer, the norm and the head last."""
    if not name.startswith("model.layers."):
        return 0 if "embed_tokens" in name else len(config.moe_layers) + 1
    return max(0, int(name.split(".")[2]) - config.moe_layers[0] + 1)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def export(model: Miniature, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, shards, index, tokenizer and generation settings into the folder, replacing older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config
    shards: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in named_tensors(model).items():
        shards.setdefault(shard_of(name, config), {})[name] = tensor.contiguous()
    for old in folder.glob("model-*.safetensors"):
        old.unlink()
    weight_map: dict[str, str] = {}
    for number, tensors in sorted(shards.items()):
        file_name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file_name, metadata={"format": "pt"})
        (folder / file_name).chmod(0o644)
        weight_map |= dict.fromkeys(tensors, file_name)
    total_size = sum(t.numel() * t.element_size() for tensors in shards.values() for t in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
    _write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=1) + "\n")
    bos, eos = (tokenizer.token_to_id(token) for token in (tokens.BOS, tokens.EOS))
    _write_text(folder / "config.json", json.dumps(config.as_config_json(bos, eos), indent=2, sort_keys=True) + "\n")
    generation = {"bos_token_id": bos, "do_sample": False, "eos_token_id": eos, "max_new_tokens": 64}
    _write_text(folder / "generation_config.json", json.dumps(generation, indent=2) + "\n")
    tokens.save_tokenizer(tokenizer, folder)


def round_to_shipped(model: Miniature) -> None:
    """Round the weights to bfloat16 in place, as the shipped ones are; the selection biases stay float32."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())


def load(folder: Path) -> tuple[Miniature, Tokenizer]:
    """The miniature, or an edited copy of it, read back from a checkpoint folder."""
    from safetensors.torch import load_file

    written = json.loads((folder / "config.json").read_text())
    kind = CONFIGS[written["model_type"]]
    fields = kind.__dataclass_fields__
    config = kind(**{key: value for key, value in written.items() if key in fields})
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("model-*.safetensors")):
        tensors |= {name: tensor.float() for name, tensor in load_file(shard).items()}
    state: dict[str, torch.Tensor] = {}
    for layer in config.moe_layers:
        stem = f"model.layers.{layer}.mlp"
        experts = range(config.num_experts)
        gate_up = [
            torch.cat([tensors.pop(f"{stem}.experts.{expert}.{part}_proj.weight") for part in ("gate", "up")])
            for expert in experts
        ]
        state[f"layers.{layer}.mlp.gate_up"] = torch.stack(gate_up)
        down = [tensors.pop(f"{stem}.experts.{expert}.down_proj.weight") for expert in experts]
        state[f"layers.{layer}.mlp.down"] = torch.stack(down)
        state[f"layers.{layer}.mlp.gate_weight"] = tensors.pop(f"{stem}.gate.weight")
        if f"{stem}.gate.e_score_correction_bias" in tensors:
            state[f"layers.{layer}.mlp.bias"] = tensors.pop(f"{stem}.gate.e_score_correction_bias")
    state |= {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    if config.tied:
        state["lm_head.weight"] = state["embed_tokens.weight"]
    model = Miniature(config)
    model.load_state_dict(state)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
