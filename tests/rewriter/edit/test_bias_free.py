"""Rerouting in families whose routers have no bias: which rows are written, when it is the default, what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from checkpoints import NUMPY_DTYPES, Tensor, build_checkpoint, down_proj_name, random_tensor, write_json, write_shard

from rewriter.checkpoint.edited_json import config_text
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit import router_weight
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.edit.record import MEAN_ROW, SHIFTED_ROW, ZERO_OUTPUT
from rewriter.edit.replan import replan
from rewriter.errors import CheckpointError, PlanError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.semantics import CENTROID, DROP, REROUTE

HIDDEN = 8
BIAS_FREE = {"model_type": "deepseek_v2", "n_group": 1, "topk_group": 1, "topk_method": None, "scoring_func": None}


def experts(*pairs):
    return ExpertSet(
        layer_index="model", behavior="test", experts=[ExpertEntry(layer=at, expert=one) for at, one in pairs]
    )


def gate_name(layer):
    return f"model.layers.{layer}.mlp.gate.weight"


@pytest.fixture
def bias_free(tmp_path):
    """A function that builds a checkpoint of a family without a bias: 16 experts, top-2 unless told."""

    def build(name="base", **changes):
        return Checkpoint.open(
            build_checkpoint(tmp_path / name, **({"num_experts_per_tok": 2} | BIAS_FREE | changes), hidden=HIDDEN)
        )

    return build


def rows_of(checkpoint, layer, dtype=ml_dtypes.bfloat16):
    entry = checkpoint.find((gate_name(layer),))
    return np.frombuffer(checkpoint.read(entry), dtype).reshape(entry.shape).astype(np.float32)


def patches_of(plan, tensor):
    return {patch.start: patch for patch in plan.patches if patch.tensor == tensor}


def test_the_suppressed_rows_become_the_survivors_mean_and_their_outputs_zero(bias_free):
    base = bias_free()
    plan = make_plan(base, experts((2, 3), (2, 11), (4, 0)), None, EditOptions())
    assert plan.record.semantics == CENTROID
    assert not plan.record.approximate
    assert {one.value for one in plan.record.experts} == {MEAN_ROW}
    survivors = np.delete(rows_of(base, 2), [3, 11], 0)
    mean = survivors.mean(0, dtype=np.float64).astype(np.float32).astype(ml_dtypes.bfloat16).tobytes()
    size = 2 * HIDDEN
    rows = patches_of(plan, gate_name(2))
    assert {start: patch.data for start, patch in rows.items()} == {3 * size: mean, 11 * size: mean}
    for layer, expert in ((2, 3), (2, 11), (4, 0)):
        (zero,) = patches_of(plan, down_proj_name(layer, expert)).values()
        assert zero.data is None
        assert zero.fill == 0
        assert zero.size_bytes == HIDDEN * (HIDDEN - 1)
    assert len(plan.patches) == 6


def test_asking_for_a_reroute_gives_the_same_as_asking_for_nothing(bias_free):
    base = bias_free()
    plans = [make_plan(base, experts((1, 5)), None, EditOptions(asked)) for asked in (None, REROUTE, CENTROID)]
    assert len({plan.record.fingerprint for plan in plans}) == 1
    assert {plan.record.semantics for plan in plans} == {CENTROID}


def test_few_experts_are_dropped_unless_asked_for_and_then_called_approximate(bias_free):
    base = bias_free(num_experts_per_tok=4)  # of 16: more than one in eight
    plan = make_plan(base, experts((1, 5)), None, EditOptions())
    assert plan.record.semantics == DROP
    assert {one.value for one in plan.record.experts} == {ZERO_OUTPUT}
    assert any("4 of 16 experts, more than one in eight" in note for note in plan.notes)
    asked = make_plan(base, experts((1, 5)), None, EditOptions(REROUTE))
    assert asked.record.semantics == CENTROID
    assert asked.record.approximate
    assert any(note.startswith("Approximate: the router selects 4 of 16") for note in asked.notes)
    assert asked.record.to_block()["approximate"] is True


def test_groups_count_by_the_experts_that_can_be_candidates(bias_free):
    base = bias_free(n_group=4, topk_group=2)  # top-2 among the 8 experts of two groups
    assert make_plan(base, experts((1, 5)), None, EditOptions()).record.semantics == DROP


def test_top_1_is_said_to_be_certain_and_others_are_not(bias_free):
    certain = make_plan(bias_free("one", num_experts_per_tok=1), experts((1, 5)), None, EditOptions())
    assert any("is certain, as the router selects one" in note for note in certain.notes)
    other = make_plan(bias_free("two"), experts((1, 5)), None, EditOptions())
    assert any("not proved" in note for note in other.notes)


def test_a_drop_that_was_asked_for_leaves_the_router_alone(bias_free):
    plan = make_plan(bias_free(), experts((1, 5)), None, EditOptions(DROP))
    assert [patch.tensor for patch in plan.patches] == [down_proj_name(1, 5)]
    assert plan.record.semantics == DROP


def test_a_record_gives_its_plan_again(bias_free):
    for number, (top_k, asked) in enumerate(((2, None), (4, None), (4, REROUTE))):
        base = bias_free(str(number), num_experts_per_tok=top_k)
        plan = make_plan(base, experts((1, 5), (3, 2)), None, EditOptions(asked))
        again = replan(base, plan.record)
        assert again.record == plan.record


def test_stimulating_is_refused(bias_free):
    with pytest.raises(PlanError, match=r"no router bias, so its checkpoints cannot stimulate"):
        make_plan(bias_free(), None, experts((1, 5)), EditOptions())


def test_a_reroute_by_row_is_refused_where_the_router_has_a_bias(tmp_path):
    base = Checkpoint.open(build_checkpoint(tmp_path / "base"))
    with pytest.raises(PlanError, match=r"deepseek_v3 has a router bias, expected a reroute by it"):
        make_plan(base, experts((1, 5)), None, EditOptions(CENTROID))


def test_too_few_survivors_are_refused_with_the_number_that_would_do(bias_free):
    with pytest.raises(PlanError, match=r"layer 1: suppressing 15 of 16 experts leaves 1 live ones.*at least 1 fewer"):
        make_plan(bias_free(), experts(*((1, one) for one in range(15))), None, EditOptions())
    grouped = bias_free("grouped", n_group=4, topk_group=2, num_experts_per_tok=2)
    whole_groups = experts(*((1, one) for one in range(7)))
    with pytest.raises(PlanError, match=r"the 2 groups that it keeps could have only 1 live ones"):
        make_plan(grouped, whole_groups, None, EditOptions(REROUTE))


def test_a_variant_of_a_variant_has_all_its_suppressed_rows_at_the_mean_of_those_left(bias_free):
    base = bias_free()
    first = make_plan(base, experts((1, 5)), None, EditOptions())
    (base.source.path / "config.json").write_text(config_text(first.config))
    second = make_plan(Checkpoint.open(base.source.path), experts((1, 9)), None, EditOptions())
    rows = patches_of(second, gate_name(1))
    assert sorted(rows) == [5 * 2 * HIDDEN, 9 * 2 * HIDDEN]
    mean = np.delete(rows_of(base, 1), [5, 9], 0).mean(0, dtype=np.float64)
    wanted = mean.astype(np.float32).astype(ml_dtypes.bfloat16).tobytes()
    assert {patch.data for patch in rows.values()} == {wanted}
    assert [(one.layer, one.expert) for one in second.record.experts] == [(1, 9)]


def router_only(folder, gate, extra=None, **changes):
    """A one-layer checkpoint with a router of any type, and experts' outputs."""
    rng = np.random.default_rng(1)
    tensors = dict(gate)
    tensors |= {down_proj_name(0, expert): random_tensor(rng, "BF16", (HIDDEN, 4)) for expert in range(16)}
    tensors |= extra or {}
    folder.mkdir()
    write_shard(folder / "model.safetensors", tensors)
    config = {"model_type": "qwen3_moe", "num_hidden_layers": 1, "num_experts": 16, "num_experts_per_tok": 2}
    write_json(folder / "config.json", config | changes)
    return Checkpoint.open(folder)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F8_E4M3"])
def test_every_row_type_is_rounded_once(tmp_path, dtype):
    gate = random_tensor(np.random.default_rng(0), dtype, (16, HIDDEN))
    base = router_only(tmp_path / "base", {gate_name(0): gate})
    plan = make_plan(base, experts((0, 2)), None, EditOptions())
    rows = np.frombuffer(gate.data, NUMPY_DTYPES[dtype]).reshape(16, HIDDEN).astype(np.float64)
    (patch,) = patches_of(plan, gate_name(0)).values()
    wanted = np.delete(rows, 2, 0).mean(0).astype(np.float32).astype(NUMPY_DTYPES[dtype])
    assert patch.data == wanted.tobytes()


@pytest.mark.parametrize(("shape", "suffix"), [((), "_scale"), ((16, 1), "_scale"), ((4, 2), "_scale_inv")])
def test_float8_rows_have_their_scales_undone_and_their_own_applied(tmp_path, shape, suffix):
    rng = np.random.default_rng(0)
    gate = random_tensor(rng, "F8_E4M3", (16, HIDDEN), 20.0)
    scales = (rng.random(shape) + 0.5).astype(np.float32)
    tensors = {gate_name(0): gate, gate_name(0) + suffix: Tensor("F32", shape, np.asarray(scales).tobytes())}
    base = router_only(tmp_path / "base", tensors, quantization_config={"weight_block_size": [4, 4]})
    plan = make_plan(base, experts((0, 2)), None, EditOptions())
    full = {(): scales, (16, 1): scales, (4, 2): np.kron(scales, np.ones((4, 4)))}[shape] * np.ones((16, HIDDEN))
    rows = np.frombuffer(gate.data, ml_dtypes.float8_e4m3fn).reshape(16, HIDDEN).astype(np.float64) * full
    (patch,) = patches_of(plan, gate_name(0)).values()
    found = np.frombuffer(patch.data, ml_dtypes.float8_e4m3fn).astype(np.float64) * full[2]
    np.testing.assert_allclose(found, np.delete(rows, 2, 0).mean(0), atol=0.07 * np.abs(rows).max() / 16, rtol=0.07)


@pytest.mark.parametrize("name", [gate_name(0), f"{gate_name(0).removesuffix('.weight')}.qweight"])
def test_a_quantised_router_is_refused_by_name(tmp_path, name):
    base = router_only(tmp_path / "base", {name: Tensor("I32", (16, 2), bytes(128))})
    with pytest.raises(CheckpointError, match=rf"router.*is quantised.*{'I32' if name == gate_name(0) else 'qweight'}"):
        make_plan(base, experts((0, 2)), None, EditOptions())
    assert make_plan(base, experts((0, 2)), None, EditOptions(DROP)).record.semantics == DROP


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ({}, r"has no tensor model.layers.0.mlp.gate.weight, expected the router of layer 0"),
        ({gate_name(0): Tensor("F32", (HIDDEN, 16), bytes(512))}, r"has shape \[8, 16\], expected \[16, D\]"),
        (
            {gate_name(0): Tensor("F32", (16, 1), np.r_[np.zeros(15), np.nan].astype(np.float32).tobytes())},
            "is not finite for expert 15",
        ),
    ],
)
def test_a_router_that_is_not_what_the_row_says_is_refused(tmp_path, gate, message):
    base = router_only(tmp_path / "base", gate)
    with pytest.raises(CheckpointError, match=message):
        make_plan(base, experts((0, 2)), None, EditOptions())


def phimoe(folder, norm_bias, num_experts=16):
    """A one-layer PhiMoE, whose router stands behind a LayerNorm with a bias."""
    rng = np.random.default_rng(0)
    hidden = 64
    stem = "model.layers.0."
    tensors = {
        f"{stem}block_sparse_moe.gate.weight": random_tensor(rng, "BF16", (num_experts, hidden)),
        f"{stem}post_attention_layernorm.weight": random_tensor(rng, "BF16", (hidden,), 0.1, 1.0),
        f"{stem}post_attention_layernorm.bias": random_tensor(rng, "BF16", (hidden,), 0.1 * norm_bias, norm_bias),
    }
    for expert in range(num_experts):
        name = f"{stem}block_sparse_moe.experts.{expert}.w2.weight"
        tensors[name] = random_tensor(rng, "BF16", (hidden, 4))
    folder.mkdir()
    write_shard(folder / "model.safetensors", tensors)
    config = {"model_type": "phimoe", "num_hidden_layers": 1, "num_local_experts": num_experts}
    write_json(folder / "config.json", config | {"num_experts_per_tok": 2})
    return Checkpoint.open(folder)


@pytest.mark.parametrize("num_experts", [16, 4])
def test_a_norms_bias_carries_a_true_reroute_whatever_the_number_of_experts(tmp_path, num_experts):
    base = phimoe(tmp_path / "base", 1.0, num_experts)
    plan = make_plan(base, experts((0, 3)), None, EditOptions())
    assert plan.record.semantics == REROUTE
    assert {one.value for one in plan.record.experts} == {SHIFTED_ROW}
    assert [patch.tensor for patch in plan.patches] == ["model.layers.0.block_sparse_moe.gate.weight"]
    assert plan.layers[0].suppress_value > 0
    assert replan(base, plan.record).record == plan.record


def test_rows_that_were_shifted_and_become_means_lose_their_outputs_too(tmp_path, monkeypatch):
    base = phimoe(tmp_path / "base", 1.0)
    first = make_plan(base, experts((0, 3)), None, EditOptions())
    assert {one.value for one in first.record.experts} == {SHIFTED_ROW}
    (base.source.path / "config.json").write_text(config_text(first.config))
    # No shift is large enough for the survivors that are left.
    monkeypatch.setattr(router_weight, "shifted_row", lambda *arguments: None)
    second = make_plan(Checkpoint.open(base.source.path), experts((0, 7)), None, EditOptions(REROUTE))
    assert [(one.expert, one.value) for one in second.record.experts] == [(3, MEAN_ROW), (7, MEAN_ROW)]
    assert not any(one.rules_out_selection for one in second.record.edits_in_force())
    assert replan(Checkpoint.open(base.source.path), second.record).record == second.record
    zeroed = {patch.tensor for patch in second.patches if patch.data is None}
    assert zeroed == {f"model.layers.0.block_sparse_moe.experts.{expert}.w2.weight" for expert in (3, 7)}


def test_a_norm_whose_bias_is_lost_in_noise_leaves_the_centroid(tmp_path):
    plan = make_plan(phimoe(tmp_path / "base", 0.0), experts((0, 3)), None, EditOptions())
    assert plan.record.semantics == CENTROID
    few = make_plan(phimoe(tmp_path / "few", 0.0, 4), experts((0, 3)), None, EditOptions())
    assert few.record.semantics == DROP


def test_records_of_reroutes_by_bias_keep_their_bytes(tmp_path):
    plan = make_plan(Checkpoint.open(build_checkpoint(tmp_path / "base")), experts((1, 5)), None, EditOptions())
    assert "approximate" not in json.dumps(plan.record.to_block())
    assert plan.record.semantics == REROUTE
