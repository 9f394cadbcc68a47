"""The search against planted effects: interactions, redundancy, budgets, and an exhaustive search where that is possible."""

import itertools
import random
from collections.abc import Callable, Sequence

from eval.refine.growing import LEAST_GAIN, grow
from eval.refine.measured import Measured, Pair

BASE = (1.0,) * 4


def measurer(
    effect: Callable[[tuple[Pair, ...]], tuple[float, float]],
) -> Callable[[Sequence[tuple[Pair, ...]]], list[Measured]]:
    def measure(sets: Sequence[tuple[Pair, ...]]) -> list[Measured]:
        return [Measured((1.0 - moved,) * len(BASE), kl) for moved, kl in map(effect, sets)]

    return measure


def test_one_cause_beats_a_louder_crowd() -> None:
    cause = (2, 46)

    def effect(experts: tuple[Pair, ...]) -> tuple[float, float]:
        crowd = sum(pair[0] == 3 for pair in experts)
        return (1.0 if cause in experts else 0.1 * crowd), 0.003 * (cause in experts) + 0.01 * crowd

    found = grow([(3, n) for n in range(6)] + [cause], measurer(effect), BASE, max_experts=6, budget_kl=None)
    assert found.best is not None
    assert found.best.experts == (cause,)
    assert found.ended == "no candidate moves 1% more"
    assert found.num_measured == 7 + 6


def test_a_cheap_candidate_that_gains_too_little_hides_none_that_gains_enough() -> None:
    """Both round to a hundredth of the responses; the search ended with the sentence that none moves as much."""
    values = {(1, 0): (0.0148, 0.5), (1, 1): (0.006, 0.1)}

    def effect(experts: tuple[Pair, ...]) -> tuple[float, float]:
        return max(values[pair][0] for pair in experts), sum(values[pair][1] for pair in experts)

    found = grow(list(values), measurer(effect), BASE, max_experts=3, budget_kl=None)
    assert [step.experts for step in found.steps] == [((1, 0),)]
    assert found.ended == "no candidate moves 1% more"


def test_redundant_experts_need_each_other() -> None:
    # Either of two stands in for the other: neither moves much alone, both together move all.
    def effect(experts: tuple[Pair, ...]) -> tuple[float, float]:
        both = {(1, 0), (1, 1)} <= set(experts)
        return (1.0 if both else 0.02 * len({(1, 0), (1, 1)} & set(experts))), 0.001 * len(experts)

    found = grow([(1, 0), (1, 1), (5, 5)], measurer(effect), BASE, max_experts=4, budget_kl=None)
    assert found.best is not None
    assert set(found.best.experts) == {(1, 0), (1, 1)}


def test_a_step_back_drops_what_is_no_longer_needed() -> None:
    a, b, c = (1, 0), (1, 1), (1, 2)
    values = {
        frozenset([a]): 0.5,
        frozenset([b]): 0.4,
        frozenset([c]): 0.1,
        frozenset([a, b]): 0.7,
        frozenset([a, c]): 0.6,
        frozenset([b, c]): 0.9,
        frozenset([a, b, c]): 0.9,
    }

    def effect(experts: tuple[Pair, ...]) -> tuple[float, float]:
        return values[frozenset(experts)], 0.01 * len(experts)

    found = grow([a, b, c], measurer(effect), BASE, max_experts=3, budget_kl=None)
    assert [(step.change, step.expert) for step in found.steps] == [("add", a), ("add", b), ("add", c), ("remove", a)]
    assert found.best is not None
    assert set(found.best.experts) == {b, c}


def test_the_budget_and_the_router_hold() -> None:
    def effect(experts: tuple[Pair, ...]) -> tuple[float, float]:
        return 0.2 * len(experts), 0.02 * len(experts)

    candidates = [(layer, 0) for layer in range(5)]
    found = grow(candidates, measurer(effect), BASE, max_experts=5, budget_kl=0.05)
    assert max(step.kl for step in found.steps) <= 0.05
    assert found.ended == "no further candidate fits the KL budget or the router"
    narrow = grow(
        candidates, measurer(effect), BASE, max_experts=5, budget_kl=None, is_feasible=lambda experts: len(experts) < 2
    )
    assert narrow.best is not None
    assert len(narrow.best.experts) == 1


def test_front_is_what_nothing_beats() -> None:
    def effect(experts: tuple[Pair, ...]) -> tuple[float, float]:
        return min(0.3 * len(experts), 0.8), 0.1 * len(experts) ** 2

    front = grow([(0, n) for n in range(5)], measurer(effect), BASE, max_experts=5, budget_kl=None).front()
    assert [len(step.experts) for step in front] == [1, 2, 3]
    assert all(a.kl < b.kl and a.moved < b.moved for a, b in itertools.pairwise(front))


def test_additive_effects_are_solved_as_by_exhaustive_search() -> None:
    for seed in range(20):
        generator = random.Random(seed)
        value = {(0, n): generator.uniform(0.02, 0.12) for n in range(7)}

        def effect(experts: tuple[Pair, ...], value: dict[Pair, float] = value) -> tuple[float, float]:
            return sum(value[pair] for pair in experts), 0.01

        found = grow(list(value), measurer(effect), BASE, max_experts=3, budget_kl=None)
        assert found.best is not None
        best = max(sum(value[pair] for pair in chosen) for chosen in itertools.combinations(value, 3))
        assert found.best.moved >= best - 3 * LEAST_GAIN
