"""A finite bias shift reaches the arms of a reroute, and those of no other semantics."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.answers.arms import Arm
from eval.answers.engine import router_edit
from eval.answers.plan import NamedEdit, plan_live
from eval.experts import OutputOptions, check_live_edit, load_edit, open_model, semantics_for
from eval.measures.controls import control_arms
from eval.measures.fidelity import fidelity_arms, name_of
from eval.options import EvalRequest, RunOptions
from rewriter.errors import InputError, PlanError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.semantics import SEMANTICS

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
        is_feasible=lambda down, up, shifts: True,
    )
    first, _, third = arm.suppress
    assert arm.bias_shifts == ((*first, -0.07), (*third, -0.2))


SCALED = NamedEdit("scaled", ((2, 46), (3, 99)), ((4, 7),), (), ((2, 46, 0.25), (4, 7, 2.5)))


def test_strength_and_gain_come_from_the_set_or_the_options(tmp_path: Path) -> None:
    down = [ExpertEntry(layer=2, expert=46, strength=0.75), ExpertEntry(layer=3, expert=99)]
    ExpertSet(layer_index="model", behavior="REFUSED", experts=down).save(tmp_path / "scaled.json")
    up = [ExpertEntry(layer=4, expert=7, gain=2.5)]
    ExpertSet(layer_index="model", behavior="REFUSED", experts=up).save(tmp_path / "up.json")
    files = str(tmp_path / "scaled.json"), str(tmp_path / "up.json")
    model = open_model(str(MINIATURES / "tiny-r1"), None, lambda message: None)
    edit, _ = load_edit(model, *files)
    assert edit == SCALED
    check_live_edit(model, edit, SEMANTICS)
    edit, _ = load_edit(model, *files, outputs=OutputOptions(strength=0.5, gain="3"))
    assert edit.factors == ((2, 46, 0.5), (3, 99, 0.5), (4, 7, 3.0))
    with pytest.raises(InputError, match="--gain auto is worked out from traces with weights, expected --traces DIR"):
        load_edit(model, *files, outputs=OutputOptions(gain="auto"))
    with pytest.raises(InputError, match="--gain is one of stimulated experts"):
        load_edit(model, files[0], None, outputs=OutputOptions(gain="2"))
    with pytest.raises(InputError, match="has experts with a gain, which only stimulated ones can have"):
        load_edit(model, files[1], None)


def test_semantics_have_the_factors_that_a_checkpoint_or_the_paper_gives_them() -> None:
    factors = {arm.semantics: arm.factors for arm in plan_live(RunOptions(semantics=SEMANTICS), SCALED, []).variants}
    assert factors == {"reroute": ((4, 7, 2.5),), "drop": SCALED.factors, "drop-renorm": ((2, 46, 0.25),)}
    assert (
        SCALED.top(1).factors == SCALED.factors
        and NamedEdit("s", ((3, 99), (2, 46)), (), (), SCALED.factors).top(1).factors == ()
    )
    assert semantics_for(None, SEMANTICS, SCALED) == ("drop", "drop-renorm", "reroute")
    assert semantics_for(None, SEMANTICS, EDIT) == SEMANTICS and semantics_for(None, ("reroute",), SCALED) == (
        "reroute",
    )


def test_an_arm_with_factors_is_another_one_and_edits_by_them() -> None:
    whole = Arm("variant", "variant", "drop", SCALED.suppress)
    part = Arm("variant", "variant", "drop", SCALED.suppress, factors=SCALED.factors[:1])
    assert whole.identity() != part.identity()
    assert "factors" not in json.dumps(whole.identity())  # journals of before stay good
    edit = router_edit(part)
    assert edit is not None and edit.factors == SCALED.factors[:1]


def test_fidelity_compares_wholes_and_parts_with_the_papers_own() -> None:
    down = fidelity_arms(SCALED, "suppress", has_bias=True)
    assert [name_of(arm) for arm in down] == ["reroute", "drop", "drop-renorm", "drop in part", "drop-renorm in part"]
    assert all(not arm.stimulate for arm in down) and down[-1].factors == ((2, 46, 0.25),)
    up = fidelity_arms(SCALED, "stimulate", has_bias=True)
    assert [name_of(arm) for arm in up] == ["reroute", "drop-renorm", "reroute with gain"]
    assert all(not arm.suppress for arm in up) and up[-1].factors == ((4, 7, 2.5),)
    assert len({arm.name for arm in [*down, *up]}) == 8
    assert [name_of(arm) for arm in fidelity_arms(EDIT, "suppress", has_bias=True)] == list(SEMANTICS)


def test_random_experts_get_the_factor_of_the_one_that_they_stand_in_for() -> None:
    (arm,) = control_arms(
        "layer",
        "drop",
        SCALED.suppress,
        SCALED.stimulate,
        factors=SCALED.factors,
        layers=(2, 3, 4),
        num_experts=128,
        num_sets=1,
        seed=0,
        frequency=None,
        is_feasible=lambda down, up, shifts: True,
    )
    assert arm.factors == ((*arm.suppress[0], 0.25), (*arm.stimulate[0], 2.5))


@pytest.mark.parametrize("given", [{"strength": 0.5}, {"gain": "2"}, {"traces": Path("traces")}])
def test_strength_and_gain_want_given_experts_in_an_engine(given: dict[str, Any]) -> None:
    found = EvalRequest(
        prompts="what-happened:listed", output=Path("out"), model="m", split=0.5, find="refused", **given
    )
    served = EvalRequest(
        prompts="what-happened:listed", output=Path("out"), base_url="http://a", tuned_url="http://b", **given
    )
    for request in (found, served):
        with pytest.raises(InputError, match="--strength, --gain and --traces are of given experts in an engine"):
            request.check()
