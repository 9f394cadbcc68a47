"""How sure a ranking is: permutation p-values, Benjamini-Hochberg, bootstrap stability, leave-one-out overlap.

Letters of shapes: N replicates, P responses, L MoE layers, E experts, C groups (0 the class, 1.. the others). A
replicate is a row of weights [P] per group; sums of all replicates come from one matrix product per group, in chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.analysis.maps import ActivationMaps
from ftri.analysis.resonance import GroupSums, Setting, Statistic, rank

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
Progress = Callable[[int], None]

# Replicates per product: the sums of this many stay in the processor's reach of memory.
CHUNK_REPLICATES = 250
# Folds are few and ranked exactly, in float64.
CHUNK_FOLDS = 64
# Below this every integer is a float32, so that sums of counts are exact in a fast product.
EXACT_FLOAT32 = 2**24
# Slack when a replicate is compared with the observed value: ties must count as ties in float32.
TIE_RELATIVE = 1e-6
TIE_ABSOLUTE = 1e-7


@dataclass(frozen=True)
class Significance:
    """`p_max_t` [L * E]: the chance that under shuffled labels any expert scores as high (family-wise); `p_value`: this one."""

    p_max_t: FloatArray
    p_value: FloatArray
    num_permutations: int


@dataclass(frozen=True)
class Stability:
    """Bootstrap over prompts: `in_top` [L * E] share of samples with the expert in the top k; intervals for `experts`.

    `low`, `high` [n]: 2.5th and 97.5th percentile of the score of the flat expert numbers `experts` [n].
    """

    in_top: FloatArray
    experts: IntArray
    low: FloatArray
    high: FloatArray
    num_samples: int


@dataclass(frozen=True)
class FoldOverlap:
    """A factor's value left out: the share of the top k that stays, None when a class is empty without it."""

    value: str
    overlap: float | None
    kept: tuple[int, ...]


def group_masks(groups: IntArray, statistic: Statistic) -> npt.NDArray[np.bool_]:
    """[C, P] membership: the class and all others pooled, or each other class by itself where the statistic wants that."""
    if not statistic.separate_others:
        return np.stack([groups == 0, groups > 0])
    return np.stack([groups == number for number in np.unique(groups)])


def sums_of_weights(
    maps: ActivationMaps, statistic: Statistic, weights: npt.NDArray[Any], dtype: type[np.floating[Any]]
) -> GroupSums:
    """The sums of one group for `weights` [N, P], the number of times each response counts in each replicate."""
    num_tokens = maps.num_tokens.astype(np.float64)
    counts = np.zeros((len(weights), maps.counts.num_columns), dtype)
    rates = np.zeros_like(counts) if statistic.needs_rates else None
    squares = np.zeros_like(counts) if statistic.needs_squares else None
    for start, block in maps.counts.blocks():
        part = weights[:, start : start + len(block)].astype(dtype)
        values = block.astype(dtype, copy=False)
        counts += part @ values
        if rates is not None:
            per_token = 1.0 / np.maximum(num_tokens[start : start + len(block)], 1.0)
            rates += (part * per_token.astype(dtype)) @ values
        if squares is not None:
            squares += part @ (values * values)
    exact = weights.astype(np.float64)
    return GroupSums(
        exact.sum(axis=1, keepdims=True).astype(dtype),
        (exact @ num_tokens)[:, None].astype(dtype),
        counts,
        rates,
        squares,
    )


def _subtract(total: GroupSums, parts: Sequence[GroupSums]) -> GroupSums:
    """The group that remains: labels are shuffled among the same responses, so the last sums need no product."""

    def left(name: str) -> Any:
        value = getattr(total, name)
        return None if value is None else value - sum(getattr(part, name) for part in parts)

    return GroupSums(*(left(name) for name in ("num_responses", "num_tokens", "counts", "rates", "squares")))


def observed_scores(maps: ActivationMaps, statistic: Statistic) -> FloatArray:
    """The statistic of the labels as they are, [L * E] float64."""
    masks = group_masks(maps.groups, statistic)
    sums = [sums_of_weights(maps, statistic, mask[None], np.float64) for mask in masks]
    return statistic.compute(sums, setting_of(maps))[0]


def setting_of(maps: ActivationMaps) -> Setting:
    """What a statistic needs to know besides sums."""
    return Setting(len(maps.moe_layers), maps.num_experts, maps.top_k)


def prompt_clusters(maps: ActivationMaps) -> list[IntArray]:
    """Rows of the maps by prompt, grouped by how many responses a prompt has: arrays [prompts, responses each].

    Several samples of one prompt share its tokens, so prompts, not responses, are what is shuffled and resampled.
    """
    by_prompt: dict[str, list[int]] = {}
    for row, observation in enumerate(maps.observations):
        by_prompt.setdefault(observation.prompt_id, []).append(row)
    sizes = sorted({len(rows) for rows in by_prompt.values()})
    return [np.array([rows for rows in by_prompt.values() if len(rows) == size]) for size in sizes]


def _fast_type(maps: ActivationMaps) -> type[np.floating[Any]]:
    return np.float32 if int(maps.num_tokens.sum()) < EXACT_FLOAT32 else np.float64


def shuffled_groups(
    groups: IntArray, clusters: Sequence[IntArray], count: int, generator: np.random.Generator
) -> npt.NDArray[np.integer[Any]]:
    """`count` shufflings [count, P] of the groups among prompts; the responses of a prompt move together."""
    shuffled = np.empty((count, len(groups)), np.min_scalar_type(int(groups.max(initial=0))))
    for rows in clusters:
        order = generator.permuted(np.tile(np.arange(len(rows)), (count, 1)), axis=1)
        shuffled[:, rows.reshape(-1)] = groups[rows][order].reshape(count, -1)
    return shuffled


def permutation_test(
    maps: ActivationMaps,
    statistic: Statistic,
    num_permutations: int = 10_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Significance:
    """One-sided permutation p-values, single-step max-T over all experts: p = (1 + #{null >= observed}) / (N + 1)."""
    generator, clusters, dtype = np.random.default_rng(seed), prompt_clusters(maps), _fast_type(maps)
    numbers = np.arange(len(group_masks(maps.groups, statistic)))
    coded = np.searchsorted(np.unique(maps.groups), maps.groups) if statistic.separate_others else (maps.groups > 0) * 1
    total = sums_of_weights(maps, statistic, np.ones((1, len(maps.counts))), dtype)
    setting = setting_of(maps)

    def scores(shuffled: npt.NDArray[Any]) -> FloatArray:
        parts = [sums_of_weights(maps, statistic, shuffled == number, dtype) for number in numbers[:-1]]
        return statistic.compute([*parts, _subtract(total, parts)], setting)

    # The observed labels go the same way as the shuffled ones, so that equal sums give equal numbers.
    observed = scores(coded[None])[0]
    threshold = observed - (TIE_RELATIVE * np.abs(observed) + TIE_ABSOLUTE)
    exceeding = np.zeros(observed.size, np.int64)
    maxima = np.empty(num_permutations, dtype)
    for start in range(0, num_permutations, CHUNK_REPLICATES):
        count = min(CHUNK_REPLICATES, num_permutations - start)
        null = scores(shuffled_groups(coded, clusters, count, generator))
        maxima[start : start + count] = null.max(axis=1)
        exceeding += (null >= threshold).sum(axis=0)
        if progress is not None:
            progress(count)
    maxima.sort()
    above = num_permutations - np.searchsorted(maxima, threshold, side="left")
    return Significance(
        (1 + above) / (num_permutations + 1), (1 + exceeding) / (num_permutations + 1), num_permutations
    )


def benjamini_hochberg(maps: ActivationMaps, fallback: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(p, q) [L * E]: one-sided Welch p-values of the counts, class against pooled others, and their false discovery rates.

    The unit is the prompt: samples of one prompt in the same class share its tokens and count as one, with their mean map.
    Where Welch's t has no variance to work with, the p-value is `fallback`, the permutation's.
    """
    from scipy import stats

    moments = [moment for mask in (maps.groups == 0, maps.groups > 0) for moment in _prompt_moments(maps, mask)]
    with np.errstate(divide="ignore", invalid="ignore"):
        p_value = stats.ttest_ind_from_stats(*moments, equal_var=False, alternative="greater").pvalue
    p_value = np.where((moments[1] + moments[4] > 0) & np.isfinite(p_value), p_value, fallback)
    return p_value, stats.false_discovery_control(p_value)


def _prompt_moments(maps: ActivationMaps, mask: npt.NDArray[np.bool_]) -> tuple[FloatArray, FloatArray, float]:
    """Mean [L * E], standard deviation [L * E] and number of a group's prompts, each with the mean of its responses' maps."""
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(mask).tolist():
        rows_of.setdefault(maps.observations[row].prompt_id, []).append(row)
    number = float(len(rows_of))
    if len(rows_of) == int(mask.sum()):
        statistic = Statistic("", "", "", "", _no_scores, needs_squares=True)
        sums = sums_of_weights(maps, statistic, mask[None], np.float64)
        assert sums.squares is not None
        total, squares = sums.counts[0], sums.squares[0]
    else:
        total, squares = np.zeros((2, maps.counts.num_columns))
        prompts = list(rows_of.values())
        for start in range(0, len(prompts), CHUNK_REPLICATES):
            chunk = prompts[start : start + CHUNK_REPLICATES]
            weights = np.zeros((len(chunk), len(maps.counts)))
            for unit, rows in enumerate(chunk):
                weights[unit, rows] = 1 / len(rows)
            means = maps.counts.weighted_sums(weights)
            total += means.sum(axis=0)
            squares += (means * means).sum(axis=0)
    mean = total / number
    variance = np.maximum(squares / number - mean * mean, 0) * number / max(number - 1, 1)
    return mean, np.sqrt(variance), number


def _no_scores(groups: Sequence[GroupSums], setting: Setting) -> FloatArray:
    return np.zeros_like(groups[0].counts)


def bootstrap(
    maps: ActivationMaps,
    statistic: Statistic,
    k: int,
    experts: IntArray,
    num_samples: int = 1_000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Stability:
    """Resample prompts with replacement; how often each expert is in the top k, and intervals of some experts' scores.

    Samples without the class, or without any other, are drawn again. Where others are kept apart, one that a sample lacks
    takes no part in it: with many small classes hardly any sample has them all.
    """
    generator, clusters, dtype = np.random.default_rng([seed, 1]), prompt_clusters(maps), _fast_type(maps)
    masks = group_masks(maps.groups, statistic)
    in_top = np.zeros(maps.counts.num_columns, np.int64)
    kept = np.empty((num_samples, len(experts)))
    done = 0
    while done < num_samples:
        count = min(CHUNK_REPLICATES, num_samples - done)
        weights = _resampled(clusters, len(maps.counts), count, generator)
        present = weights @ masks.T.astype(np.int64) > 0
        weights = weights[present[:, 0] & present[:, 1:].any(axis=1)]
        if not len(weights):
            continue
        scores = _weighted_scores(maps, statistic, masks, weights, dtype)
        np.add.at(in_top, _top(scores, k), 1)
        kept[done : done + len(scores)] = scores[:, experts]
        done += len(scores)
        if progress is not None:
            progress(len(scores))
    low, high = np.percentile(kept, [2.5, 97.5], axis=0)
    return Stability(in_top / num_samples, experts, low, high, num_samples)


def _resampled(clusters: Sequence[IntArray], num_rows: int, count: int, generator: np.random.Generator) -> IntArray:
    sizes = [len(rows) for rows in clusters]
    total = sum(sizes)
    drawn = generator.multinomial(total, np.full(total, 1 / total), size=count)
    weights = np.empty((count, num_rows), np.int64)
    start = 0
    for rows, size in zip(clusters, sizes, strict=True):
        weights[:, rows.reshape(-1)] = np.repeat(drawn[:, start : start + size], rows.shape[1], axis=1)
        start += size
    return weights


def _weighted_scores(
    maps: ActivationMaps,
    statistic: Statistic,
    masks: npt.NDArray[np.bool_],
    weights: IntArray,
    dtype: type[np.floating[Any]],
) -> FloatArray:
    sums = [sums_of_weights(maps, statistic, weights * mask, dtype) for mask in masks]
    return statistic.compute(sums, setting_of(maps))


def _top(scores: FloatArray, k: int) -> IntArray:
    """Flat numbers [N, k] of the k highest scores of each row, in any order."""
    k = min(k, scores.shape[1])
    return np.argpartition(-scores, k - 1, axis=1)[:, :k]


def leave_one_out(maps: ActivationMaps, statistic: Statistic, factor: str, k: int) -> list[FoldOverlap]:
    """For each value of a factor: rank without its prompts, and compare the top k with that of all prompts."""
    full = set(rank(observed_scores(maps, statistic))[:k].tolist())
    values = [observation.factors.get(factor) for observation in maps.observations]
    masks = group_masks(maps.groups, statistic)
    names = sorted({value for value in values if value is not None})
    keep = np.array([[value != name for value in values] for name in names], bool).reshape(len(names), len(values))
    usable = np.array([(masks & row).any(axis=1).all() for row in keep], bool)
    folds = [FoldOverlap(name, None, ()) for name in names]
    for chunk in np.array_split(np.flatnonzero(usable), max(1, -(-int(usable.sum()) // CHUNK_FOLDS))):
        for number, scores in zip(
            chunk, _weighted_scores(maps, statistic, masks, keep[chunk] * 1, np.float64), strict=True
        ):
            kept = full & set(rank(scores)[:k].tolist())
            folds[number] = FoldOverlap(names[number], len(kept) / len(full), tuple(sorted(kept)))
    return folds


def jaccard(first: set[Any], second: set[Any]) -> float:
    """Size of the intersection over size of the union."""
    return len(first & second) / len(first | second) if first | second else 1.0
