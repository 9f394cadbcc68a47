"""What one edit was measured to do, and the effect and cost of it. Pure. Legend: P probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.refine.deciding import log_odds

Pair = tuple[int, int]  # (model layer, expert)
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Measured:
    """An edit's chances of the target behaviour [P], one a probe, and its KL from the base, nats a neutral token."""

    chances: tuple[float, ...]
    kl: float

    def moved(self, base: Sequence[float]) -> float:
        """The mean chance [P] that a response of the base leaves the behaviour, by how far its own chance fell."""
        lost = [
            max(before - after, 0.0) / before for before, after in zip(base, self.chances, strict=True) if before > 0
        ]
        return sum(lost) / len(lost) if lost else 0.0

    def shift(self, base: Sequence[float]) -> float:
        """The mean change of the log-odds of the behaviour; negative where the edit moves responses out of it."""
        changes = self.shifts(base)
        return sum(changes) / len(changes)

    def shifts(self, base: Sequence[float]) -> list[float]:
        """The change of the log-odds, one a probe."""
        return [log_odds(after) - log_odds(before) for before, after in zip(base, self.chances, strict=True)]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval over probes."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: Sequence[float], seed: int) -> Interval:
    """The mean of values [P] with a percentile bootstrap interval over probes."""
    import numpy as np

    sample = np.asarray(values, np.float64)
    generator = np.random.default_rng(seed)
    means = sample[generator.integers(0, len(sample), (BOOTSTRAPS, len(sample)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(sample.mean()), float(low), float(high))
