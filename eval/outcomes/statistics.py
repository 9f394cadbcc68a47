"""Rates with intervals, paired tests, clustered bootstrap and empirical p-values. Pure; legend: P prompts, B
resamples, G clusters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    import numpy as np

CONFIDENCE = 0.95


class Rate(BaseModel):
    """A count out of a total with its Wilson score interval (95 %); the rate is None when the total is 0."""

    count: int
    total: int
    rate: float | None
    low: float | None
    high: float | None


class Interval(BaseModel):
    """An estimate with a 95 % interval; None where the data cannot give it."""

    estimate: float | None
    low: float | None
    high: float | None
    num_clusters: int


class McNemar(BaseModel):
    """Exact McNemar test: `gained` and `lost` are the discordant pairs, p is two-sided (1 when there is none).

    With several samples of a prompt, the prompts whose share rose and fell.
    """

    gained: int
    lost: int
    p_value: float


def wilson(count: int, total: int) -> Rate:
    """The rate count / total with its Wilson score interval.

    Raises: ValueError unless 0 <= count <= total.
    """
    from scipy.stats import binomtest

    if not 0 <= count <= total:
        raise ValueError(f"a count of {count} out of {total} is no rate")
    if total == 0:
        return Rate(count=0, total=0, rate=None, low=None, high=None)
    interval = binomtest(count, total).proportion_ci(confidence_level=CONFIDENCE, method="wilson")
    return Rate(count=count, total=total, rate=count / total, low=float(interval.low), high=float(interval.high))


def exact_mcnemar(before: Sequence[bool], after: Sequence[bool], units: Sequence[str] | None = None) -> McNemar:
    """Does the share of True differ between two paired measurements? Both sequences are [P], in the same order.

    units: [P], the prompt of each; samples of one prompt are not independent, so that a prompt counts once, by whether its share
    rose or fell. Without them each pair counts.

    Raises: ValueError when the lengths differ.
    """
    from scipy.stats import binomtest

    risen: dict[str, int] = {}
    for then, now, unit in zip(before, after, units or list(map(str, range(len(before)))), strict=True):
        risen[unit] = risen.get(unit, 0) + bool(now) - bool(then)
    gained = sum(change > 0 for change in risen.values())
    lost = sum(change < 0 for change in risen.values())
    p_value = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    return McNemar(gained=gained, lost=lost, p_value=p_value)


# Counts of drawn clusters that are held at once, 8 bytes each.
DRAWN_AT_A_TIME = 1 << 20


def clustered_ratio(
    numerators: np.ndarray,
    denominators: np.ndarray,
    clusters: Sequence[str],
    *,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """sum(numerators) / sum(denominators) with a percentile bootstrap interval that resamples whole clusters.

    Prompts about one place or subject answer alike, so resampling them one by one would make the interval too narrow.
    `numerators`, `denominators`: float [P]; `clusters`: [P] names. The interval is None with fewer than two clusters
    or when the denominator is 0.

    Raises: ValueError when the lengths differ.
    """
    import numpy as np

    if not len(numerators) == len(denominators) == len(clusters):
        raise ValueError(f"lengths differ: {len(numerators)}, {len(denominators)}, {len(clusters)}")
    names, positions = np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)
    top = np.bincount(positions, weights=np.asarray(numerators, float), minlength=len(names))
    bottom = np.bincount(positions, weights=np.asarray(denominators, float), minlength=len(names))
    estimate = float(top.sum() / bottom.sum()) if bottom.sum() else None
    # Clusters without a single unit at risk say nothing about the ratio.
    informative = bottom > 0
    top, bottom = top[informative], bottom[informative]
    num_clusters = len(top)
    if estimate is None or num_clusters < 2:
        return Interval(estimate=estimate, low=None, high=None, num_clusters=num_clusters)
    generator = np.random.default_rng(seed)
    share = np.full(num_clusters, 1 / num_clusters)
    ratios = np.empty(num_resamples)
    # A part at a time: all resamples of thousands of clusters at once would take hundreds of megabytes.
    size = max(DRAWN_AT_A_TIME // num_clusters, 1)
    for start in range(0, num_resamples, size):
        part = ratios[start : start + size]
        times_drawn = generator.multinomial(num_clusters, share, size=len(part))  # [b, G] of [B, G]
        part[:] = (times_drawn @ top) / (times_drawn @ bottom)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return Interval(estimate=estimate, low=float(low), high=float(high), num_clusters=num_clusters)


def sequential_p_value(num_as_many: int, num_run: int, *, stop_after: int, num_planned: int) -> float:
    """The p-value of a test that ends when `stop_after` random values are as large as the observed one.

    Besag and Clifford, Sequential Monte Carlo p-values, Biometrika 78 (1991): stop_after / num_run where it ended before
    the last planned value, else (1 + num_as_many) / (1 + num_planned), which is never 0; one-sided, valid at every level.
    """
    if num_as_many >= stop_after and num_run < num_planned:
        return stop_after / num_run
    return (1 + num_as_many) / (1 + num_planned)


def mean_interval(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean of independent values with a bootstrap interval (BCa); without an interval when there are fewer
    than two different ones."""
    import numpy as np
    from scipy.stats import bootstrap

    data = np.asarray(values, float)
    if data.size == 0:
        return Interval(estimate=None, low=None, high=None, num_clusters=0)
    estimate = float(data.mean())
    if np.unique(data).size < 2:
        return Interval(estimate=estimate, low=None, high=None, num_clusters=int(data.size))
    method = "BCa" if data.size > 2 else "percentile"
    generator = np.random.default_rng(seed)
    interval = bootstrap(
        (data,), np.mean, confidence_level=CONFIDENCE, method=method, rng=generator
    ).confidence_interval
    return Interval(estimate=estimate, low=float(interval.low), high=float(interval.high), num_clusters=int(data.size))
