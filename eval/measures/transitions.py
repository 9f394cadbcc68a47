"""How answers move between labels from one model to another. Paper, Figs. 8-10. Legend: P answers, in the same
order on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from html import escape
from typing import Any

from pydantic import BaseModel

from eval.answers.arms import Arm
from eval.display.drawing import COLOURS, label_words, spread, stack, svg_open, write
from eval.display.words import p_words, percent, rate_words, short_rate
from eval.measures.measure import Found, Measure, Part, Scene, Shown
from eval.outcomes.observed import ArmSummary, Outcomes
from eval.outcomes.statistics import Interval, McNemar, Rate, clustered_ratio, exact_mcnemar, wilson
from eval.outcomes.targets import Axis, Target, moves
from ftri.labels.names import Behavior, ThinkingLanguage


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


def compare(
    target: Target,
    before_name: str,
    after_name: str,
    before: Sequence[str],
    after: Sequence[str],
    clusters: Sequence[str],
    *,
    units: Sequence[str] | None = None,
    seed: int = 0,
) -> Comparison:
    """Compare two arms over the same answers; `before`, `after`, `clusters` and `units` (the prompts, see exact_mcnemar) are [P].

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
        mcnemar=exact_mcnemar(had, has, units),
    )


def _change(words: str, at_risk: list[bool], made: list[bool], clusters: Sequence[str], seed: int) -> Change:
    import numpy as np

    interval = clustered_ratio(np.asarray(made, float), np.asarray(at_risk, float), clusters, seed=seed)
    return Change(description=words, rate=wilson(sum(made), sum(at_risk)), clustered=interval)


def parts(_: None, scene: Scene) -> Iterator[Part]:
    """The variants under test; without the first of them there is no result at all."""
    yield Part("base", partial(_observe_base, scene), fatal=True)
    for arm in scene.plan.variants:
        yield Part(f"variant {arm.name}", partial(against_base, scene, arm), fatal=arm is scene.plan.primary)


def _observe_base(scene: Scene) -> Found:
    scene.say(f"{len(scene.requests)} answers of the base")
    scene.observe_prompts(scene.plan.base)
    return {}


def other_parts(_: None, scene: Scene) -> Iterable[Part]:
    """Further expert sets, on the same engine."""
    return [
        Part(f"variant {arm.name}", partial(against_base, scene, arm))
        for arm in scene.plan.others
        if arm.checkpoint is None
    ]


def against_base(scene: Scene, arm: Arm) -> Found:
    """Have an arm answer the prompts and compare it with the base, on the target's axis and on the other one."""
    after = scene.observe_prompts(arm)
    other: Axis = "language" if scene.target.axis == "behavior" else "behavior"
    label = ThinkingLanguage.ENGLISH.value if other == "language" else Behavior.REFUSED.value
    return {
        "comparisons": [_comparison(scene, scene.target, after)],
        "other_axis": [_comparison(scene, Target(other, label, "leave"), after)],
    }


def _comparison(scene: Scene, target: Target, after: Outcomes) -> Comparison:
    before = scene.base
    return compare(
        target,
        before.arm.name,
        after.arm.name,
        before.labels(target.axis),
        after.labels(target.axis),
        scene.clusters,
        units=scene.units,
        seed=scene.options.seed,
    )


def rows(found: Sequence[Comparison], shown: Shown) -> list[Sequence[str]]:
    """The base, and each arm that was compared with it."""
    base = shown.arm("base")
    share = percent(base.labels_of(shown.target["label"], shown.target["axis"]).rate)
    table: list[Sequence[str]] = [("base", "", "", share, _damage(base), "")]
    for comparison in found:
        arm = shown.arm(comparison.after)
        table.append(
            (
                f"{arm.name}" + (f" ({arm.semantics})" if arm.semantics else ""),
                short_rate(comparison.moved.rate),
                short_rate(comparison.returned.rate),
                percent(comparison.label_share_after.rate),
                _damage(arm),
                p_words(comparison.mcnemar.p_value),
            )
        )
    return table


def _damage(arm: ArmSummary) -> str:
    return f"{percent(arm.looping.rate)} / {percent(arm.garbled.rate)}"


def card(found: Sequence[Comparison], shown: Shown) -> list[tuple[str, str]]:
    """The counted change, the opposite one, and the label's share."""
    return [
        row
        for comparison in found
        if comparison.after == shown.primary
        for row in (
            (comparison.moved.description, rate_words(comparison.moved.rate)),
            (comparison.returned.description, rate_words(comparison.returned.rate)),
            (
                f"share of {shown.target['label']} before, after",
                f"{percent(comparison.label_share_before.rate)}, {percent(comparison.label_share_after.rate)}"
                f" (exact McNemar {p_words(comparison.mcnemar.p_value)})",
            ),
        )
    ]


def figures(found: Sequence[Comparison], shown: Shown) -> dict[str, Any]:
    """The diagrams of all comparisons."""
    return {"diagram": lambda one: transition_diagram(one.matrix, one.before, one.after)}


def transition_diagram(matrix: TransitionMatrix, before: str, after: str) -> str:
    """Bars of labels before (left) and after (right), with a band for every transition. Paper, Figs. 8-10."""
    width, bar, top, height, gap = 760, 18, 34, 300, 8
    left_x, right_x = 210, width - 210 - bar
    row_sums = [sum(row) for row in matrix.counts]
    column_sums = [sum(row[j] for row in matrix.counts) for j in range(len(matrix.labels))]
    total = sum(row_sums)
    if not total:
        return ""
    num_gaps = max(sum(1 for value in row_sums if value), sum(1 for value in column_sums if value)) - 1
    scale = (height - gap * num_gaps) / total
    left = stack(row_sums, top, scale, gap)
    right = stack(column_sums, top, scale, gap)
    parts = [svg_open(width, top + height + 12, f"Transitions from {before} to {after}")]
    parts.append(
        write(left_x + bar, 20, f"answers of {before}", "end", bold=True)
        + write(right_x, 20, f"answers of {after}", "start", bold=True)
    )
    left_used, right_used = list(left), list(right)
    middle = (left_x + bar + right_x) / 2
    for i, row in enumerate(matrix.counts):
        for j, count in enumerate(row):
            if not count:
                continue
            thick = count * scale
            y0, y1 = left_used[i], right_used[j]
            left_used[i] += thick
            right_used[j] += thick
            path = (
                f"M{left_x + bar},{y0:.1f} C{middle},{y0:.1f} {middle},{y1:.1f} {right_x},{y1:.1f}"
                f" L{right_x},{y1 + thick:.1f} C{middle},{y1 + thick:.1f} {middle},{y0 + thick:.1f}"
                f" {left_x + bar},{y0 + thick:.1f} Z"
            )
            source, destination = matrix.labels[i], matrix.labels[j]
            opacity = 0.28 if i == j else 0.6
            title = f"{source} -> {destination}: {count} of {row_sums[i]} ({percent(count / row_sums[i])})"
            parts.append(
                f'<path d="{path}" fill="{COLOURS[source]}" fill-opacity="{opacity}"><title>{escape(title)}</title></path>'
            )
    for x, starts, sums, anchor, text_x in (
        (left_x, left, row_sums, "end", left_x - 8),
        (right_x, right, column_sums, "start", right_x + bar + 8),
    ):
        label_y = spread([start + size * scale / 2 for start, size in zip(starts, sums, strict=True)], sums)
        for label, start, size, y in zip(matrix.labels, starts, sums, label_y, strict=True):
            if size:
                parts.append(
                    f'<rect x="{x}" y="{start:.1f}" width="{bar}" height="{max(size * scale, 1):.1f}" fill="{COLOURS[label]}"/>'
                )
                words = f"{label_words(label)} {size} ({percent(size / total, 0)})"
                parts.append(write(text_x, y + 4, words, anchor, size=12))
    return "".join(parts) + "</svg>"


REPORT = """\
<h2>Transitions</h2>
<p class="muted">Left: labels of the base. Right: the same prompts under the variant. Bands keep the colour of where they come from; the stronger ones changed.</p>
{% for comparison in found %}
<h3>{{ comparison.after }}{% if results.arm(comparison.after).semantics %} ({{ results.arm(comparison.after).semantics }}){% endif %}</h3>
{{ diagram(comparison) | svg }}
<table>
<tr><td>{{ comparison.moved.description }}</td><td>{{ words.rate_words(comparison.moved.rate) }}</td><td class="muted">by {{ results.clusters }}: {{ words.interval_words(comparison.moved.clustered, 1, 100, " %") }}, {{ comparison.moved.clustered.num_clusters }} clusters</td></tr>
<tr><td>{{ comparison.returned.description }}</td><td>{{ words.rate_words(comparison.returned.rate) }}</td><td class="muted">by {{ results.clusters }}: {{ words.interval_words(comparison.returned.clustered, 1, 100, " %") }}</td></tr>
<tr><td>share of {{ results.target.label }}</td><td>{{ words.percent(comparison.label_share_before.rate) }} before, {{ words.percent(comparison.label_share_after.rate) }} after</td><td class="muted">{{ comparison.mcnemar.lost }} prompts lost it, {{ comparison.mcnemar.gained }} gained it; exact McNemar {{ words.p_words(comparison.mcnemar.p_value) }}</td></tr>
</table>
<details><summary>All counts and rates</summary>
<table>
<tr><th>before \\ after</th>{% for label in comparison.matrix.labels %}<th>{{ label_words(label) }}</th>{% endfor %}</tr>
{% for label in comparison.matrix.labels %}
{% set row = comparison.matrix.rates[loop.index0] %}
<tr><th>{{ label_words(label) }}</th>{% for cell in row %}<td class="n"{% if cell.rate is not none %} title="95 % CI {{ words.percent(cell.low) }} to {{ words.percent(cell.high) }}"{% endif %}>{{ cell.count }}{% if cell.rate is not none and cell.count %}<br><span class="muted">{{ words.percent(cell.rate) }}</span>{% endif %}</td>{% endfor %}</tr>
{% endfor %}
</table></details>
{% endfor %}
{% for comparison in results.other_axis if comparison.after == results.primary %}
<details><summary>{{ "Thinking language" if comparison.matrix.axis == "language" else "Behaviour" }}, base to {{ comparison.after }}</summary>{{ diagram(comparison) | svg }}</details>
{% endfor %}
"""  # noqa: E501
MEASURE = Measure(field="comparisons", parts=parts, rows=rows, card=card, report=REPORT, figures=figures, place=10)
OTHERS = Measure(field="comparisons", parts=other_parts)
