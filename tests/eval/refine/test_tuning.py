"""Strengths are searched within the budget, drawn again alike, and end in the expert set as bias shifts."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from eval.answers.arms import Shift
from eval.experts import is_routable, open_model, shift_widths
from eval.measures.controls import control_arms
from eval.refine.measured import Measured
from eval.refine.options import RefineRequest
from eval.refine.tuning import Dose, Tuning, dose_of, tune
from rewriter.errors import InputError, PlanError

MINIATURES = Path(__file__).parents[3] / "examples"
WIDTHS = {1: 1.5, 2: 1.5}
CAUSE, LOUD, OTHER = (1, 3), (2, 7), (2, 1)
BASE = [0.9] * 4


def borne(shift: Shift) -> bool:
    return True


def planted(doses: Sequence[Dose]) -> list[Measured]:
    """CAUSE moves all from a shift of -0.1 on and costs by it; LOUD costs a lot and moves nothing; OTHER moves a little."""
    measured = []
    for dose in doses:
        shifts = {(layer, expert): -shift for layer, expert, shift in dose.bias_shifts}
        strength = {pair: shifts.get(pair, 1.5) for pair in dose.experts}
        effect = min(strength.get(CAUSE, 0.0) / 0.1, 1.0) * 0.9 + min(strength.get(OTHER, 0.0), 0.05)
        kl = 0.1 * strength.get(CAUSE, 0.0) + 0.5 * strength.get(LOUD, 0.0) + 0.1 * strength.get(OTHER, 0.0)
        measured.append(Measured(tuple(0.9 * (1 - min(effect, 1.0)) for _ in BASE), kl))
    return measured


def tuned(budget_kl: float, num_trials: int = 16, seed: int = 0) -> Tuning:
    return tune(
        [CAUSE, LOUD], [OTHER], WIDTHS, borne, planted, BASE, budget_kl=budget_kl, num_trials=num_trials, seed=seed
    )


def test_a_budget_that_no_whole_reroute_fits_is_met_by_a_part() -> None:
    whole = planted([Dose((CAUSE,))])[0]
    assert whole.kl == pytest.approx(0.15)
    best = tuned(0.05, 64).best
    assert best is not None
    assert best.kl <= 0.05
    assert best.moved > 0.85
    assert LOUD not in best.dose.experts or dict((one[:2], one[2]) for one in best.dose.bias_shifts)[LOUD] > -0.1


def test_the_first_trials_are_the_grown_set_as_a_whole_and_its_parts() -> None:
    trials = tuned(1.0, 5).trials
    assert trials[0].dose == Dose((CAUSE, LOUD))
    assert trials[2].dose == Dose((CAUSE, LOUD), ((*CAUSE, -0.1875), (*LOUD, -0.1875)))
    assert len(trials) == 5


def test_the_same_trials_are_drawn_again_and_others_for_another_seed() -> None:
    assert tuned(0.05) == tuned(0.05)
    assert tuned(0.05).trials != tuned(0.05, seed=1).trials


def test_nothing_within_the_budget_is_no_set() -> None:
    assert tuned(-1.0, 4).best is None


def test_strengths_reach_from_none_over_finite_shifts_to_all() -> None:
    dose = dose_of({CAUSE: 0.04, LOUD: 0.5, OTHER: 1.0}, WIDTHS, borne)
    assert dose == Dose((LOUD, OTHER), ((*LOUD, -0.1875),))
    assert dose_of({CAUSE: 0.3333333}, {1: 1.3}, borne).bias_shifts == ((*CAUSE, -0.04815),)


def test_what_cannot_be_tuned_says_so() -> None:
    request = RefineRequest(model="m", prompts="p", output=Path("o"), semantics="drop", tune_strength=True)
    with pytest.raises(
        InputError, match="--tune-strength shifts router biases, so --semantics is drop, expected reroute"
    ):
        request.check()
    with pytest.raises(PlanError, match="qwen_moe has no router bias, so no strength is tuned by it"):
        shift_widths(open_model(str(MINIATURES / "tiny-qwen3"), None, lambda message: None))
    widths = shift_widths(open_model(str(MINIATURES / "tiny-r1"), None, lambda message: None))
    assert {layer: round(width, 3) for layer, width in widths.items()} == {2: 1.367, 3: 1.429, 4: 1.428}


def test_a_shift_that_a_16_bit_bias_rounds_away_is_no_dose_and_no_control(tmp_path: Path) -> None:
    folder = shutil.copytree(MINIATURES / "tiny-r1", tmp_path / "bf16")
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        save_file({name: one.bfloat16() if "bias" in name else one for name, one in tensors.items()}, shard)
    model = open_model(str(folder), None, lambda message: None)
    widths = shift_widths(model)

    def bears(shift: Shift) -> bool:
        return is_routable(model, [shift[:2]], (), [shift])

    pairs = [(2, expert) for expert in range(model.layout.num_experts)]
    doses = [
        dose_of({pair: 0.05 for pair in pairs}, widths, bears),
        dose_of(dict.fromkeys(pairs[:8], 0.3), widths, bears),
    ]
    assert 0 < len(doses[0].experts) < len(pairs)
    assert len(doses[1].experts) == 8
    for dose in doses:
        assert is_routable(model, dose.experts, (), dose.bias_shifts)
    (weak,) = doses[0].bias_shifts[:1]
    arms = control_arms(
        "layer",
        "reroute",
        [weak[:2]],
        (),
        bias_shifts=[weak],
        layers=[2],
        num_experts=len(pairs),
        num_sets=20,
        seed=0,
        frequency=None,
        is_feasible=partial(is_routable, model),
    )
    assert len(arms) == 20
    # Of the others most hold no shift so small, and get the next that they hold.
    assert {arm.bias_shifts[0][2] / weak[2] for arm in arms} > {4.0}
    assert all(is_routable(model, arm.suppress, (), arm.bias_shifts) for arm in arms)
