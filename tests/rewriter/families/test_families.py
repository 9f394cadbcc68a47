"""The family table read with configs written by hand, in the forms in which published models have them."""

from typing import Any

import pytest

from rewriter.errors import CheckpointError, PlanError, UnknownFamilyError
from rewriter.families.family import Family, RouterLayout
from rewriter.families.layer_rules import by_list, every_layer
from rewriter.families.lookup import BY_MODEL_TYPE, FAMILIES, find_family, router_layout, rows_named_alike
from rewriter.families.wrappers import WRAPPERS, Wrapper

# DeepSeek-R1's config.json, the keys that matter here.
R1 = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 61,
    "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 3,
    "moe_layer_freq": 1,
    "n_routed_experts": 256,
    "num_experts_per_tok": 8,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
}


def span(first: int, last: int) -> tuple[int, ...]:
    """Layers first..last, both included."""
    return tuple(range(first, last + 1))


# model_type, its keys, expected MoE layers, experts, top-k, (groups, groups kept), renormalises
CONFIGS: tuple[tuple[str, dict[str, Any], tuple[int, ...], int, int, tuple[int, int], bool], ...] = (
    ("deepseek_v3", R1, span(3, 60), 256, 8, (8, 4), True),
    ("kimi_k2", R1 | {"n_routed_experts": 384, "n_group": 1, "topk_group": 1}, span(3, 60), 384, 8, (1, 1), True),
    ("kimi_k25", {"text_config": R1 | {"first_k_dense_replace": 1}}, span(1, 60), 256, 8, (8, 4), True),
    ("deepseek_v32", R1, span(3, 60), 256, 8, (8, 4), True),
    # Saved by transformers: a type per layer instead of a number of dense ones.
    (
        "deepseek_v32",
        R1 | {"first_k_dense_replace": None, "mlp_layer_types": ["dense"] * 2 + ["sparse"] * 59},
        span(2, 60),
        256,
        8,
        (8, 4),
        True,
    ),
    (
        "glm4_moe",
        {
            "num_hidden_layers": 46,
            "first_k_dense_replace": 1,
            "n_routed_experts": 128,
            "num_experts_per_tok": 8,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
        },
        span(1, 45),
        128,
        8,
        (1, 1),
        True,
    ),
    (
        "glm4_moe_lite",
        {"num_hidden_layers": 4, "n_routed_experts": 64, "num_experts_per_tok": 4},
        span(1, 3),
        64,
        4,
        (1, 1),
        True,
    ),
    (
        "dots1",
        {"num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 6},
        span(0, 2),
        8,
        6,
        (1, 1),
        False,
    ),
    (
        "solar_open",
        {"num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 6},
        span(0, 2),
        8,
        6,
        (1, 1),
        True,
    ),
    # MiMo's list of flags, one more than there are layers where a prediction module follows.
    (
        "mimo_v2_flash",
        {"num_hidden_layers": 4, "moe_layer_freq": [0, 1, 0, 1, 1], "n_routed_experts": 256, "num_experts_per_tok": 8},
        (1, 3),
        256,
        8,
        (1, 1),
        True,
    ),
    (
        "exaone_moe",
        {
            "num_hidden_layers": 4,
            "is_moe_layer": [False, True, True, True],
            "num_experts": 128,
            "num_experts_per_tok": 8,
        },
        span(1, 3),
        128,
        8,
        (1, 1),
        True,
    ),
    (
        "pangu_ultra_moe",
        {"num_hidden_layers": 5, "num_dense_layers": 3, "num_routed_experts": 256, "num_experts_per_tok": 8},
        (3, 4),
        256,
        8,
        (1, 1),
        True,
    ),
    (
        "bailing_moe",
        {
            "num_hidden_layers": 20,
            "first_k_dense_replace": 1,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "n_group": 8,
            "topk_group": 4,
        },
        span(1, 19),
        256,
        8,
        (8, 4),
        True,
    ),
    (
        "minimax_m2",
        {"num_hidden_layers": 62, "num_local_experts": 256, "num_experts_per_tok": 8},
        span(0, 61),
        256,
        8,
        (1, 1),
        True,
    ),
    (
        "minimax_m3_vl",
        {
            "text_config": {
                "num_hidden_layers": 60,
                "moe_layer_freq": [0] * 3 + [1] * 57,
                "num_local_experts": 128,
                "num_experts_per_tok": 4,
            }
        },
        span(3, 59),
        128,
        4,
        (1, 1),
        True,
    ),
    (
        "kimi_linear",
        {
            "num_hidden_layers": 27,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "num_experts": 256,
            "num_experts_per_token": 8,
            "num_expert_group": 1,
            "topk_group": 1,
            "moe_renormalize": True,
        },
        span(1, 26),
        256,
        8,
        (1, 1),
        True,
    ),
    (
        "hy_v3",
        {
            "num_hidden_layers": 4,
            "first_k_dense_replace": 1,
            "num_experts": 192,
            "num_experts_per_tok": 8,
            "route_norm": True,
        },
        span(1, 3),
        192,
        8,
        (1, 1),
        True,
    ),
    (
        "afmoe",
        {
            "num_hidden_layers": 6,
            "num_dense_layers": 2,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "n_group": 4,
            "topk_group": 2,
            "route_norm": False,
        },
        span(2, 5),
        128,
        8,
        (4, 2),
        False,
    ),
    (
        "lfm2_moe",
        {"num_hidden_layers": 24, "num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4},
        span(2, 23),
        32,
        4,
        (1, 1),
        True,
    ),
    (
        "ernie4_5_moe",
        {
            "num_hidden_layers": 28,
            "moe_num_experts": 64,
            "moe_k": 6,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 27,
            "moe_layer_interval": 1,
        },
        span(1, 27),
        64,
        6,
        (1, 1),
        True,
    ),
    (
        "ernie4_5_moe",
        {
            "num_hidden_layers": 10,
            "moe_num_experts": 64,
            "moe_k": 8,
            "moe_layer_start_index": 3,
            "moe_layer_end_index": -1,
            "moe_layer_interval": 2,
        },
        (3, 5, 7, 9),
        64,
        8,
        (1, 1),
        True,
    ),
    (
        "longcat_flash",
        # LongCat counts layers in num_layers; transformers' num_hidden_layers counts its attention blocks, two a layer.
        {"num_layers": 28, "num_hidden_layers": 56, "n_routed_experts": 512, "moe_topk": 12, "zero_expert_num": 256},
        span(0, 27),
        512,
        12,
        (1, 1),
        False,
    ),
    (
        "nemotron_h",
        {
            "num_hidden_layers": 8,
            "hybrid_override_pattern": "MEM*-EME",
            "n_routed_experts": 128,
            "num_experts_per_tok": 6,
            "n_group": 1,
            "topk_group": 1,
        },
        (1, 5, 7),
        128,
        6,
        (1, 1),
        True,
    ),
    (
        "step3p5",
        {"num_hidden_layers": 45, "moe_layers_enum": "3,4, 44,45", "moe_num_experts": 288, "moe_top_k": 8},
        (3, 4, 44),
        288,
        8,
        (1, 1),
        True,
    ),
    (
        "step3p7",
        {
            "text_config": {
                "num_hidden_layers": 5,
                "moe_layers_enum": [3, 4],
                "n_routed_experts": 288,
                "num_experts_per_tok": 8,
            }
        },
        (3, 4),
        288,
        8,
        (1, 1),
        True,
    ),
    (
        "deepseek_v4",
        {"num_hidden_layers": 43, "num_hash_layers": 3, "n_routed_experts": 256, "num_experts_per_tok": 6},
        span(0, 42),
        256,
        6,
        (1, 1),
        True,
    ),
    (
        "gpt_oss",
        {"num_hidden_layers": 24, "num_local_experts": 32, "experts_per_token": 4},
        span(0, 23),
        32,
        4,
        (1, 1),
        True,
    ),
    (
        "mixtral",
        {"num_hidden_layers": 32, "num_local_experts": 8, "num_experts_per_tok": 2},
        span(0, 31),
        8,
        2,
        (1, 1),
        True,
    ),
    (
        "phimoe",
        {"num_hidden_layers": 32, "num_local_experts": 16, "num_experts_per_tok": 2},
        span(0, 31),
        16,
        2,
        (1, 1),
        False,
    ),
    (
        "qwen2_moe",
        {
            "num_hidden_layers": 6,
            "decoder_sparse_step": 2,
            "mlp_only_layers": [3],
            "num_experts": 60,
            "num_experts_per_tok": 4,
        },
        (1, 5),
        60,
        4,
        (1, 1),
        False,
    ),
    (
        "qwen3_moe",
        {
            "num_hidden_layers": 48,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
        },
        span(0, 47),
        128,
        8,
        (1, 1),
        True,
    ),
    # Saved by transformers: num_local_experts instead of num_experts.
    (
        "qwen3_moe",
        {"num_hidden_layers": 2, "num_local_experts": 128, "num_experts_per_tok": 8},
        (0, 1),
        128,
        8,
        (1, 1),
        False,
    ),
    (
        "qwen3_next",
        {"num_hidden_layers": 2, "num_experts": 512, "num_experts_per_tok": 10},
        (0, 1),
        512,
        10,
        (1, 1),
        True,
    ),
    (
        "olmoe",
        {"num_hidden_layers": 16, "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False},
        span(0, 15),
        64,
        8,
        (1, 1),
        False,
    ),
    (
        "deepseek_v2",
        {
            "num_hidden_layers": 27,
            "first_k_dense_replace": 1,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
        },
        span(1, 26),
        64,
        6,
        (1, 1),
        False,
    ),
    (
        "llama4",
        {
            "text_config": {
                "num_hidden_layers": 48,
                "interleave_moe_layer_step": 2,
                "num_local_experts": 128,
                "num_experts_per_tok": 1,
            }
        },
        tuple(range(1, 48, 2)),
        128,
        1,
        (1, 1),
        False,
    ),
    (
        "llama4_text",
        {"num_hidden_layers": 4, "moe_layers": [0, 3], "num_local_experts": 16, "num_experts_per_tok": 1},
        (0, 3),
        16,
        1,
        (1, 1),
        False,
    ),
    (
        "granitemoe",
        {"num_hidden_layers": 24, "num_local_experts": 32, "num_experts_per_tok": 8},
        span(0, 23),
        32,
        8,
        (1, 1),
        True,
    ),
    (
        "qwen3_vl_moe",
        {
            "text_config": {
                "num_hidden_layers": 48,
                "num_experts": 128,
                "num_experts_per_tok": 8,
                "norm_topk_prob": True,
            }
        },
        span(0, 47),
        128,
        8,
        (1, 1),
        True,
    ),
    (
        "qwen3_5_moe",
        {"text_config": {"num_hidden_layers": 40, "num_experts": 256, "num_experts_per_tok": 8}},
        span(0, 39),
        256,
        8,
        (1, 1),
        True,
    ),
    # Hy4-preview.
    (
        "hy_v4",
        {
            "num_hidden_layers": 34,
            "mlp_layer_types": ["dense"] + ["sparse"] * 33,
            "n_routed_experts": 256,
            "num_experts_per_tok": 8,
            "norm_topk_prob": True,
        },
        span(1, 33),
        256,
        8,
        (1, 1),
        True,
    ),
    (
        "deepseek_v41",
        {"text_config": {"num_hidden_layers": 61, "n_routed_experts": 384, "num_experts_per_tok": 6}},
        span(0, 60),
        384,
        6,
        (1, 1),
        True,
    ),
    # Mistral Small 4, whose config is a mistral3.
    (
        "mistral4",
        {
            "num_hidden_layers": 36,
            "first_k_dense_replace": 0,
            "n_routed_experts": 128,
            "num_experts_per_tok": 4,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
        },
        span(0, 35),
        128,
        4,
        (1, 1),
        True,
    ),
    (
        "gemma4",
        {"text_config": {"num_hidden_layers": 30, "enable_moe_block": True, "num_experts": 128, "top_k_experts": 8}},
        span(0, 29),
        128,
        8,
        (1, 1),
        True,
    ),
)


@pytest.mark.parametrize("case", CONFIGS, ids=lambda case: case[0])
def test_layout(case: tuple[str, dict[str, Any], tuple[int, ...], int, int, tuple[int, int], bool]) -> None:
    model_type, keys, moe_layers, num_experts, top_k, groups, renormalize = case
    layout = router_layout(keys | {"model_type": model_type})
    assert layout.family is BY_MODEL_TYPE[model_type]
    assert layout.moe_layers == moe_layers
    assert (layout.num_experts, layout.top_k) == (num_experts, top_k)
    assert (layout.num_groups, layout.groups_kept) == groups
    assert layout.renormalize is renormalize


def test_every_row_with_routers_known_by_hand_is_here() -> None:
    assert {family.name for family in FAMILIES} == {BY_MODEL_TYPE[case[0]].name for case in CONFIGS} | {
        "param2moe",
        "sarvam",
    }


def layout_of(model_type: str, **keys: Any) -> RouterLayout:
    """The layout of a small config with every key that any row might need."""
    config: dict[str, Any] = {
        "model_type": model_type,
        "num_hidden_layers": 4,
        "num_layers": 4,
        "hybrid_override_pattern": "MEME",
        "num_experts": 8,
        "n_routed_experts": 8,
        "num_local_experts": 8,
        "moe_num_experts": 8,
        "num_experts_per_tok": 2,
        "num_experts_per_token": 2,
        "moe_topk": 2,
        "moe_k": 2,
        "moe_top_k": 2,
        "top_k_experts": 2,
        "enable_moe_block": True,
    }
    return router_layout(config | keys)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_rows_are_consistent(family: Family) -> None:
    """What the rest of the project relies on in every row."""
    assert family.source and family.model_types
    assert len(set(family.bias)) == len(family.bias)
    assert bool(family.bias) == (family.score is not None)
    assert family.expert_outputs, "drop must be possible"
    for template in family.bias:
        assert template.format(layer=5).count("layers.5.") == 1
    for template in [name for names in family.expert_outputs for name in names]:
        assert "{layer}" in template
    for model_type in family.model_types:
        assert layout_of(model_type).moe_layers
    if not family.bias:
        assert family.minus_inf_safe and family.can_stimulate and not family.vllm_keys, (
            "say nothing of a bias that is not there"
        )


def test_model_types_are_unique() -> None:
    assert len(BY_MODEL_TYPE) == sum(len(family.model_types) for family in FAMILIES)


def test_r1_names() -> None:
    layout = router_layout(R1)
    assert layout.bias_names(3)[0] == "model.layers.3.mlp.gate.e_score_correction_bias"
    assert layout.expert_output_names(60, 255)[0] == ("model.layers.60.mlp.experts.255.down_proj.weight",)
    assert layout.score_range == 1.0
    assert layout.has_bias and layout.family.minus_inf_safe and layout.family.can_stimulate
    assert layout.missing_vllm_keys == ()


def test_gpt_oss_suppresses_by_minus_infinity_alone() -> None:
    """The bias is part of the logit, which has no bound."""
    layout = layout_of("gpt_oss")
    assert ("model.layers.1.mlp.experts.down_proj",) in layout.expert_output_names(1, 3)
    assert layout.bias_names(1) == ("model.layers.1.mlp.router.bias",)
    assert layout.score_range is None and not layout.family.can_stimulate


def test_deepseek_v4_hash_layers_have_no_bias() -> None:
    layout = layout_of("deepseek_v4", num_hash_layers=2)
    assert layout.unbiased_layers == (0, 1)
    assert layout.bias_names(2)[:2] == ("layers.2.ffn.gate.bias", "model.layers.2.ffn.gate.bias")
    with pytest.raises(PlanError, match=r"layer 1: family deepseek_v4 routes the layers 0\.\.1 by a table of tokens"):
        layout.bias_names(1)
    assert layout.expert_output_names(0, 7)[0] == ("layers.0.ffn.experts.7.w2.weight",)


def test_zero_experts_are_counted_apart() -> None:
    layout = layout_of("longcat_flash", zero_expert_num=6)
    assert (layout.num_experts, layout.num_other_choices) == (8, 6)
    assert layout_of("longcat_flash", zero_expert_num=None).num_other_choices == 0


@pytest.mark.parametrize(
    ("model_type", "flag", "default"),
    [
        ("lfm2_moe", "use_expert_bias", True),
        ("bailing_moe", "moe_router_enable_expert_bias", False),
        ("pangu_ultra_moe", "router_enable_expert_bias", False),
        ("param2moe", "moe_router_enable_expert_bias", True),
    ],
)
def test_a_flag_can_switch_the_bias_off(model_type: str, flag: str, default: bool) -> None:
    assert layout_of(model_type).has_bias is default
    assert layout_of(model_type, **{flag: None}).has_bias is default
    assert layout_of(model_type, **{flag: True}).has_bias
    off = layout_of(model_type, **{flag: False})
    assert not off.has_bias and off.bias_names(3) == ()


def test_rows_whose_bias_is_shifted_at_load_are_not_minus_inf_safe() -> None:
    assert {family.name for family in FAMILIES if not family.minus_inf_safe} == {"param2moe", "sarvam"}


def test_keys_that_vllm_needs_are_named_when_missing() -> None:
    """A config that transformers re-saved lost them: vLLM would then look for no bias."""
    saved = {key: value for key, value in R1.items() if key not in ("topk_method", "scoring_func")}
    assert router_layout(saved).missing_vllm_keys == ("topk_method: noaux_tc", "scoring_func: sigmoid")
    assert router_layout(R1 | {"scoring_func": "softmax"}).missing_vllm_keys == ("scoring_func: sigmoid",)
    assert "topk_method: noaux_tc and scoring_func: sigmoid" in router_layout(saved).vllm_remark
    assert router_layout(R1).vllm_remark == ""
    assert layout_of("hy_v3").missing_vllm_keys == ("first_k_dense_replace: ...",)
    assert layout_of("hy_v3", first_k_dense_replace=0).missing_vllm_keys == ()


def test_unknown_family_says_how_to_add_a_row() -> None:
    with pytest.raises(UnknownFamilyError, match='model_type "llama" has no row.*rewriter/families/biased') as caught:
        find_family({"model_type": "llama"})
    assert len(str(caught.value)) <= 400


def test_the_wrappers_of_models_that_exist_are_known() -> None:
    assert {"kimi_k3", "kimi_vl", "mistral3"} <= {wrapper.model_type for wrapper in WRAPPERS}


@pytest.mark.parametrize("wrapper", WRAPPERS, ids=lambda wrapper: wrapper.model_type)
def test_a_wrapper_has_the_layout_of_what_it_wraps(wrapper: Wrapper) -> None:
    """Its tensors begin with one of the prefixes that the wrapped row knows."""
    assert wrapper.source and wrapper.model_type not in BY_MODEL_TYPE
    for wrapped in wrapper.wraps:
        inner = R1 | {"model_type": wrapped, "num_experts": 256, "num_experts_per_token": 8}
        layout = router_layout({"model_type": wrapper.model_type, wrapper.text_config: inner})
        assert layout.family is BY_MODEL_TYPE[wrapped] and layout.family.text_config == wrapper.text_config
        assert layout.moe_layers[-1] == 60 and layout.num_experts == 256
        named = layout.bias_names(60) if layout.has_bias else layout.expert_output_names(60, 1)[1]
        outputs = [name for names in layout.expert_output_names(60, 1) for name in names]
        assert any("language_model.model.layers.60." in name for name in (*named, *outputs))


def test_a_wrapper_of_something_else_is_refused() -> None:
    """Mistral Small 3 is a mistral3 as well, and dense."""
    with pytest.raises(UnknownFamilyError, match="wraps a model whose type .* is \"mistral\", expected 'mistral4'"):
        find_family({"model_type": "mistral3", "text_config": {"model_type": "mistral"}})
    with pytest.raises(UnknownFamilyError, match="is null, expected 'kimi_linear'"):
        find_family({"model_type": "kimi_k3"})


def test_an_unknown_wrapper_of_a_known_family_names_its_row() -> None:
    with pytest.raises(
        UnknownFamilyError, match="\"llm_config\" has model_type 'qwen3_moe', of row qwen_moe"
    ) as caught:
        find_family({"model_type": "some_vl", "vision_config": {}, "llm_config": {"model_type": "qwen3_moe"}})
    assert len(str(caught.value)) <= 400


@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (["model.layers.3.mlp.gate.expert_bias"], ("bailing_moe", "param2moe", "sarvam")),
        (
            ["model.layers.7.mlp.gate.weight", "model.layers.7.mlp.experts.12.down_proj.weight"],
            ("qwen_moe", "qwen3_next", "olmoe", "deepseek_v2", "qwen3_vl_moe", "qwen3_5_moe", "mistral4"),
        ),
        (["model.layers.7.mlp.down_proj.weight"], ()),
    ],
)
def test_rows_are_found_by_tensor_names(names: list[str], rows: tuple[str, ...]) -> None:
    assert rows_named_alike(names) == rows


def test_a_missing_number_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"n_routed_experts is null, expected a positive whole number"):
        router_layout({key: value for key, value in R1.items() if key != "n_routed_experts"})
    with pytest.raises(CheckpointError, match=r"moe_num_experts is true, expected a positive"):
        layout_of("step3p5", moe_num_experts=True)
    with pytest.raises(CheckpointError, match='num_hidden_layers is "61"'):
        router_layout(R1 | {"num_hidden_layers": "61"})


@pytest.mark.parametrize("keys", [{"first_k_dense_replace": 4}, {"mlp_layer_types": ["dense"] * 4}])
def test_a_model_without_experts_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="no layer has routed experts"):
        layout_of("deepseek_v3", **keys)


def test_dense_gemma_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no layer has routed experts"):
        layout_of("gemma4", enable_moe_block=False)


@pytest.mark.parametrize("listed", ["3;4", [3, "x"], 7])
def test_a_layer_list_that_cannot_be_read_is_shown(listed: Any) -> None:
    with pytest.raises(CheckpointError, match="moe_layers is .*expected a list of layer numbers"):
        by_list("moe_layers", otherwise=every_layer)({"num_hidden_layers": 9, "moe_layers": listed})


def test_a_pattern_that_is_no_text_is_shown() -> None:
    with pytest.raises(CheckpointError, match="hybrid_override_pattern is null, expected a letter for each layer"):
        layout_of("nemotron_h", hybrid_override_pattern=None)
