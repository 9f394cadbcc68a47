"""Strengths are searched within the budget, drawn again alike, and end in the expert set as bias shifts."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from eval.experts import open_model, shift_widths
from eval.refine.measured import Measured
from eval.refine.options import RefineRequest
from eval.refine.tuning import Dose, Tuning, dose_of, tune
from rewriter.errors import InputError, PlanError

MINIATURES = Path(__file__).parents[3] / "examples"
WIDTHS = {1: 1.5, 2: 1.5}
CAUSE, LOUD, OTHER = (1, 3), (2, 7), (2, 1)
BASE = [0.9] * 4


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
    return tune([CAUSE, LOUD], [OTHER], WIDTHS, planted, BASE, budget_kl=budget_kl, num_trials=num_trials, seed=seed)


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
    dose = dose_of({CAUSE: 0.04, LOUD: 0.5, OTHER: 1.0}, WIDTHS)
    assert dose == Dose((LOUD, OTHER), ((*LOUD, -0.1875),))
    assert dose_of({CAUSE: 0.3333333}, {1: 1.3}).bias_shifts == ((*CAUSE, -0.04815),)


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
