"""How far one routing edit is from another: KL per token from teacher-forced log probabilities, and how much routing it touches.

Pure. Legend: T positions, N listed tokens per position, L MoE layers, K selected, E experts. Log probabilities are natural.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import BaseModel

from eval.measures.statistics import Interval, clustered_ratio

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class TokenDistributions:
    """The likeliest next tokens at every position: `token_ids` int [T, N], `log_probabilities` float [T, N]."""

    token_ids: np.ndarray
    log_probabilities: np.ndarray


class TouchedShares(BaseModel):
    """What an expert set takes part in when nothing is edited: shares of router slots and of tokens."""

    num_tokens: int
    num_slots: int
    slots_in_set: int
    slot_share: float | None
    tokens_touched: int
    token_share: float | None


def kl_per_position(left: TokenDistributions, right: TokenDistributions) -> np.ndarray:
    """KL(left || right) at every position, float64 [T], in nats.

    Exact when both list the whole vocabulary. Otherwise the tokens that not both list are pooled into one
    outcome; merging outcomes never
    raises a divergence, so the result is then a lower bound.

    Raises: ValueError when the two cover different numbers of positions.
    """
    import numpy as np

    if len(left.token_ids) != len(right.token_ids):
        raise ValueError(f"{len(left.token_ids)} positions on one side, {len(right.token_ids)} on the other")
    if left.token_ids.shape == right.token_ids.shape and np.array_equal(left.token_ids, right.token_ids):
        return np.array(
            [
                _divergence(p.astype(np.float64), q.astype(np.float64))
                for p, q in zip(left.log_probabilities, right.log_probabilities, strict=True)
            ]
        )
    result = np.zeros(len(left.token_ids))
    for position in range(len(result)):
        _, at_left, at_right = np.intersect1d(
            left.token_ids[position], right.token_ids[position], assume_unique=True, return_indices=True
        )
        p_log = left.log_probabilities[position, at_left].astype(np.float64)
        q_log = right.log_probabilities[position, at_right].astype(np.float64)
        result[position] = _divergence(p_log, q_log)
    return result


def _divergence(p_log: np.ndarray, q_log: np.ndarray) -> float:
    """KL over the shared tokens and the pooled rest."""
    import numpy as np

    p, q = np.exp(p_log), np.exp(q_log)
    listed = p > 0
    total = float(np.sum(p[listed] * (p_log[listed] - q_log[listed])))
    # float32 log probabilities leave a rest of about 1e-7 even of a whole vocabulary; a smaller one is rounding, not probability.
    p_rest, q_rest = 1.0 - p.sum(), max(1.0 - q.sum(), 1e-6)
    if p_rest > 1e-6:
        total += float(p_rest * np.log(p_rest / q_rest))
    return max(total, 0.0)


def touched_shares(
    routings: Iterable[np.ndarray], layers: Sequence[int], experts: Iterable[tuple[int, int]]
) -> TouchedShares:
    """The share of router slots that the experts hold and of tokens with at least one such slot.

    `routings`: arrays int [T, L, K] of selected expert ids, L in the order of `layers`; `experts`: (model layer, expert).
    Under `drop` and `drop-renorm` these slots are removed; under `reroute` the next-best expert takes them.
    """
    import numpy as np

    wanted: dict[int, list[int]] = {}
    for layer, expert in experts:
        wanted.setdefault(layers.index(layer), []).append(expert)
    num_tokens = num_slots = slots = tokens = 0
    for routing in routings:
        hit = np.zeros(routing.shape, dtype=bool)
        for row, chosen in wanted.items():
            hit[:, row] = np.isin(routing[:, row], chosen)
        num_tokens += len(routing)
        num_slots += routing.size
        slots += int(hit.sum())
        tokens += int(hit.any(axis=(1, 2)).sum())
    return TouchedShares(
        num_tokens=num_tokens,
        num_slots=num_slots,
        slots_in_set=slots,
        slot_share=slots / num_slots if num_slots else None,
        tokens_touched=tokens,
        token_share=tokens / num_tokens if num_tokens else None,
    )


def selection_frequency(
    routings: Iterable[np.ndarray], layers: Sequence[int], num_experts: int
) -> dict[int, np.ndarray]:
    """Selections per token of every expert: model layer -> float [E]. `routings` as in `touched_shares`."""
    import numpy as np

    counts = np.zeros((len(layers), num_experts), dtype=np.int64)
    num_tokens = 0
    for routing in routings:
        num_tokens += len(routing)
        for row in range(len(layers)):
            counts[row] += np.bincount(routing[:, row].ravel(), minlength=num_experts)
    return {layer: counts[row] / max(num_tokens, 1) for row, layer in enumerate(layers)}


def pooled_kl(per_prompt: Sequence[np.ndarray], *, seed: int = 0) -> Interval:
    """Mean KL per token over all positions of all prompts, with a bootstrap interval that resamples prompts."""
    import numpy as np

    sums = np.array([values.sum() for values in per_prompt], float)
    lengths = np.array([len(values) for values in per_prompt], float)
    return clustered_ratio(sums, lengths, [str(number) for number in range(len(sums))], seed=seed)
