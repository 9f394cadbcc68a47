"""Permutation, bootstrap and folds against brute force on cases small enough to enumerate."""

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import stats
from synthetic import make_maps

from ftri.analysis import resonance
from ftri.analysis import significance as statistics

PAPER = resonance.STATISTICS["paper"]


@pytest.fixture
def counts():
    generator = np.random.default_rng(5)
    values = generator.poisson(2.0, (9, 2, 4))
    values[:4, 1, 2] += 4
    return values


def test_max_t_p_values_approach_those_of_all_relabellings(counts):
    groups = np.repeat([0, 1], [4, 5])
    maps = make_maps(counts, groups)
    flat = counts.reshape(9, -1).astype(float)
    observed = statistics.observed_scores(maps, PAPER)
    null = []
    for chosen in itertools.combinations(range(9), 4):
        own = np.isin(np.arange(9), chosen)
        null.append(flat[own].mean(axis=0) - flat[~own].mean(axis=0))
    null = np.array(null)
    exact_max = (null.max(axis=1)[:, None] >= observed - 1e-9).mean(axis=0)
    exact_raw = (null >= observed - 1e-9).mean(axis=0)
    found = statistics.permutation_test(maps, PAPER, 4000, seed=1)
    assert np.abs(found.p_max_t - exact_max).max() < 0.03
    assert np.abs(found.p_value - exact_raw).max() < 0.03
    assert (found.p_max_t >= found.p_value).all()


def test_p_value_counts_itself_and_ties():
    # Every relabelling gives the same map: nothing can be significant.
    maps = make_maps(np.full((6, 1, 3), 2), np.repeat([0, 1], 3))
    found = statistics.permutation_test(maps, PAPER, 99)
    assert (found.p_max_t == 1).all() and (found.p_value == 1).all()
    # A clear effect cannot get below 1 / (N + 1).
    strong = np.zeros((40, 1, 3))
    strong[:20, 0, 1] = 5
    found = statistics.permutation_test(make_maps(strong, np.repeat([0, 1], 20)), PAPER, 199)
    assert found.p_max_t[1] == pytest.approx(1 / 200)


@pytest.mark.parametrize("name", resonance.STATISTICS)
def test_family_wise_error_is_kept_without_any_effect(name):
    """Over 60 null data sets the smallest max-T p falls below 0.05 in few."""
    generator = np.random.default_rng(11)
    rejections = 0
    for seed in range(60):
        counts = generator.poisson(1.0, (24, 2, 8))
        maps = make_maps(counts, generator.permutation(np.arange(24) % 3))
        found = statistics.permutation_test(maps, resonance.STATISTICS[name], 99, seed)
        rejections += found.p_max_t.min() <= 0.05
    assert rejections <= 9


def test_sums_over_maps_of_r1_s_size_work_on_a_part_at_a_time():
    maps = make_maps(np.ones((800, 58, 256)), np.arange(800) % 2)
    tracemalloc.start()
    try:
        scores = statistics.observed_scores(maps, PAPER)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert scores.shape == (58 * 256,)
    # A whole block of before, and its cast to float64, took 96 MB; the last one of each was still there beside the next.
    assert peak < 50e6


def test_samples_of_a_prompt_are_shuffled_and_resampled_together():
    groups = np.tile([0, 0, 1], 4)
    maps = make_maps(np.zeros((12, 1, 2)), groups, samples=3)
    clusters = statistics.prompt_clusters(maps)
    shuffled = statistics.shuffled_groups(groups, clusters, 50, np.random.default_rng(0))
    assert (shuffled.reshape(50, 4, 3) == [0, 0, 1]).all()
    uneven = np.array([0, 0, 1, 1, 0, 1])
    maps = make_maps(np.zeros((6, 1, 2)), uneven, samples=2)
    shuffled = statistics.shuffled_groups(uneven, statistics.prompt_clusters(maps), 200, np.random.default_rng(0))
    patterns = {tuple(sorted(map(tuple, row.reshape(3, 2).tolist()))) for row in shuffled}
    assert patterns == {((0, 0), (0, 1), (1, 1))} and len({tuple(row) for row in shuffled.tolist()}) == 6


def test_benjamini_hochberg_is_welch_and_scipy(counts):
    groups = np.repeat([0, 1], [4, 5])
    counts[:, 0, 0] = 3  # no variance: the permutation's p-value stands in
    maps = make_maps(counts, groups)
    p_value, q_value = statistics.benjamini_hochberg(maps, np.full(8, 0.7))
    expected = stats.ttest_ind(counts[:4], counts[4:], equal_var=False, alternative="greater").pvalue.reshape(-1)
    expected[0] = 0.7
    np.testing.assert_allclose(p_value, expected, rtol=1e-9)
    np.testing.assert_allclose(q_value, stats.false_discovery_control(expected), rtol=1e-9)


def test_bootstrap_is_repeatable_and_finds_the_planted_expert(counts):
    maps = make_maps(np.tile(counts, (4, 1, 1)), np.tile(np.repeat([0, 1], [4, 5]), 4))
    ranked = resonance.rank(statistics.observed_scores(maps, PAPER))
    first, again, other = (statistics.bootstrap(maps, PAPER, 1, ranked[:3], 300, seed) for seed in (0, 0, 1))
    assert (first.in_top == again.in_top).all() and (first.low == again.low).all()
    assert not (first.low == other.low).all()
    assert ranked[0] == 6 and first.in_top[6] > 0.95 and first.in_top.sum() == pytest.approx(1)
    score = statistics.observed_scores(maps, PAPER)[6]
    assert first.low[0] < score < first.high[0]


def test_leave_one_out_drops_the_place_that_carries_an_expert():
    places = np.array(["b", "b", "b", "l", "l", "l", "p", "p", "p", "q"])
    groups = np.array([0, 0, 1, 0, 1, 1, 0, 1, 1, 1])
    counts = np.zeros((10, 1, 3))
    counts[groups == 0, 0, 0] = 1  # everywhere in the class
    counts[places == "b", 0, 1] = 4  # one place only
    maps = make_maps(counts, groups, factors=places.tolist())
    folds = {fold.value: fold for fold in statistics.leave_one_out(maps, PAPER, "place", 1)}
    assert resonance.rank(statistics.observed_scores(maps, PAPER))[0] == 1
    assert folds["b"].overlap == 0.0 and folds["l"].overlap == folds["q"].overlap == 1.0
    only = make_maps(counts[:4], groups[:4], factors=["b", "b", "l", "b"])
    assert {fold.value: fold.overlap for fold in statistics.leave_one_out(only, PAPER, "place", 1)}["l"] is None


def test_large_sums_leave_float32():
    maps = make_maps(np.full((4, 1, 2), 2**23), np.array([0, 0, 1, 1]), num_tokens=[2**23] * 4)
    found = statistics.permutation_test(maps, PAPER, 99)
    assert (found.p_value == 1).all()


def test_more_samples_of_a_prompt_make_no_p_value_smaller(counts):
    """Ten equal samples of every prompt say no more than one of each."""
    groups = np.repeat([0, 1], [4, 5])
    once = make_maps(counts, groups)
    often = make_maps(np.repeat(counts, 10, axis=0), np.repeat(groups, 10), samples=10)
    fallback = np.full(8, 0.5)
    np.testing.assert_allclose(
        statistics.benjamini_hochberg(often, fallback)[0], statistics.benjamini_hochberg(once, fallback)[0], rtol=1e-9
    )


def test_uneven_samples_count_as_their_prompts_means():
    generator = np.random.default_rng(3)
    counts = generator.poisson(3.0, (12, 1, 5))
    groups = np.repeat([0, 1], 6)
    maps = make_maps(counts, groups, samples=3)
    means = counts.reshape(4, 3, 5).mean(axis=1)
    expected = stats.ttest_ind(means[:2], means[2:], equal_var=False, alternative="greater").pvalue
    np.testing.assert_allclose(statistics.benjamini_hochberg(maps, np.ones(5))[0], expected, rtol=1e-9)


@pytest.mark.parametrize("num_classes", [60, 200])
def test_many_small_classes_end_and_do_not_wrap(num_classes):
    """Hardly a sample has all of them, and their numbers do not fit into a signed byte."""
    class_mean = resonance.STATISTICS["class-mean"]
    groups = np.concatenate([np.zeros(20, int), np.repeat(np.arange(1, num_classes), 2)])
    counts = np.random.default_rng(0).poisson(2.0, (len(groups), 1, 6)).astype(float)
    counts[groups == 0, 0, 3] += 6
    maps = make_maps(counts, groups, labels=[str(group) for group in groups])
    observed = statistics.observed_scores(maps, class_mean)
    by_hand = np.mean([counts[groups == group].mean(axis=0)[0] for group in range(1, num_classes)], axis=0)
    np.testing.assert_allclose(observed, counts[groups == 0].mean(axis=0)[0] - by_hand)
    found = statistics.bootstrap(maps, class_mean, 1, resonance.rank(observed)[:2], 50)
    assert found.in_top[3] == 1 and found.low[0] < observed[3] < found.high[0]
    shuffled = statistics.shuffled_groups(groups, statistics.prompt_clusters(maps), 20, np.random.default_rng(0))
    assert (np.sort(shuffled, axis=1) == np.sort(groups)).all()
