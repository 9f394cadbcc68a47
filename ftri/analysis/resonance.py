"""The fTRI map and its alternatives: one number per expert for how much more the class uses it than the others do.

Every statistic is a function of sums over groups of responses, so that the same code serves the observed labels,
thousands of permutations and bootstrap samples, all of them as rows of one matrix product.

Letters of shapes: N replicates, P responses, L MoE layers, E experts. Group 0 is the class, groups 1.. the others.

Symbols of the formulas, each for one layer and one expert of it:
    c_p     tokens of response p that selected the expert, the entry of its activation map (paper, "prompt activation map")
    t_p     tokens of response p that count, whichever expert they selected
    A, B    the responses of the class and of all others; |A|, |B| their numbers, C(A) the sum of c_p and T(A) that of t_p over A
    m(A)    C(A) / |A|, the mean map of A
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]

# Welch's t is infinite where both groups are constant and differ; JSON knows no infinity, and rankings need no more.
T_WITHOUT_VARIANCE = 1e6


@dataclass(frozen=True)
class GroupSums:
    """Sums over the responses of one group, for N replicates.

    `counts`, `rates`, `squares` [N, L * E]: tokens that selected the expert, the same per token of the response, and
    the squared counts (the last two only where a statistic asks). `num_responses`, `num_tokens` [N, 1].
    """

    num_responses: FloatArray
    num_tokens: FloatArray
    counts: FloatArray
    rates: FloatArray | None = None
    squares: FloatArray | None = None


@dataclass(frozen=True)
class Setting:
    """What a statistic may need besides the sums: the map's shape and the number of experts a token selects."""

    num_layers: int
    num_experts: int
    top_k: int


Compute = Callable[[Sequence[GroupSums], Setting], FloatArray]


@dataclass(frozen=True)
class Statistic:
    """One way to rank experts; `compute` gives [N, L * E], larger is more distinctive of the class.

    quantity, unit: what its numbers are, for axes and scales.
    """

    name: str
    meaning: str
    quantity: str
    unit: str
    compute: Compute
    separate_others: bool = False
    needs_rates: bool = False
    needs_squares: bool = False

    @property
    def axis(self) -> str:
        """What an axis or a colour scale of it is called."""
        return f"{self.quantity} ({self.unit})"


def _mean_difference(groups: Sequence[GroupSums], setting: Setting) -> FloatArray:
    """m(A) - m(B), the paper's fTRI map with all other responses pooled: [N, L * E] tokens per response.

    Paper (arXiv 2502.11096), "fTRI map". It leaves open whether "all others" is pooled or the mean of the classes' means.
    """
    target, rest = groups
    return target.counts / target.num_responses - rest.counts / rest.num_responses


def _class_mean_difference(groups: Sequence[GroupSums], setting: Setting) -> FloatArray:
    """m(A) - (m(B_1) + ... + m(B_n)) / n over the n other classes: [N, L * E] tokens per response.

    The other reading of the paper's "fTRI map": a rare class weighs as much as a frequent one. A replicate without responses
    of a class leaves it out.
    """
    target, *others = groups
    total, num_present = np.zeros_like(target.counts), np.zeros_like(target.num_responses)
    for other in others:
        is_present = other.num_responses > 0
        total += other.counts / np.where(is_present, other.num_responses, 1)
        num_present += is_present
    return target.counts / target.num_responses - total / num_present


def _rate_difference(groups: Sequence[GroupSums], setting: Setting) -> FloatArray:
    """The mean over A of c_p / t_p minus that over B: [N, L * E], a share of a response's tokens.

    Each response weighs the same, however long it is, so that the length of prompts does not enter.
    """
    target, rest = groups
    assert target.rates is not None and rest.rates is not None
    return target.rates / target.num_responses - rest.rates / rest.num_responses


def _risk_difference(groups: Sequence[GroupSums], setting: Setting) -> FloatArray:
    """C(A) / T(A) - C(B) / T(B): [N, L * E], a share of all tokens; each token weighs the same."""
    target, rest = groups
    return target.counts / target.num_tokens - rest.counts / rest.num_tokens


def _normalised_pointwise_information(groups: Sequence[GroupSums], setting: Setting) -> FloatArray:
    """log2(p(e, A) / (p(e) p(A))) / -log2 p(e, A): [N, L * E], from -1 (never together) to 1 (only together), 0 independent.

    Over tokens: p(e, A) = C(A) / T, p(e) = (C(A) + C(B)) / T, p(A) = T(A) / T with T = T(A) + T(B) (Bouma 2009).
    """
    target, rest = groups
    num_tokens = target.num_tokens + rest.num_tokens
    joint = target.counts / num_tokens
    expert = (target.counts + rest.counts) / num_tokens
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.log2(joint / (expert * (target.num_tokens / num_tokens))) / -np.log2(joint)
    # An expert that the class never selects is at the measure's lower end; one that nobody selects says nothing either.
    return np.where(target.counts > 0, information, np.asarray(-1.0, information.dtype))


def _log_odds(groups: Sequence[GroupSums], setting: Setting) -> FloatArray:
    """z of the log odds ratio of the expert's selections within its layer, with a Dirichlet prior: [N, L * E], no unit.

    (ln(a / (a_0 - a)) - ln(b / (b_0 - b))) / sqrt(1 / a + 1 / b), where a = C(A) + w, b = C(B) + w, a_0 and b_0 are their
    sums over the layer's experts, and w is the prior: E times the expert's share of the layer's selections, with 0.5 added
    to every expert (Monroe, Colaresi and Quinn 2008).
    """
    target, rest = groups
    shape = (-1, setting.num_layers, setting.num_experts)
    own, other = target.counts.reshape(shape), rest.counts.reshape(shape)
    # The prior is the layer's own distribution over all responses, worth one selection per expert.
    pooled = own + other + np.asarray(0.5, own.dtype)
    prior = setting.num_experts * pooled / pooled.sum(axis=2, keepdims=True)
    prior_total = np.asarray(setting.num_experts, own.dtype)
    own_total = own.sum(axis=2, keepdims=True) + prior_total
    other_total = other.sum(axis=2, keepdims=True) + prior_total
    own, other = own + prior, other + prior
    difference = np.log(own / (own_total - own)) - np.log(other / (other_total - other))
    return (difference / np.sqrt(1 / own + 1 / other)).reshape(target.counts.shape)


def _welch(groups: Sequence[GroupSums], setting: Setting) -> FloatArray:
    """Welch's t, (m(A) - m(B)) / sqrt(s^2(A) / |A| + s^2(B) / |B|) with sample variances s^2: [N, L * E], no unit.

    Where neither group varies it is +-T_WITHOUT_VARIANCE, or 0 for equal means.
    """
    target, rest = groups
    variance = _squared_standard_error(target) + _squared_standard_error(rest)
    difference = _mean_difference(groups, setting)
    constant = np.sign(difference) * np.asarray(T_WITHOUT_VARIANCE, difference.dtype)
    return np.divide(difference, np.sqrt(variance), out=constant, where=variance > 0)


def _squared_standard_error(group: GroupSums) -> FloatArray:
    """s^2 / n of a group's counts, [N, L * E] tokens squared, with s^2 the sample variance (divided by n - 1)."""
    assert group.squares is not None
    mean = group.counts / group.num_responses
    spread = np.maximum(group.squares / group.num_responses - mean * mean, 0)
    # Rounding of a constant column leaves specks; they are no variance.
    spread = np.where(spread < 1e-6 * (mean * mean + 1), 0, spread)
    return spread / np.maximum(group.num_responses - 1, 1)


STATISTICS = {
    statistic.name: statistic
    for statistic in (
        Statistic(
            "paper",
            "mean map of the class minus mean map of all other responses, pooled",
            "resonance",
            "tokens per prompt",
            _mean_difference,
        ),
        Statistic(
            "class-mean",
            "mean map of the class minus the mean of the other classes' mean maps",
            "resonance against the classes' mean",
            "tokens per prompt",
            _class_mean_difference,
            separate_others=True,
        ),
        Statistic(
            "rate",
            "as paper, with each map divided by its number of tokens",
            "difference of rates",
            "share of a prompt's tokens",
            _rate_difference,
            needs_rates=True,
        ),
        Statistic(
            "risk-difference",
            "share of the class's tokens that select the expert minus the others' share",
            "difference of shares",
            "share of all tokens",
            _risk_difference,
        ),
        Statistic(
            "npmi",
            "normalised pointwise mutual information of expert and class over tokens",
            "normalised pointwise information",
            "no unit, -1 to 1",
            _normalised_pointwise_information,
        ),
        Statistic(
            "log-odds",
            "z of the log odds ratio with a Dirichlet prior per layer",
            "z of the log odds ratio",
            "no unit",
            _log_odds,
        ),
        Statistic("welch", "Welch's t of the counts", "Welch's t", "no unit", _welch, needs_squares=True),
    )
}


def rank(scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Flat expert numbers [L * E] by falling score; ties go to the lower layer, then the lower expert."""
    return np.argsort(-scores.reshape(-1), kind="stable")


def resonance_map(counts: npt.NDArray[Any], in_class: npt.NDArray[np.bool_]) -> FloatArray:
    """The paper's fTRI map for maps held in memory: counts [P, L, E] tokens, in_class [P] -> [L, E] tokens per prompt.

    Paper, "fTRI map": mean map of the class minus mean map of all other prompts. Sums of counts are exact in float64,
    so the result does not depend on the order of the prompts.
    """
    exact = counts.astype(np.float64)
    own, other = exact[in_class], exact[~in_class]
    return own.sum(axis=0) / len(own) - other.sum(axis=0) / len(other)


def top_experts(scores: npt.NDArray[Any], k: int) -> list[tuple[int, int]]:
    """The k experts of a map [L, E] with the highest scores, as (row of the map, expert). Paper, "distinctive experts"."""
    num_experts = scores.shape[1]
    return [divmod(int(flat), num_experts) for flat in rank(scores)[:k]]
