"""The family table. Sources name the runtime's file a fact was read from; see docs/families.md for what was tested."""

from rewriter.families import Family, after_dense, by_step, by_types, every_layer

DEEPSEEK_BIAS = ("model.layers.{layer}.mlp.gate.e_score_correction_bias",)
MLP_EXPERT_OUTPUT = (("model.layers.{layer}.mlp.experts.{expert}.down_proj.weight",),)

FAMILIES: tuple[Family, ...] = (
    Family(
        name="deepseek_v3",
        model_types=("deepseek_v3", "deepseek_v32", "kimi_k2"),
        source="vllm/model_executor/models/deepseek_v2.py",
        layers=after_dense("first_k_dense_replace"),
        num_experts="n_routed_experts",
        top_k="num_experts_per_tok",
        bias=DEEPSEEK_BIAS,
        expert_outputs=MLP_EXPERT_OUTPUT,
        score="sigmoid",
        num_groups="n_group",
        groups_kept="topk_group",
        renormalize="norm_topk_prob",
        renormalize_default=True,
        notes="The multi-token-prediction module has a router of its own; it matters only to speculative decoding"
        " and is left as it is.",
    ),
    Family(
        name="mixtral",
        model_types=("mixtral",),
        source="vllm/model_executor/models/mixtral.py",
        layers=every_layer,
        num_experts="num_local_experts",
        top_k="num_experts_per_tok",
        expert_outputs=(("model.layers.{layer}.block_sparse_moe.experts.{expert}.w2.weight",),),
    ),
    Family(
        name="qwen_moe",
        model_types=("qwen2_moe", "qwen3_moe", "qwen3_next"),
        source="vllm/model_executor/models/qwen3_moe.py",
        layers=by_step("decoder_sparse_step", "mlp_only_layers"),
        num_experts="num_experts",
        top_k="num_experts_per_tok",
        expert_outputs=MLP_EXPERT_OUTPUT,
        renormalize="norm_topk_prob",
    ),
    Family(
        name="glm4_moe",
        model_types=("glm4_moe", "glm4_moe_lite"),
        source="vllm/model_executor/models/glm4_moe.py",
        layers=by_types("mlp_layer_types", "sparse", otherwise=after_dense("first_k_dense_replace")),
        num_experts="n_routed_experts",
        top_k="num_experts_per_tok",
        bias=DEEPSEEK_BIAS,
        expert_outputs=MLP_EXPERT_OUTPUT,
        score="sigmoid",
        num_groups="n_group",
        groups_kept="topk_group",
        renormalize="norm_topk_prob",
        renormalize_default=True,
    ),
)

BY_MODEL_TYPE: dict[str, Family] = {name: family for family in FAMILIES for name in family.model_types}
