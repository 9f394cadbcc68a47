"""How answers move between labels from one model to another. Paper, Figs. 8-10. Legend: P answers, in the same
order on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pydantic import BaseModel

from eval.measures.statistics import Interval, McNemar, Rate, clustered_ratio, exact_mcnemar, wilson
from eval.measures.targets import Target


class TransitionMatrix(BaseModel):
    """`counts[i][j]`: answers with label `labels[i]` before and `labels[j]` after; rates are by row."""

    axis: str
    labels: list[str]
    counts: list[list[int]]
    rates: list[list[Rate]]

    def count(self, before: str, after: str) -> int:
        """One cell."""
        return self.counts[self.labels.index(before)][self.labels.index(after)]


class Change(BaseModel):
    """One directed change among those that could make it, with Wilson and cluster-bootstrap intervals."""

    description: str
    rate: Rate
    clustered: Interval


class Comparison(BaseModel):
    """Everything that is said about one pair of arms on one axis."""

    before: str
    after: str
    matrix: TransitionMatrix
    moved: Change
    returned: Change
    changed: Rate
    label_share_before: Rate
    label_share_after: Rate
    label_share_difference: Interval
    mcnemar: McNemar


def transition_matrix(
    axis: str, labels: Sequence[str], before: Sequence[str], after: Sequence[str]
) -> TransitionMatrix:
    """Count the pairs (before[p], after[p]).

    Raises: ValueError when the lengths differ or a label is not one of `labels`.
    """
    pairs = Counter(zip(before, after, strict=True))
    unknown = {label for pair in pairs for label in pair} - set(labels)
    if unknown:
        raise ValueError(f"labels {sorted(unknown)} are not among {list(labels)}")
    counts = [[pairs[row, column] for column in labels] for row in labels]
    rates = [[wilson(cell, sum(row)) for cell in row] for row in counts]
    return TransitionMatrix(axis=axis, labels=list(labels), counts=counts, rates=rates)


def moves(target: Target, before: Sequence[str], after: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """(at risk [P], made the counted change [P]): those that had the label and left it, or lacked and took it."""
    destinations = target.destinations()
    if target.direction == "leave":
        at_risk = [label == target.label for label in before]
        made = [risk and label in destinations for risk, label in zip(at_risk, after, strict=True)]
    else:
        at_risk = [label != target.label for label in before]
        made = [risk and label == target.label for risk, label in zip(at_risk, after, strict=True)]
    return at_risk, made


def move_rate(target: Target, before: Sequence[str], after: Sequence[str]) -> float:
    """The share of those at risk that made the counted change: the statistic of the null distributions; 0 when
    none is at risk."""
    at_risk, made = moves(target, before, after)
    return sum(made) / sum(at_risk) if any(at_risk) else 0.0


def compare(
    target: Target,
    before_name: str,
    after_name: str,
    before: Sequence[str],
    after: Sequence[str],
    clusters: Sequence[str],
    *,
    seed: int = 0,
) -> Comparison:
    """Compare two arms over the same answers; `before`, `after`, `clusters` are [P].

    `moved` is the change that the edit is for, `returned` the opposite one (for refusals: an answer that became a refusal).
    """
    import numpy as np

    at_risk, made = moves(target, before, after)
    opposite_risk = [label != target.label for label in before]
    opposite_made = [risk and label == target.label for risk, label in zip(opposite_risk, after, strict=True)]
    opposite_words = f"other -> {target.label}"
    if target.direction == "enter":
        opposite_risk = [label == target.label for label in before]
        opposite_made = [risk and label != target.label for risk, label in zip(opposite_risk, after, strict=True)]
        opposite_words = f"{target.label} -> other"
    had = [label == target.label for label in before]
    has = [label == target.label for label in after]
    difference = np.asarray(has, float) - np.asarray(had, float)
    return Comparison(
        before=before_name,
        after=after_name,
        matrix=transition_matrix(target.axis, target.labels, before, after),
        moved=_change(target.describe(), at_risk, made, clusters, seed),
        returned=_change(opposite_words, opposite_risk, opposite_made, clusters, seed),
        changed=wilson(sum(b != a for b, a in zip(before, after, strict=True)), len(before)),
        label_share_before=wilson(sum(had), len(had)),
        label_share_after=wilson(sum(has), len(has)),
        label_share_difference=clustered_ratio(difference, np.ones(len(had)), clusters, seed=seed),
        mcnemar=exact_mcnemar(had, has),
    )


def _change(words: str, at_risk: list[bool], made: list[bool], clusters: Sequence[str], seed: int) -> Change:
    import numpy as np

    interval = clustered_ratio(np.asarray(made, float), np.asarray(at_risk, float), clusters, seed=seed)
    return Change(description=words, rate=wilson(sum(made), sum(at_risk)), clustered=interval)
