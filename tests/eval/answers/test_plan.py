"""A finite bias shift reaches the arms of a reroute, and those of no other semantics."""

import json
from pathlib import Path

import pytest

from eval.answers.arms import Arm
from eval.answers.engine import router_edit
from eval.answers.plan import NamedEdit, plan_live
from eval.experts import check_live_edit, load_edit, open_model
from eval.measures.controls import control_arms
from eval.options import RunOptions
from rewriter.errors import InputError, PlanError
from rewriter.expert_set import ExpertEntry, ExpertSet

MINIATURES = Path(__file__).parents[3] / "examples"
EDIT = NamedEdit("half", ((2, 46), (3, 99), (2, 58)), (), ((2, 46, -0.07), (2, 58, -0.2)))


def test_a_set_with_shifts_is_loaded_with_them(tmp_path: Path) -> None:
    entries = [ExpertEntry(layer=2, expert=46, bias_shift=-0.07), ExpertEntry(layer=3, expert=99)]
    ExpertSet(layer_index="model", behavior="REFUSED", experts=entries).save(tmp_path / "half.json")
    model = open_model(str(MINIATURES / "tiny-r1"), None, lambda message: None)
    edit, _ = load_edit(model, str(tmp_path / "half.json"), None)
    assert edit == NamedEdit("half", ((2, 46), (3, 99)), (), ((2, 46, -0.07),))
    check_live_edit(model, edit, ("reroute",))
    with pytest.raises(InputError, match="which only suppressed ones can have"):
        load_edit(model, None, str(tmp_path / "half.json"))
    bias_free = open_model(str(MINIATURES / "tiny-qwen3"), None, lambda message: None)
    with pytest.raises(PlanError, match="has no router bias"):
        check_live_edit(bias_free, edit, ("reroute",))


def test_only_a_reroute_has_shifts_and_the_first_experts_keep_theirs() -> None:
    options = RunOptions(semantics=("reroute", "drop", "drop-renorm"))
    shifts = {arm.semantics: arm.bias_shifts for arm in plan_live(options, EDIT, []).variants}
    assert shifts == {"reroute": EDIT.bias_shifts, "drop": (), "drop-renorm": ()}
    assert EDIT.top(2).bias_shifts == ((2, 46, -0.07),)
    other = plan_live(options, EDIT, [NamedEdit("other", ((2, 1),), (), ((2, 1, -0.5),))]).others[0]
    assert other.bias_shifts == ((2, 1, -0.5),)


def test_an_arm_with_shifts_is_another_one_and_edits_by_them() -> None:
    whole = Arm("variant", "variant", "reroute", EDIT.suppress)
    half = Arm("variant", "variant", "reroute", EDIT.suppress, bias_shifts=EDIT.bias_shifts)
    assert whole.identity() != half.identity()
    assert "bias_shifts" not in json.dumps(whole.identity())  # journals of before stay good
    edit = router_edit(half)
    assert edit is not None and edit.bias_shifts == EDIT.bias_shifts


def test_random_experts_get_the_shift_of_the_one_that_they_stand_in_for() -> None:
    (arm,) = control_arms(
        "layer",
        "reroute",
        EDIT.suppress,
        (),
        bias_shifts=EDIT.bias_shifts,
        layers=(2, 3, 4),
        num_experts=128,
        num_sets=1,
        seed=0,
        frequency=None,
        is_feasible=lambda down, up: True,
    )
    first, _, third = arm.suppress
    assert arm.bias_shifts == ((*first, -0.07), (*third, -0.2))
