import math
import tracemalloc

import numpy as np
import pytest

from eval.outcomes.statistics import clustered_ratio, exact_mcnemar, mean_interval, sequential_p_value, wilson


def wilson_by_hand(count: int, total: int) -> tuple[float, float]:
    """Wilson (1927), with the 97.5 % quantile of the normal distribution written out."""
    z = 1.959963984540054
    share = count / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return centre - half, centre + half


@pytest.mark.parametrize(("count", "total"), [(0, 10), (1, 400), (43, 400), (10, 10), (5, 9)])
def test_wilson_is_the_textbook_formula(count, total):
    rate = wilson(count, total)
    low, high = wilson_by_hand(count, total)
    assert rate.rate == count / total
    assert rate.low == pytest.approx(max(low, 0), abs=1e-12)
    assert rate.high == pytest.approx(min(high, 1), abs=1e-12)


def test_wilson_of_the_papers_language_counts():
    # statsmodels.stats.proportion.proportion_confint(43, 400, method="wilson") gives these digits.
    rate = wilson(43, 400)
    assert (round(rate.low, 5), round(rate.high, 5)) == (0.08079, 0.14167)


def test_wilson_of_nothing_is_no_rate():
    assert wilson(0, 0).rate is None
    with pytest.raises(ValueError, match="3 out of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (3, 12), (7, 7), (0, 9)])
def test_mcnemar_is_the_exact_binomial_sum(gained, lost):
    before = [True] * lost + [False] * gained + [True, False]
    after = [False] * lost + [True] * gained + [True, False]
    test = exact_mcnemar(before, after)
    pairs = gained + lost
    tail = sum(math.comb(pairs, k) for k in range(min(gained, lost) + 1)) / 2**pairs
    assert (test.gained, test.lost) == (gained, lost)
    assert test.p_value == pytest.approx(min(1.0, 2 * tail))


def test_mcnemar_of_statsmodels_table():
    # statsmodels.stats.contingency_tables.mcnemar([[5, 12], [3, 7]], exact=True).pvalue
    test = exact_mcnemar([True] * 12 + [False] * 3, [False] * 12 + [True] * 3)
    assert test.p_value == pytest.approx(0.03515625)


def test_mcnemar_refuses_unpaired_data():
    with pytest.raises(ValueError, match="shorter|longer"):
        exact_mcnemar([True], [True, False])


def test_clustered_ratio_with_one_unit_a_cluster_is_an_ordinary_bootstrap():
    made = np.array([1.0] * 30 + [0.0] * 70)
    interval = clustered_ratio(made, np.ones(100), [str(n) for n in range(100)], seed=1)
    # Normal approximation: 0.3 +- 1.96 * sqrt(0.3 * 0.7 / 100) = 0.3 +- 0.0898.
    assert interval.estimate == 0.3
    assert interval.low == pytest.approx(0.21, abs=0.015)
    assert interval.high == pytest.approx(0.39, abs=0.015)


def test_clustered_ratio_is_wider_when_clusters_answer_alike():
    made = np.array([1.0] * 50 + [0.0] * 50)
    alone = clustered_ratio(made, np.ones(100), [str(n) for n in range(100)])
    together = clustered_ratio(made, np.ones(100), [str(n // 25) for n in range(100)])
    assert together.num_clusters == 4
    assert together.high - together.low > 3 * (alone.high - alone.low)


def test_clustered_ratio_by_enumeration_of_two_clusters():
    # Clusters (1 of 2) and (2 of 2): drawn twice each gives 1/2, 3/4 or 1 with weights 1/4, 1/2, 1/4; so the 2.5 % and 97.5 %
    # quantiles are the ends.
    interval = clustered_ratio(np.array([1.0, 0, 1, 1]), np.ones(4), ["a", "a", "b", "b"])
    assert (interval.estimate, interval.low, interval.high) == (0.75, 0.5, 1.0)


def test_clusters_without_anything_at_risk_say_nothing():
    interval = clustered_ratio(np.array([1.0, 0, 0]), np.array([1.0, 1, 0]), ["a", "b", "c"])
    assert interval.num_clusters == 2
    assert clustered_ratio(np.zeros(2), np.zeros(2), ["a", "b"]).estimate is None


@pytest.mark.parametrize(
    ("num_as_many", "num_run", "expected"),
    [(0, 99, 0.01), (99, 99, 1.0), (9, 99, 0.1), (10, 12, 10 / 12), (10, 99, 0.11)],
)
def test_sequential_p_value_is_besag_and_clifford_s(num_as_many, num_run, expected):
    found = sequential_p_value(num_as_many, num_run, stop_after=10, num_planned=99)
    assert found == pytest.approx(expected)


def test_mean_interval_covers_the_t_interval_roughly():
    values = [7.0, 8.0, 9.0, 6.5, 8.5, 7.5, 9.5, 8.0, 7.0, 9.0]
    interval = mean_interval(values)
    # Mean 8.0, standard deviation 0.972, t(9) = 2.262: 8.0 +- 0.695.
    assert interval.estimate == 8.0
    assert 7.2 < interval.low < 7.7
    assert 8.3 < interval.high < 8.8
    assert mean_interval([3.0, 3.0]).low is None
    assert mean_interval([]).estimate is None


def test_resamples_in_parts_are_those_of_one_draw(monkeypatch):
    generator = np.random.default_rng(0)
    tops, names = generator.random(300), [f"place {n // 3}" for n in range(300)]
    whole = clustered_ratio(tops, np.ones(300), names)
    monkeypatch.setattr("eval.outcomes.statistics.DRAWN_AT_A_TIME", 700)
    assert clustered_ratio(tops, np.ones(300), names) == whole


def test_thousands_of_clusters_take_little_memory():
    names = [f"cluster {n}" for n in range(2000)]
    tops = np.random.default_rng(0).random(2000)
    tracemalloc.start()
    clustered_ratio(tops, np.ones(2000), names)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
