"""Random expert sets to compare a variant with: what would as many other experts have done?

A pair is (model layer, expert). Legend: L MoE layers, E experts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from eval.answers.arms import Pair
from eval.options import Matching
from rewriter.errors import InputError

if TYPE_CHECKING:
    import numpy as np

# Candidates per target expert in frequency matching: near enough to be alike, enough to make many different sets.
NUM_NEAREST = 8
MAX_ATTEMPTS_PER_SET = 200


def random_sets(
    matching: Matching,
    target: Sequence[Pair],
    *,
    layers: Sequence[int],
    num_experts: int,
    num_sets: int,
    seed: int,
    frequency: Mapping[int, np.ndarray] | None = None,
    is_feasible: Callable[[list[Pair]], bool] = lambda pairs: True,
) -> list[list[Pair]]:
    """Draw `num_sets` different sets of as many experts as `target`, none of them in it; fewer where there are fewer.

    `uniform`: any MoE layer; `layer`: as many in each layer as the target has; `frequency`: in each layer, for each target expert
    one of the experts that fire about as often, without replacement. `frequency` maps a model layer to float
    [E], selections per token. A small target has few different sets of its nearest experts: then they are drawn from
    twice as many, and so on to the whole layer. One expert has at most E - 1 others in its layer.
    A set that `is_feasible` rejects (a layer would run out of experts) is drawn again.

    Raises: InputError when the model has not even one other such set.
    """
    excluded = set(target)
    num_nearest = NUM_NEAREST
    while True:
        generator = random.Random(f"{seed}/{matching}")
        drawn: list[list[Pair]] = []
        seen: set[frozenset[Pair]] = set()
        for _ in range(num_sets * MAX_ATTEMPTS_PER_SET):
            if len(drawn) == num_sets:
                return drawn
            candidate = _draw(matching, target, excluded, layers, num_experts, frequency, num_nearest, generator)
            fingerprint = frozenset(candidate)
            if fingerprint in seen:
                continue
            seen.add(fingerprint)
            if is_feasible(candidate):
                drawn.append(candidate)
        if len(drawn) == num_sets:
            return drawn
        if matching != "frequency" or num_nearest >= num_experts:
            break
        num_nearest *= 2
    if not drawn:
        raise InputError(
            f"no random set of {len(target)} experts matched by {matching} could be drawn from {len(layers)} layers of"
            f" {num_experts} experts that the routers bear, expected {num_sets}"
        )
    return drawn


def _draw(
    matching: Matching,
    target: Sequence[Pair],
    excluded: set[Pair],
    layers: Sequence[int],
    num_experts: int,
    frequency: Mapping[int, np.ndarray] | None,
    num_nearest: int,
    generator: random.Random,
) -> list[Pair]:
    """One random set; its n-th expert stands in for the target's n-th."""
    if matching == "uniform":
        others = [
            (layer, expert) for layer in layers for expert in range(num_experts) if (layer, expert) not in excluded
        ]
        _require(len(others) >= len(target), len(target), "the model", len(others))
        return generator.sample(others, len(target))
    if matching == "frequency" and frequency is None:
        raise InputError(
            "controls matched by activation frequency need the base model's recorded routing, found none; give"
            " --control-matching uniform"
        )
    chosen: dict[Pair, Pair] = {}
    # A random order of the targets, so that the first of a layer does not always get the best match.
    for layer, expert in generator.sample(list(target), len(target)):
        taken = set(chosen.values())
        free = [e for e in range(num_experts) if (layer, e) not in excluded and (layer, e) not in taken]
        _require(bool(free), sum(pair[0] == layer for pair in target), f"layer {layer}", num_experts)
        if matching == "frequency" and frequency is not None:
            rates = frequency[layer]
            wanted = rates[expert]
            free.sort(key=lambda e: (abs(rates[e] - wanted), generator.random()))
            free = free[:num_nearest]
        chosen[layer, expert] = (layer, generator.choice(free))
    return [chosen[pair] for pair in target]


def frequency_gap(sets: Sequence[Sequence[Pair]], target: Sequence[Pair], frequency: Mapping[int, np.ndarray]) -> float:
    """How well sets match the target: the mean over sets of |mean rate of the set - mean rate of the target|,
    selections per token."""
    wanted = sum(float(frequency[layer][expert]) for layer, expert in target) / len(target)
    gaps = [
        abs(sum(float(frequency[layer][expert]) for layer, expert in chosen) / len(chosen) - wanted) for chosen in sets
    ]
    return sum(gaps) / len(gaps)


def _require(enough: bool, wanted: int, place: str, available: int) -> None:
    if not enough:
        raise InputError(
            f"{wanted} random experts wanted in {place}, which has {available} besides the ones under test"
        )
