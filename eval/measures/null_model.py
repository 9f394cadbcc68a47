"""Would other experts have done the same? Runs random sets and places the variant among them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from eval.answers.arms import Arm, Pair, Request
from eval.answers.collect import Collector
from eval.measures.controls import Matching, frequency_gap, random_sets
from eval.measures.outcomes import Outcomes, observe
from eval.measures.statistics import empirical_p_value
from eval.measures.targets import Target
from eval.measures.transitions import move_rate, moves
from eval.results import NullDistribution
from rewriter.semantics import Semantics

if TYPE_CHECKING:
    import numpy as np


def choose_requests(
    target: Target, base_labels: Sequence[str], *, num_at_risk: int, num_others: int, seed: int
) -> list[int]:
    """Positions of the answers that a control repeats, ascending: some at risk of the counted change, fewer of the others.

    Most random sets change nothing, so the null is about the answers that could move; the others show the opposite change.
    """
    generator = random.Random(f"control-prompts/{seed}")
    at_risk, _ = moves(target, base_labels, base_labels)
    risky = [position for position, risk in enumerate(at_risk) if risk]
    others = [position for position, risk in enumerate(at_risk) if not risk]
    return sorted(
        generator.sample(risky, min(num_at_risk, len(risky))) + generator.sample(others, min(num_others, len(others)))
    )


def control_arms(
    matching: Matching,
    semantics: Semantics,
    suppress: Sequence[Pair],
    stimulate: Sequence[Pair],
    *,
    layers: Sequence[int],
    num_experts: int,
    num_sets: int,
    seed: int,
    frequency: Mapping[int, np.ndarray] | None,
    is_feasible: Callable[[list[Pair], list[Pair]], bool],
) -> list[Arm]:
    """Arms that edit random experts in place of the ones under test: as many suppressed and as many stimulated.

    `is_feasible(suppressed, stimulated)` says whether the model can route under such an edit.
    """
    drawn = random_sets(
        matching,
        [*suppress, *stimulate],
        layers=layers,
        num_experts=num_experts,
        num_sets=num_sets,
        seed=seed,
        frequency=frequency,
        is_feasible=lambda pairs: is_feasible(pairs[: len(suppress)], pairs[len(suppress) :]),
    )
    return [
        Arm(
            name=f"random-{matching}-{number:03d}",
            kind="control",
            semantics=semantics,
            suppress=tuple(pairs[: len(suppress)]),
            stimulate=tuple(pairs[len(suppress) :]),
        )
        for number, pairs in enumerate(drawn, start=1)
    ]


def null_distribution(
    collector: Collector,
    target: Target,
    matching: Matching,
    arms: Sequence[Arm],
    requests: Sequence[Request],
    base: Outcomes,
    variant: Outcomes,
    *,
    tested: Sequence[Pair],
    frequency: Mapping[int, np.ndarray] | None,
    label_cut: bool,
) -> NullDistribution:
    """Run the control arms over `requests` and compare; `base` and `variant` hold the outcomes of the same requests."""
    before = base.labels(target.axis)
    values, opposite_values, damaged_values, sets = [], [], [], []
    for arm in arms:
        outcomes = observe(collector, arm, requests, label_cut=label_cut)
        after = outcomes.labels(target.axis)
        values.append(move_rate(target, before, after))
        opposite_values.append(opposite_rate(target, before, after))
        damaged_values.append(sum(outcomes.damaged()) / max(len(requests), 1))
        sets.append([*arm.suppress, *arm.stimulate])
    observed = move_rate(target, before, variant.labels(target.axis))
    at_risk, _ = moves(target, before, before)
    return NullDistribution(
        matching=matching,
        statistic=target.describe(),
        semantics=str(variant.arm.semantics),
        num_prompts_at_risk=sum(at_risk),
        num_other_prompts=len(at_risk) - sum(at_risk),
        observed=observed,
        null_values=values,
        opposite_observed=opposite_rate(target, before, variant.labels(target.axis)),
        opposite_null_values=opposite_values,
        damaged_observed=sum(variant.damaged()) / max(len(requests), 1),
        damaged_null_values=damaged_values,
        p_value=empirical_p_value(observed, values),
        mean=sum(values) / len(values),
        highest=max(values),
        frequency_gap=frequency_gap(sets, tested, frequency) if frequency is not None else None,
        experts_per_set=len(tested),
        sets=sets,
    )


def opposite_rate(target: Target, before: Sequence[str], after: Sequence[str]) -> float:
    """The share of the others that made the opposite change; 0 when there are none."""
    had_label = target.direction == "enter"
    risky = [(label == target.label) == had_label for label in before]
    made = sum(risk and (label == target.label) != had_label for risk, label in zip(risky, after, strict=True))
    return made / sum(risky) if any(risky) else 0.0


def select(outcomes: Outcomes, positions: Sequence[int]) -> Outcomes:
    """The outcomes at some positions."""
    chosen = Outcomes(outcomes.arm)
    for name in ("keys", "behaviors", "languages", "looping", "garbled", "canned"):
        values = getattr(outcomes, name)
        setattr(chosen, name, [values[position] for position in positions])
    return chosen
