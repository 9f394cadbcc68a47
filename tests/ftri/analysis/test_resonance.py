"""Every ranking formula against a slow and obvious reference; the paper's bit for bit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import make_maps

from ftri.analysis import resonance
from ftri.analysis import significance as statistics

L, E = 3, 5


@pytest.fixture
def example():
    generator = np.random.default_rng(3)
    counts = generator.poisson(1.5, (24, L, E))
    counts[:, 0, 0] = 0  # never selected
    counts[:, 1, 1] = np.arange(24) < 9  # constant in each group
    groups = np.repeat([0, 1, 2], [9, 5, 10])
    tokens = generator.integers(8, 14, 24)
    return counts, groups, tokens


def slow_scores(name, counts, groups, tokens):
    """One expert at a time, with plain Python numbers."""
    rows = range(len(groups))
    own, rest = [p for p in rows if groups[p] == 0], [p for p in rows if groups[p] != 0]
    scores = np.zeros((L, E))
    for layer in range(L):
        for expert in range(E):
            x = [int(counts[p, layer, expert]) for p in rows]
            scores[layer, expert] = slow_score(name, x, own, rest, groups, tokens, counts[:, layer])
    return scores


def slow_score(name, x, own, rest, groups, tokens, layer_counts):
    a, b = sum(x[p] for p in own), sum(x[p] for p in rest)
    n1, n2 = sum(int(tokens[p]) for p in own), sum(int(tokens[p]) for p in rest)
    if name == "paper":
        return a / len(own) - b / len(rest)
    if name == "class-mean":
        means = [np.mean([x[p] for p in rest if groups[p] == group]) for group in (1, 2)]
        return a / len(own) - sum(means) / 2
    if name == "rate":
        return np.mean([x[p] / tokens[p] for p in own]) - np.mean([x[p] / tokens[p] for p in rest])
    if name == "risk-difference":
        return a / n1 - b / n2
    if name == "npmi":
        if a == 0:
            return -1.0
        n = n1 + n2
        return math.log2((a / n) / ((a + b) / n * n1 / n)) / -math.log2(a / n)
    if name == "log-odds":
        pooled = [int(layer_counts[:, e].sum()) + 0.5 for e in range(E)]
        alpha = E * (a + b + 0.5) / sum(pooled)
        t1, t2 = int(layer_counts[own].sum()) + E, int(layer_counts[rest].sum()) + E
        first, second = a + alpha, b + alpha
        delta = math.log(first / (t1 - first)) - math.log(second / (t2 - second))
        return delta / math.sqrt(1 / first + 1 / second)
    values = [np.array([x[p] for p in side], float) for side in (own, rest)]
    error = sum(side.var(ddof=1) / len(side) for side in values)
    difference = values[0].mean() - values[1].mean()
    return difference / math.sqrt(error) if error else np.sign(difference) * 1e6


@pytest.mark.parametrize("name", resonance.STATISTICS)
def test_formula(example, name):
    counts, groups, tokens = example
    scores = statistics.observed_scores(make_maps(counts, groups, tokens), resonance.STATISTICS[name])
    np.testing.assert_allclose(scores.reshape(L, E), slow_scores(name, counts, groups, tokens), rtol=1e-12, atol=1e-12)


def test_welch_agrees_with_scipy(example):
    from scipy import stats

    counts, groups, _ = example
    scores = statistics.observed_scores(make_maps(counts, groups), resonance.STATISTICS["welch"]).reshape(L, E)
    expected = stats.ttest_ind(counts[groups == 0], counts[groups > 0], equal_var=False).statistic
    np.testing.assert_allclose(scores[2], expected[2], rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 400))
def test_the_papers_map_is_bit_exact_in_every_order_of_prompts(seed, num_prompts, largest):
    """Against sums of Python integers, divided once: no rounding may come in, whatever the order or the store."""
    generator = np.random.default_rng(seed)
    counts = generator.integers(0, largest, (num_prompts, L, E))
    groups = generator.permutation(np.arange(num_prompts) % 2)
    slow = np.zeros((L, E))
    for layer in range(L):
        for expert in range(E):
            own = [int(counts[p, layer, expert]) for p in range(num_prompts) if groups[p] == 0]
            rest = [int(counts[p, layer, expert]) for p in range(num_prompts) if groups[p] == 1]
            slow[layer, expert] = sum(own) / len(own) - sum(rest) / len(rest)
    in_file = make_maps(counts, groups, max_memory_bytes=4 * L * E * 3)
    for maps in (make_maps(counts, groups), in_file):
        scores = statistics.observed_scores(maps, resonance.STATISTICS["paper"]).reshape(L, E)
        assert (scores == slow).all()
    assert (resonance.resonance_map(counts, groups == 0) == slow).all()
    ranked = sorted(((layer, expert) for layer in range(L) for expert in range(E)), key=lambda at: (-slow[at], at))
    assert resonance.top_experts(slow, 7) == ranked[:7]


def test_pooled_prompts_and_class_means_differ(example):
    counts, groups, _ = example
    maps = make_maps(counts, groups)
    paper, class_mean = (
        statistics.observed_scores(maps, resonance.STATISTICS[name]) for name in ("paper", "class-mean")
    )
    assert np.abs(paper - class_mean).max() > 0.01
