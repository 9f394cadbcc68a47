"""Rows of the family table whose routers have no bias: experts are rerouted by their router row, or dropped.

Every `router` is a weight [E, D] that vLLM loads as a `GateLinear` of E outputs and transformers multiplies by
`F.linear(hidden, weight)`, a row an expert, in the files that `source` names. All of them are stored apart from the experts,
also where those are stacked.
"""

from rewriter.families.family import Family
from rewriter.families.layer_rules import after_dense, by_list, by_step, every_layer, no_layer_unless
from rewriter.families.tensor_names import MULTIMODAL, names, outputs

DOWN_PROJ = "mlp.experts.{expert}.down_proj.weight"
W2 = "block_sparse_moe.experts.{expert}.w2.weight"
LLAMA4 = ("language_model.model.", "model.language_model.", "model.")
GATE = "mlp.gate.weight"
EVERY_STEP = by_step("decoder_sparse_step", "mlp_only_layers")

UNBIASED_FAMILIES: tuple[Family, ...] = (
    Family(
        name="mixtral",
        model_types=("mixtral",),
        source="vllm/model_executor/models/mixtral.py; transformers/models/mixtral",
        layers=every_layer,
        num_experts=("num_local_experts", "num_experts"),
        top_k="num_experts_per_tok",
        router=names("block_sparse_moe.gate.weight"),
        expert_outputs=outputs(W2),
        renormalize_default=True,
    ),
    Family(
        name="phimoe",
        model_types=("phimoe",),
        source="vllm/model_executor/models/phimoe.py; transformers/models/phimoe",
        layers=every_layer,
        num_experts="num_local_experts",
        top_k="num_experts_per_tok",
        router=names("block_sparse_moe.gate.weight"),
        router_norm=names("post_attention_layernorm"),
        expert_outputs=outputs(W2),
    ),
    Family(
        name="qwen_moe",
        model_types=("qwen2_moe", "qwen3_moe"),
        source="vllm/model_executor/models/qwen2_moe.py, qwen3_moe.py; transformers/models/qwen2_moe, qwen3_moe",
        layers=EVERY_STEP,
        num_experts=("num_experts", "num_local_experts"),
        top_k="num_experts_per_tok",
        router=names(GATE),
        expert_outputs=outputs(DOWN_PROJ),
        renormalize="norm_topk_prob",
    ),
    Family(
        name="qwen3_next",
        model_types=("qwen3_next",),
        source="vllm/model_executor/models/qwen3_next.py; transformers/models/qwen3_next",
        layers=EVERY_STEP,
        num_experts=("num_experts", "num_local_experts"),
        top_k="num_experts_per_tok",
        router=names(GATE),
        expert_outputs=outputs(DOWN_PROJ),
        renormalize="norm_topk_prob",
        renormalize_default=True,
    ),
    Family(
        name="olmoe",
        model_types=("olmoe",),
        source="vllm/model_executor/models/olmoe.py; transformers/models/olmoe",
        layers=every_layer,
        num_experts=("num_experts", "num_local_experts"),
        top_k="num_experts_per_tok",
        router=names(GATE),
        expert_outputs=outputs(DOWN_PROJ),
        renormalize="norm_topk_prob",
    ),
    Family(
        name="deepseek_v2",
        model_types=("deepseek_v2",),
        source="vllm/model_executor/models/deepseek_v2.py; transformers/models/deepseek_v2",
        layers=after_dense("first_k_dense_replace"),
        num_experts="n_routed_experts",
        top_k="num_experts_per_tok",
        router=names(GATE),
        expert_outputs=outputs(DOWN_PROJ),
        num_groups="n_group",
        groups_kept="topk_group",
        renormalize="norm_topk_prob",
    ),
    Family(
        name="llama4",
        model_types=("llama4", "llama4_text"),
        source="vllm/model_executor/models/llama4.py; transformers/models/llama4",
        layers=by_list("moe_layers", otherwise=by_step("interleave_moe_layer_step")),
        num_experts="num_local_experts",
        top_k="num_experts_per_tok",
        router=names("feed_forward.router.weight", LLAMA4),
        expert_outputs=outputs(
            "feed_forward.experts.down_proj",
            "feed_forward.experts.{expert}.down_proj.weight",
            prefixes=LLAMA4,
        ),
        text_config="text_config",
    ),
    Family(
        name="granitemoe",
        model_types=("granitemoe", "granitemoeshared", "granitemoehybrid"),
        source="vllm/model_executor/models/granitemoe.py; transformers/models/granitemoe, granitemoeshared,"
        " granitemoehybrid",
        layers=every_layer,
        num_experts="num_local_experts",
        top_k="num_experts_per_tok",
        router=(*names("block_sparse_moe.router.layer.weight"), *names("block_sparse_moe.router.weight")),
        expert_outputs=outputs("block_sparse_moe.output_linear.weight"),
        renormalize_default=True,
    ),
    Family(
        name="qwen3_vl_moe",
        model_types=("qwen3_vl_moe",),
        source="vllm/model_executor/models/qwen3_vl_moe.py; transformers/models/qwen3_vl_moe",
        layers=EVERY_STEP,
        num_experts=("num_experts", "num_local_experts"),
        top_k="num_experts_per_tok",
        router=names(GATE, MULTIMODAL),
        expert_outputs=outputs("mlp.experts.down_proj", DOWN_PROJ, prefixes=MULTIMODAL),
        renormalize="norm_topk_prob",
        renormalize_default=True,
        text_config="text_config",
    ),
    Family(
        name="qwen3_5_moe",
        model_types=("qwen3_5_moe", "qwen3_5_moe_text"),
        source="vllm/model_executor/models/qwen3_5.py; transformers/models/qwen3_5_moe",
        layers=every_layer,
        num_experts=("num_experts", "num_local_experts"),
        top_k="num_experts_per_tok",
        router=names(GATE, MULTIMODAL),
        expert_outputs=outputs("mlp.experts.down_proj", DOWN_PROJ, prefixes=MULTIMODAL),
        renormalize_default=True,
        text_config="text_config",
    ),
    Family(
        name="gemma4",
        model_types=("gemma4", "gemma4_text"),
        source="vllm/model_executor/models/gemma4.py; transformers/models/gemma4",
        layers=no_layer_unless("enable_moe_block", every_layer),
        num_experts="num_experts",
        top_k="top_k_experts",
        router=names("router.proj.weight", MULTIMODAL),
        expert_outputs=outputs("experts.down_proj", prefixes=MULTIMODAL),
        renormalize_default=True,
        text_config="text_config",
    ),
)
