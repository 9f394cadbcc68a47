"""Builders of tiny checkpoints with random weights, one per model family, saved by transformers' own model classes.

They serve tests only: two to four layers, eight experts or so, seconds to build. Nothing is downloaded. The configs hold what
the class needs to be small; what the family table reads from config.json is written by the class itself, so a row that reads
keys which the class does not write fails here.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NUM_EXPERTS = 16
TOP_K = 4
HIDDEN = 32
VOCABULARY = 96

BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
LATENT_ATTENTION: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
INDEXER: dict[str, Any] = {"index_topk": 64, "index_head_dim": 16, "index_n_heads": 2}
# DeepSeek-V3's names for the router, four groups of which two are kept.
GROUPED: dict[str, Any] = {
    "n_routed_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_K,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
UNGROUPED: dict[str, Any] = GROUPED | {"n_group": 1, "topk_group": 1}
NUM_EXPERTS_NAMES: dict[str, Any] = {
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": 16,
}
LOCAL_EXPERTS: dict[str, Any] = {"num_local_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K}
MINIMAX_M3: dict[str, Any] = {"dense_intermediate_size": 48, "shared_intermediate_size": 16, "rotary_dim": 4}
LLAMA4: dict[str, Any] = LOCAL_EXPERTS | {
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 48,
    "interleave_moe_layer_step": 2,
}
GEMMA4: dict[str, Any] = {
    "enable_moe_block": True,
    "num_experts": NUM_EXPERTS,
    "top_k_experts": TOP_K,
    "moe_intermediate_size": 16,
    "hidden_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "global_head_dim": 8,
    "vocab_size_per_layer_input": VOCABULARY,
}
LINEAR_ATTENTION: dict[str, Any] = {
    "shared_expert_intermediate_size": 16,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
DEEPSEEK_V4: dict[str, Any] = (
    BASE
    | {
        "n_routed_experts": NUM_EXPERTS,
        "num_experts_per_tok": TOP_K,
        "moe_intermediate_size": 16,
        "n_shared_experts": 1,
    }
    | {"num_key_value_heads": 1, "head_dim": 16, "q_lora_rank": 16, "o_lora_rank": 16, "o_groups": 2, "hc_mult": 2}
    | {"num_hash_layers": 1, "index_n_heads": 2, "index_head_dim": 16, "index_topk": 8, "qk_rope_head_dim": 8}
    | {"layer_types": ["sliding_attention"] * 3}
)
VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "patch_size": 4,
    "image_size": 8,
    "out_hidden_size": HIDDEN,
}


@dataclass(frozen=True)
class TinyModel:
    """How to build one family's tiny checkpoint."""

    model_type: str
    model_class: str  # name of the class in transformers
    config_class: str
    config: dict[str, Any]
    label: str = ""  # the test's name, where one model_type has several models
    renames: tuple[tuple[str, str], ...] = ()  # parts of tensor names as the class saves them -> as the Hub has them
    config_edits: tuple[tuple[str, Any], ...] = ()  # keys of config.json as the Hub has them; None removes one

    def __str__(self) -> str:
        return self.label or self.model_type


def _model(
    model_type: str,
    prefix: str,
    config: dict[str, Any],
    suffix: str = "ForCausalLM",
    model_prefix: str | None = None,
    **hub_names: Any,
) -> TinyModel:
    return TinyModel(model_type, f"{model_prefix or prefix}{suffix}", f"{prefix}Config", config, **hub_names)


def _nested(text: dict[str, Any], vision: dict[str, Any], **outer: Any) -> dict[str, Any]:
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": False} | outer


TINY_MODELS: tuple[TinyModel, ...] = (
    _model("deepseek_v3", "DeepseekV3", BASE | LATENT_ATTENTION | GROUPED),
    _model("deepseek_v32", "DeepseekV32", BASE | LATENT_ATTENTION | GROUPED | INDEXER),
    _model(
        "kimi_k25",
        "Kimi_K25",
        _nested(
            BASE | LATENT_ATTENTION | GROUPED | {"model_type": "deepseek_v3"},
            {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            | {"patch_size": 4},
            projection_hidden_size=16,
        ),
        "ForConditionalGeneration",
        # transformers 5.19 saves the language model's layers as blocks, which only the vision tower has on the Hub.
        renames=(("language_model.model.blocks.", "language_model.model.layers."),),
    ),
    _model("glm4_moe", "Glm4Moe", BASE | UNGROUPED),
    _model("glm4_moe_lite", "Glm4MoeLite", BASE | LATENT_ATTENTION | UNGROUPED),
    _model("glm_moe_dsa", "GlmMoeDsa", BASE | LATENT_ATTENTION | UNGROUPED | INDEXER),
    _model(
        "glm4v_moe",
        "Glm4vMoe",
        _nested(
            BASE
            | UNGROUPED
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1]}},
            VISION,
        ),
        "ForConditionalGeneration",
    ),
    _model("dots1", "Dots1", BASE | UNGROUPED),
    _model("solar_open", "SolarOpen", BASE | UNGROUPED | {"first_k_dense_replace": 0}),
    _model(
        "mimo_v2_flash",
        "MiMoV2Flash",
        BASE | UNGROUPED | {"v_head_dim": 8},
    ),
    _model("exaone_moe", "ExaoneMoe", BASE | NUM_EXPERTS_NAMES | {"n_group": 1, "topk_group": 1}),
    _model("minimax_m2", "MiniMaxM2", BASE | LOCAL_EXPERTS | {"rotary_dim": 4}),
    _model(
        "minimax_m3_vl",
        "MiniMaxM3VL",
        _nested(
            BASE | LOCAL_EXPERTS | MINIMAX_M3 | {"moe_layer_freq": [0, 1, 1]},
            {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            | {"image_size": 8, "patch_size": 4},
            projector_hidden_size=16,
            pad_token_id=2,
        ),
        "SparseForConditionalGeneration",
        model_prefix="MiniMaxM3",
    ),
    _model(
        "kimi_linear",
        "KimiLinear",
        BASE
        | LATENT_ATTENTION
        | {"linear_head_dim": 8, "linear_num_heads": 2, "q_lora_rank": None}
        | {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | {"num_experts": NUM_EXPERTS, "num_experts_per_token": TOP_K, "num_expert_group": 4, "topk_group": 2}
        | {"moe_intermediate_size": 16},
    ),
    _model("hy_v3", "HYV3", BASE | NUM_EXPERTS_NAMES),
    _model(
        "hy_v4",
        "HYV4",
        BASE
        | LATENT_ATTENTION
        | UNGROUPED
        | INDEXER
        | {"hc_mult": 2, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    ),
    _model("afmoe", "Afmoe", BASE | NUM_EXPERTS_NAMES),
    _model(
        "lfm2_moe",
        "Lfm2Moe",
        BASE | NUM_EXPERTS_NAMES | {"num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    ),
    _model(
        "ernie4_5_moe",
        "Ernie4_5_Moe",
        BASE | {"moe_num_experts": NUM_EXPERTS, "moe_k": TOP_K, "moe_intermediate_size": 16},
    ),
    _model(
        "longcat_flash",
        "LongcatFlash",
        {
            key: value
            for key, value in (BASE | LATENT_ATTENTION).items()
            if key not in ("num_hidden_layers", "intermediate_size")
        }
        | {"num_layers": 2, "ffn_hidden_size": 48, "expert_ffn_hidden_size": 16}
        | {"n_routed_experts": NUM_EXPERTS, "moe_topk": TOP_K, "zero_expert_num": 4},
    ),
    _model(
        "nemotron_h",
        "NemotronH",
        {key: value for key, value in (BASE | UNGROUPED).items() if key != "num_hidden_layers"}
        | {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
            "moe_shared_expert_intermediate_size": 16,
        }
        | {
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": 16,
            "use_mamba_kernels": False,
        },
    ),
    _model(
        "step3p7",
        "Step3p7",
        _nested(
            BASE
            | UNGROUPED
            | {"sliding_window": 32, "share_expert_dim": 16, "mlp_layer_types": ["dense", "sparse", "sparse"]},
            {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
            | {"image_size": 8, "patch_size": 4, "width": 32, "heads": 2, "layers": 1},
        ),
        "ForConditionalGeneration",
    ),
    _model("deepseek_v4", "DeepseekV4", DEEPSEEK_V4),
    _model(
        "deepseek_v4",
        "DeepseekV4",
        DEEPSEEK_V4,
        label="deepseek_v4-hub-names",
        renames=(("model.layers.", "layers."),),
        config_edits=(("mlp_layer_types", None), ("num_hash_layers", 1)),
    ),
    _model("gpt_oss", "GptOss", BASE | LOCAL_EXPERTS),
    _model("mixtral", "Mixtral", BASE | LOCAL_EXPERTS),
    _model("phimoe", "Phimoe", BASE | LOCAL_EXPERTS | {"num_experts_per_tok": 2}),
    _model(
        "qwen2_moe",
        "Qwen2Moe",
        BASE | NUM_EXPERTS_NAMES | {"shared_expert_intermediate_size": 16, "mlp_only_layers": [0]},
    ),
    _model("qwen3_moe", "Qwen3Moe", BASE | NUM_EXPERTS_NAMES | {"mlp_only_layers": [1]}),
    _model("qwen3_next", "Qwen3Next", BASE | NUM_EXPERTS_NAMES | LINEAR_ATTENTION),
    _model("olmoe", "Olmoe", BASE | {"num_experts": NUM_EXPERTS, "num_experts_per_tok": TOP_K}),
    _model("deepseek_v2", "DeepseekV2", BASE | LATENT_ATTENTION | GROUPED | {"topk_method": "group_limited_greedy"}),
    _model("mistral4", "Mistral4", BASE | LATENT_ATTENTION | UNGROUPED | {"head_dim": 16}),
    _model(
        "llama4",
        "Llama4",
        _nested(
            BASE | LLAMA4,
            {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "image_size": 8,
            }
            | {"patch_size": 4, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
        ),
        "ForConditionalGeneration",
    ),
    TinyModel("llama4_text", "Llama4ForCausalLM", "Llama4TextConfig", BASE | LLAMA4),
    TinyModel("gemma4_text", "Gemma4ForCausalLM", "Gemma4TextConfig", BASE | GEMMA4),
    _model("granitemoe", "GraniteMoe", BASE | LOCAL_EXPERTS),
    _model("granitemoeshared", "GraniteMoeShared", BASE | LOCAL_EXPERTS | {"shared_intermediate_size": 16}),
    _model(
        "granitemoehybrid",
        "GraniteMoeHybrid",
        BASE
        | LOCAL_EXPERTS
        | {"shared_intermediate_size": 16, "layer_types": ["mamba", "attention", "mamba"], "mamba_n_heads": 4}
        | {"mamba_d_state": 8, "mamba_d_head": 16, "mamba_chunk_size": 16},
    ),
    _model(
        "qwen3_vl_moe",
        "Qwen3VLMoe",
        _nested(
            BASE
            | NUM_EXPERTS_NAMES
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}},
            VISION | {"deepstack_visual_indexes": [0]},
        ),
        "ForConditionalGeneration",
    ),
    _model(
        "qwen3_5_moe",
        "Qwen3_5Moe",
        _nested(
            BASE
            | NUM_EXPERTS_NAMES
            | LINEAR_ATTENTION
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}},
            VISION,
        ),
        "ForConditionalGeneration",
    ),
    TinyModel(
        "qwen3_5_moe_text",
        "Qwen3_5MoeForCausalLM",
        "Qwen3_5MoeTextConfig",
        BASE
        | NUM_EXPERTS_NAMES
        | LINEAR_ATTENTION
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}},
    ),
    _model(
        "gemma4",
        "Gemma4",
        _nested(
            BASE | GEMMA4,
            {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "head_dim": 8,
            }
            | {"num_key_value_heads": 2, "patch_size": 4},
            audio_config=None,
        ),
        "ForConditionalGeneration",
    ),
)


ROUTER_BIAS = re.compile(r"(e_score_correction_bias|expert_bias|router\.bias)$")
ROUTER_WEIGHT = re.compile(r"(gate|router|classifier|router\.proj|router\.gate)\.weight$")


def build_tiny_model(
    tiny: TinyModel, folder: Path, seed: int = 0, dtype: str = "float32", *, published_names: bool = True
) -> Path:
    """Save a random checkpoint of a family with transformers' own class, in several shards.

    published_names: with the names that the family was published with, else with those of transformers 5's classes, which
    stack the experts.
    Router weights are wide, so that tokens route differently; router biases are small and differ from expert to expert.
    """
    import torch
    import transformers

    torch.manual_seed(seed)
    config = getattr(transformers, tiny.config_class)(**json.loads(json.dumps(tiny.config)))
    model = getattr(transformers, tiny.model_class)(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if ROUTER_BIAS.search(name):
                tensor.copy_(torch.randn(tensor.shape) * 0.05)
            elif name.endswith("tid2eid"):
                tensor.copy_(torch.stack([torch.randperm(NUM_EXPERTS)[:TOP_K] for _ in range(tensor.shape[0])]))
            elif tensor.dim() > 1 and tensor.is_floating_point():
                tensor.normal_(0, 0.5 if ROUTER_WEIGHT.search(name) else 0.1)
    model.save_pretrained(folder, max_shard_size="40KB", save_original_format=published_names)
    if published_names:
        _rename_as_on_the_hub(tiny, folder)
    return folder


def _rename_as_on_the_hub(tiny: TinyModel, folder: Path) -> None:
    """Give tensors and config keys the names that the family's published checkpoints have."""
    from safetensors.torch import load_file, save_file

    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    for shard in sorted(set(index["weight_map"].values())) if tiny.renames else ():
        tensors = {_renamed(tiny, name): tensor for name, tensor in load_file(folder / shard).items()}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    index["weight_map"] = {_renamed(tiny, name): shard for name, shard in index["weight_map"].items()}
    index_path.write_text(json.dumps(index, indent=2))
    config_path = folder / "config.json"
    config = json.loads(config_path.read_text()) | dict(tiny.config_edits)
    config_path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}, indent=2))


def _renamed(tiny: TinyModel, name: str) -> str:
    for before, after in tiny.renames:
        name = name.replace(before, after)
    return name


def raw_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a checkpoint as dtype, shape and bytes, read by a parser of its own."""
    tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        data = shard.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                tensors[name] = (entry["dtype"], tuple(entry["shape"]), data[start + first : start + last])
    return tensors
