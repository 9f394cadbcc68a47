"""Screens candidates: every expert alone, by what suppressing it does to the behaviour and to neutral text. Pure.

What screening measures and what it does not: effects of single experts. An expert whose place others take over moves
nothing alone (growing.py measures sets), and an effect is one on the wording of the probes' prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.refine.measured import Interval, Measured, Pair, bootstrap_mean

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Screened:
    """One expert, suppressed alone: what moves, the change in log-odds with its interval over probes, and the KL."""

    pair: Pair
    moved: float
    shift: Interval
    kl: float


def active_experts(frequency: Mapping[int, np.ndarray], least_rate: float) -> list[Pair]:
    """Experts that at least a share `least_rate` of the tokens select; `frequency` maps a model layer to float [E]."""
    return [
        (layer, expert)
        for layer, rates in sorted(frequency.items())
        for expert, rate in enumerate(rates.tolist())
        if rate >= least_rate and rate > 0
    ]


def screened(pairs: Sequence[Pair], measured: Iterable[Measured], base: Sequence[float], seed: int) -> list[Screened]:
    """The candidates with what each was measured to do, the strongest first (by what moves, then by log-odds)."""
    rows = [
        Screened(pair, one.moved(base), bootstrap_mean(one.shifts(base), seed), one.kl)
        for pair, one in zip(pairs, measured, strict=True)
    ]
    return sorted(rows, key=lambda row: (-row.moved, row.shift.mean, row.pair))


def pool(rows: Sequence[Screened], size: int) -> list[Pair]:
    """The candidates that a search starts from: the `size` strongest by what moves, and as many by log-odds.

    Log-odds add what a share of moved responses hides: experts that weaken the behaviour everywhere and tip it nowhere
    alone.
    """
    by_odds = sorted(rows, key=lambda row: (row.shift.mean, row.pair))
    chosen = [row.pair for row in (*rows[:size], *by_odds[:size])]
    return list(dict.fromkeys(chosen))
