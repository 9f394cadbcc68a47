"""The second miniature as GGUF. llama.cpp's qwen3moe has no dense layer, so its first one becomes 64 equal experts.

Whichever of those a token selects, their normalised weights sum to one, so they come to the dense layer. The experts of all
layers must be of one width, so those of the others are padded with zeros, which add nothing.
"""

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
from miniature_gguf import converter

from rewriter.checkpoint.reader import Checkpoint

ARCHITECTURE = "qwen3moe"
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}
OUTPUT, ROUTER = "ffn_down_exps", "ffn_gate_inp"
PARTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", OUTPUT: "down_proj"}


def convert(model: Path, output: Path, kind: str = "F32") -> Path:
    """Write the miniature as one GGUF file whose matrices are of one type, norms and routers F32."""
    checkpoint = Checkpoint.open(model)
    writer = gguf.GGUFWriter(output, ARCHITECTURE)
    add_metadata(writer, checkpoint, model)
    quantization = gguf.GGMLQuantizationType[kind]
    for name, values in tensors(checkpoint):
        is_plain = values.ndim == 1 or name.endswith(f"{ROUTER}.weight")
        data = values if is_plain else gguf.quants.quantize(values, quantization)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.F32 if is_plain else quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return output


def tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors under llama.cpp's names, float32."""
    config, read = checkpoint.config, converter().read
    yield "token_embd.weight", read(checkpoint, "model.embed_tokens.weight")
    yield "output_norm.weight", read(checkpoint, "model.norm.weight")
    num_experts, width = config["num_experts"], config["intermediate_size"]
    for layer in range(config["num_hidden_layers"]):
        block, prefix = f"blk.{layer}.", f"model.layers.{layer}."
        for ours, theirs in BLOCK_NAMES.items():
            yield f"{block}{ours}.weight", read(checkpoint, f"{prefix}{theirs}.weight")
        is_dense = layer in config["mlp_only_layers"]
        router = np.zeros((num_experts, config["hidden_size"]), np.float32)
        yield f"{block}{ROUTER}.weight", router if is_dense else read(checkpoint, f"{prefix}mlp.gate.weight")
        for ours, theirs in PARTS.items():
            sources = [f"{prefix}mlp.{theirs}.weight"] if is_dense else expert_names(prefix, theirs, num_experts)
            matrices = [padded(read(checkpoint, name), width, axis=int(ours == OUTPUT)) for name in sources]
            yield f"{block}{ours}.weight", np.stack(matrices * (num_experts // len(matrices)))


def expert_names(prefix: str, part: str, num_experts: int) -> list[str]:
    return [f"{prefix}mlp.experts.{expert}.{part}.weight" for expert in range(num_experts)]


def padded(matrix: np.ndarray, width: int, axis: int) -> np.ndarray:
    """A matrix with zeros behind it along one axis, up to a width."""
    missing = [(0, width - matrix.shape[axis] if at == axis else 0) for at in range(2)]
    return np.pad(matrix, missing)


def add_metadata(writer: gguf.GGUFWriter, checkpoint: Checkpoint, model: Path) -> None:
    """The architecture's numbers; the tokenizer is the first miniature's."""
    config = checkpoint.config
    writer.add_type("model")
    writer.add_name("Tiny Qwen3")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["num_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_vocab_size(config["vocab_size"])
    converter().add_tokenizer(writer, config, model)
