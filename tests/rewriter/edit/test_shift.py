"""A reroute with a finite shift: the bias that is written, what plan, card, record and proof say of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    bias_name,
    build_checkpoint,
    one_router,
    read_tensors,
    values_of,
    write_json,
    write_set,
)
from commands import Command
from gguf_files import (
    ARCHITECTURE,
    STRING,
    Value,
    gguf_bytes,
    imatrix_bytes,
    model_metadata,
    model_tensors,
    write_model,
)
from gguf_files import bias_name as gguf_bias_name

from rewriter.checkpoint.gguf.files import GgufSet
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.edit.record import Recipe, VariantRecord, expert_set_of
from rewriter.edit.tensors import decode_bias, margins
from rewriter.errors import PlanError
from rewriter.expert_set import ExpertEntry, ExpertSet

Refuse = Callable[..., str]


def shifted_set(path: Path, experts: list[tuple[int, int, Any]], **changes: Any) -> Path:
    """An expert set file; None for an expert without a shift."""
    entries = [
        {"layer": layer, "expert": expert} | ({} if shift is None else {"bias_shift": shift})
        for layer, expert, shift in experts
    ]
    return write_set(path, [], experts=entries, **changes)


def plan_of_router(bias: list[float], dtype: str, shifts: dict[int, float | None], **options: Any) -> np.ndarray:
    """The bias [E] that is written into a checkpoint whose only MoE layer has this one, as float64."""
    experts = [ExpertEntry(layer=1, expert=expert, bias_shift=shift) for expert, shift in shifts.items()]
    chosen = ExpertSet(layer_index="model", behavior="test", experts=experts)
    (patch,) = make_plan(Checkpoint(one_router(bias, dtype)), chosen, None, EditOptions(**options)).patches
    assert patch.data is not None
    return decode_bias(patch.data, dtype).astype(np.float64)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_the_bias_written_is_the_bases_plus_the_shift_rounded_once(dtype: str, tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base", bias_dtype=dtype)
    chosen = ExpertSet.load(shifted_set(tmp_path / "set.json", [(1, 3, -0.3), (1, 8, None), (3, 0, -2)]))
    plan = make_plan(Checkpoint.open(base), chosen, None, EditOptions())
    before = read_tensors(base)
    for patch in plan.patches:
        layer = 1 if patch.tensor == bias_name(1) else 3
        expected = values_of(before[bias_name(layer)]).copy()
        for at, expert, shift in ((1, 3, -0.3), (3, 0, -2.0)):
            if at == layer:
                expected[expert] = expected.dtype.type(float(expected[expert]) + shift)
        if layer == 1:
            expected[8] = -np.inf
        assert patch.data == expected.tobytes()
    assert [(one.layer, one.expert, one.bias_shift) for one in plan.record.experts] == [
        (1, 3, -0.3),
        (1, 8, None),
        (3, 0, -2.0),
    ]
    assert plan.record.experts[0].value == float(decode_bias(plan.patches[0].data or b"", dtype)[3])


def test_a_margin_lies_below_the_shifted_experts_as_they_will_be() -> None:
    bias = [4.0 + number / 10 for number in range(16)]
    edited = plan_of_router(bias, "F32", {0: None, 1: -3.0}, suppress_bias="margin")
    shifted = np.array(bias, np.float32)
    shifted[1] -= np.float32(3)
    expected = margins(shifted, {0}, 1.0)
    assert edited[0] < expected.suppress_bound
    assert edited[1] == pytest.approx(1.1)


def test_a_shifted_expert_stays_selectable_so_that_many_may_have_one() -> None:
    """Of four groups whose every second expert is shifted, as many experts stay live as before; -inf could not be borne."""
    shifts: dict[int, float | None] = dict.fromkeys(range(0, 14), -0.5)
    edited = plan_of_router([4.0] * 16, "F32", shifts)
    assert (edited[:14] == 3.5).all() and (edited[14:] == 4).all()
    with pytest.raises(PlanError, match="live"):
        plan_of_router([4.0] * 16, "F32", dict.fromkeys(range(0, 14)))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("NaN", "NaN is not finite"),
        ("-Infinity", "-Infinity is not finite"),
        ("-1e999", "is not finite"),
        ("0", "experts.0.bias_shift is 0: input should be less than 0"),
        ("0.5", "experts.0.bias_shift is 0.5: input should be less than 0"),
        ('"-inf"', 'experts.0.bias_shift is "-inf"'),
        ("true", "experts.0.bias_shift is true"),
    ],
)
def test_a_shift_that_is_none_is_refused_with_the_file_and_the_value(
    base: Path, tmp_path: Path, refuse: Refuse, text: str, found: str
) -> None:
    chosen = shifted_set(tmp_path / "set.json", [(1, 3, "@")])
    chosen.write_text(chosen.read_text().replace('"@"', text))
    sentence = refuse(base, "--suppress", chosen)
    assert sentence.startswith(f"{chosen}: ") and found in sentence


@pytest.mark.parametrize("shift", [float("nan"), float("-inf"), 0.0, 1.0])
def test_no_entry_holds_such_a_shift(shift: float) -> None:
    with pytest.raises(ValueError, match="bias_shift"):
        ExpertEntry(layer=1, expert=3, bias_shift=shift)


def test_shifts_that_a_type_cannot_hold_are_refused() -> None:
    with pytest.raises(PlanError, match=r"layer 1: a shift of -0.001 is lost in the rounding of expert 2's bias of 4 "):
        plan_of_router([4.0] * 16, "BF16", {2: -0.001})
    with pytest.raises(
        PlanError, match=r"layer 1: a shift of -1e\+06 takes expert 2's bias of 4 out of its type float16"
    ):
        plan_of_router([4.0] * 16, "F16", {2: -1e6})
    with pytest.raises(PlanError, match=r"layer 1: expert 2 has a bias of -inf in the base"):
        plan_of_router([4.0, 4.0, -np.inf, *[4.0] * 13], "F32", {2: -1.0})


def test_what_has_no_place_for_a_shift_says_why(tmp_path: Path, base: Path, refuse: Refuse) -> None:
    chosen = shifted_set(tmp_path / "set.json", [(1, 3, -0.25)])
    assert "which a drop has no place for" in refuse(base, "--suppress", chosen, "--semantics", "drop")
    assert "which only suppressed ones can have" in refuse(base, "--stimulate", chosen)
    assert "a served variant takes the set without it" in refuse(
        base, "--suppress", chosen, "--semantics", "drop-renorm"
    )
    bias_free = {"model_type": "deepseek_v2", "n_group": 1, "topk_group": 1, "topk_method": None, "scoring_func": None}
    other = build_checkpoint(tmp_path / "other", num_experts_per_tok=2, **bias_free)
    assert "family deepseek_v2's router has no bias: its logit is a product" in refuse(other, "--suppress", chosen)


def test_plan_result_card_and_verify_call_it_a_reroute_with_a_finite_shift(
    base: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    chosen = shifted_set(tmp_path / "set.json", [(1, 3, -0.25), (1, 8, None), (3, 0, -1.5)])
    out = tmp_path / "out"
    plan = mote_rewrite("--model", base, "--suppress", chosen, "-o", out, "--dry-run").stdout
    was = values_of(read_tensors(base)[bias_name(1)])[3]
    assert (
        "layer 1: suppress 8 (bias -inf); suppress 3 (reroute with a finite shift, -0.25: bias"
        f" {was - np.float32(0.25):g})" in plan
    )
    result = mote_rewrite("--model", base, "--suppress", chosen, "-o", out).stdout
    assert "3 suppressed (reroute, some a reroute with a finite shift)" in result
    card = (out / "README.md").read_text()
    assert "**Reroute with a finite shift.**" in card and "**Reroute.**" in card
    assert "(the base's -0.25) |" in card and "(the base's -1.5) |" in card
    verified = mote_verify(out, "--base", base)
    assert verified.code == 0
    assert (
        "proved from the bytes: reroute with a finite shift: the bias of such an expert is the base's plus"
        in verified.stdout
    )
    assert "not proved: reroute with a finite shift: how often such an expert is still selected" in verified.stdout
    only = shifted_set(tmp_path / "only.json", [(1, 3, -0.25)])
    assert mote_rewrite("--model", base, "--suppress", only, "-o", tmp_path / "only").code == 0
    card = (tmp_path / "only" / "README.md").read_text()
    assert "**Reroute with a finite shift.**" in card and "**Reroute.**" not in card and "never selected" not in card
    assert "never selected" not in mote_verify(tmp_path / "only", "--base", base).stdout


@pytest.mark.parametrize("key", ["value", "bias_shift"])
def test_a_record_with_another_value_or_shift_is_found(
    base: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command, key: str
) -> None:
    chosen = shifted_set(tmp_path / "set.json", [(1, 3, -0.25)])
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", chosen, "-o", out).code == 0
    config = json.loads((out / "config.json").read_text())
    config["mote"]["experts"][0][key] -= 0.125
    write_json(out / "config.json", config)
    assert "of its mote block is not what its experts come to on this base" in mote_verify(out, "--base", base).error


def test_a_recipe_and_its_set_carry_the_shift_and_make_the_same_bytes(
    base: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    chosen = shifted_set(tmp_path / "set.json", [(1, 3, -0.25), (1, 8, None)])
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", chosen, "-o", out).code == 0
    record = VariantRecord.model_validate(json.loads((out / "config.json").read_text())["mote"])
    recipe = Recipe.of(record)
    text = recipe.to_json()
    assert text.count("bias_shift") == 1
    assert Recipe.read(text, "recipe.json").experts == recipe.experts
    found = expert_set_of(recipe, "suppress")
    assert found is not None and [one.bias_shift for one in found.experts] == [-0.25, None]
    again = tmp_path / "again"
    (tmp_path / "recipe.json").write_text(text)
    assert mote_rewrite("--model", base, "--recipe", tmp_path / "recipe.json", "-o", again).code == 0
    assert {name: tensor.data for name, tensor in read_tensors(again).items()} == {
        name: tensor.data for name, tensor in read_tensors(out).items()
    }
    saved = tmp_path / "saved.json"
    found.save(saved)
    assert ExpertSet.load(saved) == found


def test_a_variant_of_a_variant_shifts_what_is_there(base: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    chosen = shifted_set(tmp_path / "set.json", [(1, 3, -0.25)])
    assert mote_rewrite("--model", base, "--suppress", chosen, "-o", tmp_path / "once").code == 0
    assert mote_rewrite("--model", tmp_path / "once", "--suppress", chosen, "-o", tmp_path / "twice").code == 0
    was = values_of(read_tensors(base)[bias_name(1)])[3]
    assert values_of(read_tensors(tmp_path / "twice")[bias_name(1)])[3] == was - np.float32(0.25) - np.float32(0.25)


def test_gguf_takes_the_shift_and_its_counts_may_show_the_expert(
    tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    model = write_model(tmp_path / "models" / "tiny-F16.gguf")
    before = GgufSet.open(model)
    layer = before.layout.moe_layers[0]
    chosen = shifted_set(tmp_path / "set.json", [(layer, 2, -0.5)])
    out = tmp_path / "out"
    assert mote_rewrite("--model", model, "--suppress", chosen, "-o", out).code == 0
    after = GgufSet.open(out / model.name)
    found = [
        np.frombuffer(one.read(entry), "<f4")
        for one in (before, after)
        if (entry := one.find((gguf_bias_name(layer),)))
    ]
    expected = found[0].copy()
    expected[2] -= np.float32(0.5)
    assert found[1].tobytes() == expected.tobytes()
    counts = {at: np.full(before.layout.num_experts, 4) for at in before.layout.moe_layers}
    (tmp_path / "counts.dat").write_bytes(imatrix_bytes(counts))
    verified = mote_verify(out, "--base", model.parent, "--imatrix", tmp_path / "counts.dat")
    assert verified.code == 0, verified.stderr
    assert f"layer {layer} expert 2: 4 of" in verified.stdout


def test_a_bias_of_logits_takes_a_shift_and_the_plan_says_that_it_weighs_too(
    tmp_path: Path, mote_rewrite: Command
) -> None:
    """gpt-oss, whose -inf has no finite margin: any finite shift is one all the same."""
    metadata = {
        key.replace(ARCHITECTURE, "gpt-oss"): Value(STRING, "gpt-oss") if key == "general.architecture" else value
        for key, value in model_metadata(expert_group_count=None, expert_group_used_count=None).items()
    }
    tensors = model_tensors()
    for layer in range(1, 5):
        tensors[f"blk.{layer}.ffn_gate_inp.bias"] = tensors.pop(gguf_bias_name(layer))
    base = tmp_path / "oss.gguf"
    base.write_bytes(gguf_bytes(metadata, tensors))
    chosen = shifted_set(tmp_path / "set.json", [(2, 7, -0.5)])
    outcome = mote_rewrite("--suppress", chosen, "--model", base, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.stderr
    assert "so a shifted expert also weighs less where it is selected" in outcome.stdout
    after = GgufSet.open(tmp_path / "out" / "oss.gguf")
    entry = after.find(("blk.2.ffn_gate_inp.bias",))
    assert entry is not None
    expected = np.frombuffer(tensors["blk.2.ffn_gate_inp.bias"].data, "<f4").copy()
    expected[7] -= np.float32(0.5)
    assert after.read(entry) == expected.tobytes()
