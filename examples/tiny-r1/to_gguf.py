"""Writes the miniature as GGUF, the way llama.cpp's converter does: same names, types, bytes and metadata.

usage: python examples/tiny-r1/to_gguf.py OUT.gguf [--type BF16|F16|F32|Q8_0|Q4_0|...] [--max-tensors N] [--model FOLDER]

The converter itself refuses the miniature, whose pre-tokenizer it does not know; llama.cpp's `gpt-2` one gives the same tokens on
every prompt. Needs the `gguf` package.
"""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import yaml

from rewriter.checkpoint.reader import Checkpoint

HERE = Path(__file__).resolve().parent
ARCHITECTURE = "deepseek2"
SIGMOID = 2  # llama.cpp's number for that gating function
CONTROL, USER_DEFINED, NORMAL = 3, 4, 1
NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "norm.weight": "output_norm.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
} | {
    f"mlp.{part}{kind}_proj.weight": f"ffn_{kind}{tail}.weight"
    for part, tail in (("", ""), ("shared_experts.", "_shexp"))
    for kind in ("gate", "up", "down")
}
EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate|up|down)_proj\.weight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, metavar="OUT.gguf")
    parser.add_argument("--type", default="BF16", help="of the matrices; norms, routers and biases are F32 in all")
    parser.add_argument("--max-tensors", type=int, default=0, metavar="N", help="split into files of N tensors each")
    parser.add_argument("--model", type=Path, default=HERE)
    arguments = parser.parse_args()
    convert(arguments.model, arguments.output, arguments.type, arguments.max_tensors)


def convert(model: Path, output: Path, kind: str = "BF16", max_tensors: int = 0) -> None:
    """Write a folder of the miniature's make as one GGUF file, or as a split with `max_tensors` tensors a file."""
    checkpoint = Checkpoint.open(model)
    output.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(output, ARCHITECTURE, split_max_tensors=max_tensors)
    add_metadata(writer, checkpoint.config, model, kind)
    quantization = gguf.GGMLQuantizationType[kind]
    for name, values in tensors(checkpoint):
        # As the converter decides: vectors and routers stay float32.
        is_plain = values.ndim == 1 or name.endswith("ffn_gate_inp.weight")
        data = values if is_plain else gguf.quants.quantize(values, quantization)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.F32 if is_plain else quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors under llama.cpp's names, float32, the experts of a layer stacked."""
    config = checkpoint.config
    experts: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for name in sorted(checkpoint.weight_map):
        tail = name.removeprefix("model.")
        block = re.match(r"layers\.(\d+)\.(.+)", tail)
        prefix, tail = (f"blk.{block[1]}.", block[2]) if block else ("", tail)
        values, expert = read(checkpoint, name), EXPERT.fullmatch(tail)
        if expert:
            stacked = experts.setdefault((prefix, expert[2]), {})
            stacked[int(expert[1])] = values
            if len(stacked) == config["n_routed_experts"]:
                yield f"{prefix}ffn_{expert[2]}_exps.weight", np.stack([stacked[key] for key in sorted(stacked)])
        elif tail == "self_attn.kv_b_proj.weight":
            heads = values.reshape(config["num_attention_heads"], -1, config["kv_lora_rank"])
            keys, of_values = np.split(heads, [config["qk_nope_head_dim"]], axis=1)
            yield f"{prefix}attn_k_b.weight", np.ascontiguousarray(keys.transpose(0, 2, 1))
            yield f"{prefix}attn_v_b.weight", np.ascontiguousarray(of_values)
        else:
            yield prefix + ("output.weight" if tail == "lm_head.weight" else NAMES[tail]), values


def read(checkpoint: Checkpoint, name: str) -> np.ndarray:
    """One tensor as float32."""
    entry = checkpoint.find((name,))
    assert entry is not None  # the weight map names it
    dtype = {"BF16": ml_dtypes.bfloat16, "F32": np.float32}[entry.dtype]
    return np.frombuffer(checkpoint.read(entry), dtype).reshape(entry.shape).astype(np.float32)


def add_metadata(writer: gguf.GGUFWriter, config: dict[str, Any], model: Path, kind: str) -> None:
    """The metadata: what the card says, the architecture's numbers, the tokenizer, the chat template."""
    card = HERE / "README.md"
    front = yaml.safe_load(card.read_text("utf-8").split("---")[1])
    writer.add_type("model")
    writer.add_name("Tiny R1")
    writer.add_size_label("128x1.9M")
    writer.add_license(front["license"])
    writer.add_tags([*front["tags"], front["pipeline_tag"]])
    writer.add_languages(front["language"])
    scaling = config["rope_scaling"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)  # attention over the latent has one key and value head
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling["factor"])
    writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(scaling["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(scaling["beta_slow"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_group_count(config["n_group"])
    writer.add_expert_group_used_count(config["topk_group"])
    writer.add_uint32(f"{ARCHITECTURE}.expert_gating_func", SIGMOID)
    writer.add_key_length(config["kv_lora_rank"] + config["qk_rope_head_dim"])
    writer.add_value_length(config["kv_lora_rank"])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}" if kind != "F32" else "ALL_F32"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length_mla(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    writer.add_float32(f"{ARCHITECTURE}.rope.scaling.yarn_log_multiplier", 0.1 * scaling["mscale_all_dim"])
    writer.add_quantization_version(2)
    add_tokenizer(writer, config, model)


def add_tokenizer(writer: gguf.GGUFWriter, config: dict[str, Any], model: Path) -> None:
    """The tokenizer and the chat template, the same for both miniatures."""
    tokenizer = json.loads((model / "tokenizer.json").read_text("utf-8"))
    vocabulary = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    added = {token["content"]: CONTROL if token["special"] else USER_DEFINED for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([added.get(token, NORMAL) for token in vocabulary])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["eos_token_id"])
    writer.add_chat_template((model / "chat_template.jinja").read_text("utf-8"))


if __name__ == "__main__":
    main()
