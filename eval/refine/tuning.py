"""Tunes how strongly each expert of a set is rerouted: finite shifts of router biases, searched by optuna within a budget of KL.

A strength from 0 to 1 of each expert is what is searched: below LEAST_STRENGTH the expert is left out, from WHOLE_STRENGTH on
it is rerouted as a whole, and between them its bias is shifted by width x strength^3, where the width is the distance within
which a bias decides anything (the layer's spread of biases and the range of the score). The cube is there because the shifts
that matter are small parts of that width. Every trial is a set measured as a whole on the bench that grew the set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eval.answers.arms import Shift
from eval.refine.growing import LEAST_GAIN
from eval.refine.measured import Measured, Pair

LEAST_STRENGTH = 0.05
WHOLE_STRENGTH = 0.95
# Trials are drawn so many at a time, which share batches of the engine.
TRIALS_AT_A_TIME = 8
# Strengths of the grown set as a whole that are tried first: all of it, and the parts that others report to do best.
FIRST_STRENGTHS = (1.0, 0.75, 0.5, 0.35)
# Digits of a shift as the expert set holds it.
SHIFT_DIGITS = 4


@dataclass(frozen=True)
class Dose:
    """Experts to suppress, and the bias shifts of those that stay selectable; the others are rerouted as a whole."""

    experts: tuple[Pair, ...]
    bias_shifts: tuple[Shift, ...] = ()


@dataclass(frozen=True)
class Trial:
    """One dose as it was measured: what it moves and what it costs, KL in nats a token."""

    dose: Dose
    moved: float
    kl: float


@dataclass(frozen=True)
class Tuning:
    """All trials in the order in which they were drawn, and the most KL that a dose may cost."""

    trials: tuple[Trial, ...]
    budget_kl: float

    @property
    def best(self) -> Trial | None:
        """Of the trials within the budget the one that moves most; of those within LEAST_GAIN of it the cheapest."""
        affordable = [one for one in self.trials if one.dose.experts and one.kl <= self.budget_kl]
        if not affordable:
            return None
        most = max(one.moved for one in affordable)
        near = [one for one in affordable if one.moved >= most - LEAST_GAIN]
        best = min(near, key=lambda one: (one.kl, len(one.dose.experts)))
        return best if best.moved >= LEAST_GAIN else None


def dose_of(strengths: Mapping[Pair, float], widths: Mapping[int, float], bears: Callable[[Shift], bool]) -> Dose:
    """The dose that strengths (0 to 1) of experts stand for; `widths` by layer. An expert whose bias does not bear its shift,
    which the rounding of a 16-bit bias would undo, is left out as one of no strength.
    """
    experts, shifts = [], []
    for (layer, expert), strength in strengths.items():
        if strength < LEAST_STRENGTH:
            continue
        if strength < WHOLE_STRENGTH:
            shift = (layer, expert, float(f"{-widths[layer] * strength**3:.{SHIFT_DIGITS}g}"))
            if not bears(shift):
                continue
            shifts.append(shift)
        experts.append((layer, expert))
    return Dose(tuple(experts), tuple(shifts))


def tune(
    grown: Sequence[Pair],
    others: Sequence[Pair],
    widths: Mapping[int, float],
    bears: Callable[[Shift], bool],
    measure: Callable[[Sequence[Dose]], Sequence[Measured]],
    base: Sequence[float],
    *,
    budget_kl: float,
    num_trials: int,
    seed: int,
) -> Tuning:
    """Search doses of the grown set and of other experts, which begin at none.

    `widths` and `bears` as in `dose_of`; `measure` measures doses as wholes; `base` [P] are the base's chances of the
    behaviour. Nothing but the trials and the seed decides what is drawn, so a search that was stopped draws the same again.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pairs = [*grown, *others]
    names = {pair: f"{pair[0]}/{pair[1]}" for pair in pairs}
    study = optuna.create_study(
        directions=["maximize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=seed),
    )
    for strength in FIRST_STRENGTHS:
        study.enqueue_trial({name: strength if pair in grown else 0.0 for pair, name in names.items()})
    trials: list[Trial] = []
    while len(trials) < num_trials:
        asked = [study.ask() for _ in range(min(TRIALS_AT_A_TIME, num_trials - len(trials)))]
        doses = [
            dose_of({pair: one.suggest_float(name, 0, 1) for pair, name in names.items()}, widths, bears)
            for one in asked
        ]
        for one, dose, measured in zip(asked, doses, measure(doses), strict=True):
            trial = Trial(dose, measured.moved(base), measured.kl)
            one.set_constraint("KL above the budget", trial.kl - budget_kl)
            study.tell(one, [trial.moved, trial.kl])
            trials.append(trial)
    return Tuning(tuple(trials), budget_kl)
