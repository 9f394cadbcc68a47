"""Grows an expert set one expert at a time, by what each set as a whole was measured to do. Pure but for `measure`.

Forward selection: every step measures the set so far with each candidate added, so interactions count, and keeps the
candidate that moves most within the budget. After each addition every earlier expert is taken out once on trial, and
left out where the set does without it (the step back of a floating search).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.refine.measured import Measured, Pair

# A gain or loss of less than this share of responses is none: sets that differ by less are told apart by their KL.
LEAST_GAIN = 0.01


@dataclass(frozen=True)
class Step:
    """One set on the path: its experts in the order they were taken, what it moves and what it costs."""

    experts: tuple[Pair, ...]
    moved: float
    kl: float
    change: str  # "add" or "remove"
    expert: Pair  # the one added or removed


@dataclass(frozen=True)
class Growth:
    """The path of a search, why it ended, and how many sets it measured."""

    steps: tuple[Step, ...]
    ended: str
    num_measured: int

    @property
    def best(self) -> Step | None:
        """The set that moves most; of those within LEAST_GAIN of it the cheapest."""
        if not self.steps:
            return None
        most = max(step.moved for step in self.steps)
        near = [step for step in self.steps if step.moved >= most - LEAST_GAIN]
        return min(near, key=lambda step: (step.kl, len(step.experts)))

    def front(self) -> list[Step]:
        """The sets that no other set of the path beats in both, cheapest first."""
        front: list[Step] = []
        for step in sorted(self.steps, key=lambda one: (one.kl, -one.moved)):
            if not front or step.moved > front[-1].moved:
                front.append(step)
        return front


def grow(
    candidates: Sequence[Pair],
    measure: Callable[[Sequence[tuple[Pair, ...]]], Sequence[Measured]],
    base: Sequence[float],
    *,
    max_experts: int,
    budget_kl: float | None,
    is_feasible: Callable[[tuple[Pair, ...]], bool] = lambda experts: True,
) -> Growth:
    """Search from no expert to at most `max_experts` of the candidates.

    `measure` measures sets of experts as a whole; `base` [P] are the base's chances of the behaviour. The search ends
    at `max_experts`, when no candidate fits the budget, or when none gains LEAST_GAIN.
    """
    steps: list[Step] = []
    chosen: tuple[Pair, ...] = ()
    moved_now, kl_now = 0.0, 0.0
    num_measured = 0

    def affordable(sets: Sequence[tuple[Pair, ...]]) -> list[tuple[tuple[Pair, ...], float, float]]:
        nonlocal num_measured
        sets = [experts for experts in sets if is_feasible(experts)]
        measured = measure(sets)
        num_measured += len(sets)
        rows = [(experts, one.moved(base), one.kl) for experts, one in zip(sets, measured, strict=True)]
        return [row for row in rows if budget_kl is None or row[2] <= budget_kl]

    def better(row: tuple[tuple[Pair, ...], float, float]) -> tuple[float, float]:
        # Moves that differ by less than LEAST_GAIN are equal, and the cheaper set wins.
        return round(row[1] / LEAST_GAIN), -row[2]

    while len(chosen) < max_experts:
        rows = affordable([(*chosen, pair) for pair in candidates if pair not in chosen])
        if not rows:
            return Growth(tuple(steps), "no further candidate fits the KL budget or the router", num_measured)
        # Those first: one that gains less, and is cheaper, can round to as much as one that gains enough.
        rows = [row for row in rows if row[1] - moved_now >= LEAST_GAIN]
        if not rows:
            return Growth(tuple(steps), f"no candidate moves {LEAST_GAIN:.0%} more", num_measured)
        experts, moved, kl = max(rows, key=better)
        chosen, moved_now, kl_now = experts, moved, kl
        steps.append(Step(chosen, moved_now, kl_now, "add", chosen[-1]))
        while len(chosen) > 2:
            # The expert just added is not tried: without it stands the set before.
            fewer = [tuple(pair for pair in chosen if pair != out) for out in chosen[:-1]]
            rows = [row for row in affordable(fewer) if row[1] >= moved_now - LEAST_GAIN and row[2] <= kl_now]
            if not rows:
                break
            experts, moved, kl = max(rows, key=better)
            (removed,) = set(chosen) - set(experts)
            chosen, moved_now, kl_now = experts, moved, kl
            steps.append(Step(chosen, moved_now, kl_now, "remove", removed))
    return Growth(tuple(steps), f"{max_experts} experts reached", num_measured)
