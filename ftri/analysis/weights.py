"""What weights experts have in traces, beside those that the paper's own edit gives them: gains, and what is left undone.

The paper (arXiv 2502.11096) gives a stimulated expert the largest weight that the router gave the token and renormalises; a
suppressed one weight 0, and renormalises. A checkpoint holds neither: its router gives a stimulated expert, which its bias always
selects, the expert's natural weight, and the weights of the others stay when an output is dropped. So one number, a gain, stands
for the paper's weight on all tokens, and what it leaves is told.

Two numbers can be meant. The one that comes closest to the paper's weight token by token, by least squares, is
E[own x paper] / E[own^2] over tokens' shares of weight: it leaves no more than no gain does. The one by which the expert's mean
weight is the paper's is E[paper] / E[own]. They agree where an expert's share is much the same on all tokens. Where it is large
on few and small on most, the mean's overshoots on the few by more than it mends on the many.

Letters of shapes: T tokens of a response, L MoE layers, K selected experts, N tokens counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from ftri.traces.reader import TraceError, TraceReader
from rewriter.errors import InputError

Pair = tuple[int, int]  # (model layer, expert)
Floats = npt.NDArray[np.float64]
Routing = tuple[npt.NDArray[Any], npt.NDArray[Any]]  # experts int [T, L, K] and their weights float [T, L, K]
QUANTILES = (0.05, 0.5, 0.95)
DIGITS = 6  # of a gain; traces say no more
GainWord = Literal["auto", "mean"]
"""Which number an estimated gain is: auto comes closest to the paper's weight token by token, mean meets it in the mean."""
GAIN_WORDS: tuple[GainWord, ...] = get_args(GainWord)


@dataclass(frozen=True)
class GainEstimate:
    """A stimulated expert's gain, and how far its weight is from the paper's; weights as shares of a token's sum."""

    layer: int
    expert: int
    gain: float
    num_tokens: int
    num_counted: (
        int  # tokens that select all stimulated experts of the layer, which alone say what weight they have then
    )
    own_share: float  # mean, without a gain
    paper_share: float  # mean
    rms_without: float  # root mean square difference from the paper's share, without a gain
    rms_with: float
    low: float  # quantiles of the weight with the gain, in multiples of the paper's
    median: float
    high: float
    others: float  # mean weight of the other selected experts, in multiples of the paper's
    closest: float  # the gain that leaves the least root mean square difference
    rms_closest: float
    meets_mean: float  # the gain by which the mean weight is the paper's
    rms_meets_mean: float

    @property
    def is_no_closer(self) -> bool:
        """Whether the gain leaves as much of the difference from the paper's weight as none does, or more."""
        return self.gain != 1 and self.rms_with >= self.rms_without

    def to_json(self) -> dict[str, Any]:
        """As an expert set's provenance keeps it: numbers that can be read."""
        return {
            key: float(f"{value:.4g}") if type(value) is float else value for key, value in asdict(self).items()
        } | {name: getattr(self, name) for name in ("gain", "closest", "meets_mean")}

    def sentence(self) -> str:
        """What is said of it with a plan."""
        return (
            f"layer {self.layer} expert {self.expert}: gain {self.gain:g}. The router gives it {self.own_share:.3f} of a"
            f" token's weight in the mean, the paper {self.paper_share:.3f}; with the gain it is"
            f" {self.gain * self.own_share:.3f}, and 90 % of tokens lie between {self.low:.2f} and {self.high:.2f} of the"
            f" paper's. Root mean square difference, in shares of a token's weight: {self.rms_without:.3f} without a gain,"
            f" {self.rms_with:.3f} with it; the least is {self.rms_closest:.3f}, by {self.closest:g}, and {self.meets_mean:g},"
            f" which would meet the mean, leaves {self.rms_meets_mean:.3f}. The other experts weigh {self.others:.2f} times what"
            " the paper leaves them."
        )


@dataclass(frozen=True)
class Shortfall:
    """What a drop leaves out that the paper's renormalisation gives to the others; shares of a token's weight in one layer."""

    num_tokens: int
    num_touched: int  # tokens that select a suppressed expert in some layer
    mean: float  # over the touched layers of tokens
    high: float  # 95 % of them are below

    def to_json(self) -> dict[str, Any]:
        """As an expert set's provenance keeps it."""
        return {key: float(f"{value:.4g}") if type(value) is float else value for key, value in asdict(self).items()}

    def sentence(self) -> str:
        """What is said of it with a plan."""
        share = self.num_touched / self.num_tokens
        return (
            f"drop against drop-renorm: {share:.1%} of {self.num_tokens:,} tokens select a suppressed expert; there a layer's"
            f" output lacks {self.mean:.1%} of its weight in the mean (95 % of such layers less than {self.high:.1%}), which the"
            " paper's renormalisation gives to the other selected experts."
        )


def estimate_gains(
    routings: Iterable[Routing],
    moe_layers: Sequence[int],
    pairs: Sequence[Pair],
    gains: Mapping[Pair, float] | GainWord = "auto",
) -> list[GainEstimate]:
    """Gains of stimulated experts, in the order of `pairs`.

    routings: of a model that selects the experts, as one that stimulates them does on every token. gains: which number it is
    to be, or those to look at in place of the ones worked out.

    Raises: InputError for an expert that no token selects together with its layer's other stimulated ones, or whose weight is 0.
    """
    by_layer: dict[int, list[int]] = {}
    for layer, expert in pairs:
        by_layer.setdefault(layer, []).append(expert)
    rows = {layer: row for row, layer in enumerate(moe_layers)}
    found: dict[int, list[tuple[Floats, Floats, Floats]]] = {layer: [] for layer in by_layer}
    num_tokens = 0
    for experts, weights in routings:
        num_tokens += len(experts)
        for layer, chosen in by_layer.items():
            found[layer].append(_shares(experts[:, rows[layer]], weights[:, rows[layer]], chosen))
    estimates = {}
    for layer, chosen in by_layer.items():
        own, paper, others = (np.concatenate(parts) for parts in zip(*found[layer], strict=True))
        for place, expert in enumerate(chosen):
            if not own[:, place].any():
                raise InputError(
                    f"layer {layer} expert {expert}: no token of the traces selects it"
                    + (" together with the layer's other stimulated experts" if len(chosen) > 1 else "")
                    + ", so they do not say what weight it has; record, with --weights, a variant that stimulates it without"
                    " a gain"
                )
            estimates[layer, expert] = _estimate((layer, expert), gains, num_tokens, own[:, place], paper, others)
    return [estimates[pair] for pair in pairs]


def _shares(
    experts: npt.NDArray[Any], weights: npt.NDArray[Any], chosen: Sequence[int]
) -> tuple[Floats, Floats, Floats]:
    """Of the tokens that select all of a layer's stimulated experts: the share [N, stimulated] that each has of the token's
    weight, the share [N] that the paper gives each, and what the others weigh [N] in multiples of what the paper leaves them.

    experts, weights: [T, K].
    """
    weights = weights.astype(np.float64)
    place = experts[:, :, None] == np.asarray(chosen)  # [T, K, stimulated]
    counted = place.any(axis=1).all(axis=1) & (weights.sum(axis=1) > 0)
    weights, place = weights[counted], place[counted]
    total = weights.sum(axis=1)
    largest = weights.max(axis=1, initial=0.0)
    others = np.where(place.any(axis=2), 0.0, weights).sum(axis=1)
    renormalized = others + len(chosen) * largest
    own = (weights[:, :, None] * place).sum(axis=1) / total[:, None]
    return own, largest / renormalized, renormalized / total


def _estimate(
    pair: Pair, gains: Mapping[Pair, float] | GainWord, num_tokens: int, own: Floats, paper: Floats, others: Floats
) -> GainEstimate:
    """The figures of one expert; own, paper, others: [N]."""
    closest = float(f"{(own * paper).mean() / (own**2).mean():.{DIGITS}g}")
    meets_mean = float(f"{paper.mean() / own.mean():.{DIGITS}g}")
    known: dict[GainWord, float] = {"auto": closest, "mean": meets_mean}
    gain = known[gains] if isinstance(gains, str) else gains[pair]

    def left(factor: float) -> float:
        return float(np.sqrt(((factor * own - paper) ** 2).mean()))

    low, median, high = (float(value) for value in np.quantile(gain * own / paper, QUANTILES))
    return GainEstimate(
        *pair,
        gain,
        num_tokens,
        len(own),
        float(own.mean()),
        float(paper.mean()),
        left(1),
        left(gain),
        low,
        median,
        high,
        float(others.mean()),
        closest,
        left(closest),
        meets_mean,
        left(meets_mean),
    )


def measure_shortfall(
    routings: Iterable[Routing], moe_layers: Sequence[int], strengths: Mapping[Pair, float]
) -> Shortfall:
    """What a drop of these strengths leaves out of tokens' weights; strengths: (model layer, expert) -> 0 to 1."""
    rows = {layer: row for row, layer in enumerate(moe_layers)}
    kept: dict[int, dict[int, float]] = {}
    for (layer, expert), strength in strengths.items():
        kept.setdefault(layer, {})[expert] = strength
    missing: list[Floats] = []
    num_tokens = num_touched = 0
    for experts, weights in routings:
        num_tokens += len(experts)
        is_touched = np.zeros(len(experts), bool)
        for layer, chosen in kept.items():
            own, total = (
                weights[:, rows[layer]].astype(np.float64),
                weights[:, rows[layer]].astype(np.float64).sum(axis=1),
            )
            lost = sum(own * strength * (experts[:, rows[layer]] == expert) for expert, strength in chosen.items())
            share = np.divide(np.sum(lost, axis=1), total, out=np.zeros(len(total)), where=total > 0)
            missing.append(share[share > 0])
            is_touched |= share > 0
        num_touched += int(is_touched.sum())
    shares = np.concatenate(missing) if missing else np.zeros(0)
    if not len(shares):
        return Shortfall(num_tokens, 0, 0.0, 0.0)
    return Shortfall(num_tokens, num_touched, float(shares.mean()), float(np.quantile(shares, 0.95)))


@dataclass(frozen=True)
class WeightedTraces:
    """A trace folder that keeps weights."""

    reader: TraceReader

    @classmethod
    def open(cls, folder: Path) -> WeightedTraces:
        """Open a folder.

        Raises: TraceError where it is none, is empty, or keeps no weights.
        """
        reader = TraceReader(folder)
        if reader.facts.weights is None:
            raise TraceError(
                f"{folder}: keeps no weights of the selected experts, expected some; record with --weights float32"
            )
        if not len(reader):
            raise TraceError(f"{folder}: holds no response, expected at least one")
        return cls(reader)

    def routings(self) -> Iterator[Routing]:
        """Every response's experts and weights."""
        for record in self.reader:
            assert record.weights is not None  # the manifest says so, and the reader checks
            yield record.experts, record.weights
