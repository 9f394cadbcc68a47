"""KL per token from listed log probabilities. Pure. Legend: T positions, N listed tokens per position; natural logarithms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from eval.answers.live import TokenDistributions
from eval.outcomes.statistics import Interval, clustered_ratio

if TYPE_CHECKING:
    import numpy as np


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
                _kl(p.astype(np.float64), q.astype(np.float64))
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
        result[position] = _kl(p_log, q_log)
    return result


def _kl(p_log: np.ndarray, q_log: np.ndarray) -> float:
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


def likeliest(distributions: TokenDistributions) -> np.ndarray:
    """The likeliest listed token at every position, int [T]; of several that are, the one with the lowest id.

    A whole vocabulary comes in its own order, and of equal ones an engine lists any first, so that the first column says neither.
    """
    import numpy as np

    if not distributions.token_ids.size:
        return np.zeros(len(distributions.token_ids), np.int64)
    is_best = distributions.log_probabilities == distributions.log_probabilities.max(axis=1, keepdims=True)
    return np.where(is_best, distributions.token_ids.astype(np.int64), np.iinfo(np.int64).max).min(axis=1)


def pooled_kl(per_prompt: Sequence[np.ndarray], *, seed: int = 0) -> Interval:
    """Mean KL per token over all positions of all prompts, with a bootstrap interval that resamples prompts."""
    import numpy as np

    sums = np.array([values.sum() for values in per_prompt], float)
    lengths = np.array([len(values) for values in per_prompt], float)
    return clustered_ratio(sums, lengths, [str(number) for number in range(len(sums))], seed=seed)


class Divergence(BaseModel):
    """Teacher-forced KL(left || right) in nats per token over the base's own answers to neutral prompts."""

    left: str
    right: str
    answer_tokens: Interval
    all_tokens: Interval
    first_token: Interval
    token_flips: float | None = Field(
        default=None, description="Share of answer tokens whose likeliest next token differs between the two."
    )


def compare(
    left: str,
    right: str,
    left_distributions: Sequence[TokenDistributions],
    right_distributions: Sequence[TokenDistributions],
    answer_starts: Sequence[int],
    seed: int,
) -> Divergence:
    """How far two arms' readings of the same texts are from each other.

    answer_starts: of every text, the number of tokens before its answer.
    """
    everything = [kl_per_position(p, q) for p, q in zip(left_distributions, right_distributions, strict=True)]
    # Position n predicts token n + 1, so the answer's first token is predicted at the prompt's last position.
    answers = [values[start - 1 :] for values, start in zip(everything, answer_starts, strict=True)]
    flips = [
        flipped
        for p, q, start in zip(left_distributions, right_distributions, answer_starts, strict=True)
        for flipped in (likeliest(p) != likeliest(q))[start - 1 :].tolist()
    ]
    return Divergence(
        token_flips=sum(flips) / len(flips) if flips else None,
        left=left,
        right=right,
        answer_tokens=pooled_kl(answers, seed=seed),
        all_tokens=pooled_kl(everything, seed=seed),
        first_token=pooled_kl([values[:1] for values in answers], seed=seed),
    )
