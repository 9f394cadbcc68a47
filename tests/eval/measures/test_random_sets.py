from collections import Counter

import numpy as np
import pytest

from eval.measures.random_sets import frequency_gap, random_sets
from rewriter.errors import InputError

LAYERS = range(3, 13)
TARGET = [(3, 0), (3, 1), (5, 7), (12, 31)]


def draw(matching, **changes):
    keywords = {"layers": LAYERS, "num_experts": 32, "num_sets": 50, "seed": 1} | changes
    return random_sets(matching, TARGET, **keywords)


def frequencies():
    generator = np.random.default_rng(0)
    return {layer: generator.random(32) for layer in LAYERS}


@pytest.mark.parametrize("matching", ["uniform", "layer", "frequency"])
def test_sets_are_different_and_avoid_the_target(matching):
    sets = draw(matching, frequency=frequencies())
    assert len({frozenset(chosen) for chosen in sets}) == 50
    assert all(len(set(chosen)) == len(TARGET) and not set(chosen) & set(TARGET) for chosen in sets)


@pytest.mark.parametrize("matching", ["layer", "frequency"])
def test_layer_matching_keeps_the_number_in_every_layer(matching):
    for chosen in draw(matching, frequency=frequencies()):
        assert Counter(layer for layer, _ in chosen) == Counter(layer for layer, _ in TARGET)


def test_uniform_sets_reach_all_layers_alike():
    counts = Counter(layer for chosen in draw("uniform", num_sets=1000) for layer, _ in chosen)
    # 4,000 draws over 10 layers with 32 (30, 31, 31 in three) experts each: 400 +- 4 standard deviations of 19.
    assert set(counts) == set(LAYERS)
    assert all(320 < count < 480 for count in counts.values())


def test_frequency_matching_is_nearer_than_layer_matching():
    rates = frequencies()
    assert frequency_gap(draw("frequency", frequency=rates), TARGET, rates) < 0.5 * frequency_gap(
        draw("layer"), TARGET, rates
    )


def test_frequency_matching_takes_only_the_nearest():
    rates = {layer: np.arange(32) / 32 for layer in LAYERS}
    chosen = {pair for one in draw("frequency", frequency=rates) for pair in one if pair[0] == 5}
    # Expert 7 fires 7/32: its eight nearest are 3..6 and 8..11.
    assert {expert for _, expert in chosen} <= {3, 4, 5, 6, 8, 9, 10, 11}


def test_the_seed_decides():
    assert draw("layer") == draw("layer")
    assert draw("layer") != draw("layer", seed=2)


def test_infeasible_sets_are_drawn_again():
    sets = draw("uniform", is_feasible=lambda pairs: all(layer != 4 for layer, _ in pairs))
    assert all(layer != 4 for chosen in sets for layer, _ in chosen)


def test_a_small_target_gets_all_the_sets_that_there_are():
    sets = random_sets("layer", [(0, 0)], layers=[0], num_experts=3, num_sets=5, seed=0)
    assert sorted(sets) == [[(0, 1)], [(0, 2)]]
    rates = {0: np.arange(32) / 32}
    one = random_sets("frequency", [(0, 7)], layers=[0], num_experts=32, num_sets=99, seed=0, frequency=rates)
    assert sorted(one) == [[(0, expert)] for expert in range(32) if expert != 7]
    # Two experts have 64 sets of their eight nearest each; 99 are drawn from their sixteen nearest.
    pair = [(0, 7), (1, 20)]
    both = random_sets(
        "frequency", pair, layers=[0, 1], num_experts=32, num_sets=99, seed=0, frequency=rates | {1: rates[0]}
    )
    assert len({frozenset(chosen) for chosen in both}) == 99
    assert {expert for chosen in both for layer, expert in chosen if layer == 0} <= set(range(17))


def test_a_model_with_too_few_experts_is_refused():
    with pytest.raises(InputError, match="no random set of 1 experts matched by layer"):
        random_sets("layer", [(0, 0)], layers=[0], num_experts=3, num_sets=5, seed=0, is_feasible=lambda pairs: False)
    with pytest.raises(InputError, match="2 random experts wanted in layer 0"):
        random_sets("layer", [(0, 0), (0, 1)], layers=[0], num_experts=2, num_sets=1, seed=0)
    with pytest.raises(InputError, match="recorded routing"):
        draw("frequency")
