"""How many of the experts it takes: the first k alone, the gain and its costs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from pydantic import BaseModel

from eval.answers.arms import Arm
from eval.answers.live import LiveResponder, TokenDistributions
from eval.display.drawing import COST, GAIN, MUTED, error_bar, round_share, svg_open, tick_percent, write, y_axis
from eval.display.words import percent
from eval.measures.controls import control_positions, ends_early, labels_alone
from eval.measures.measure import Found, Measure, Part, Scene, Shown
from eval.measures.neutral import kl_from_base, load_neutral, read_neutral
from eval.measures.transitions import Change, compare
from eval.options import EvalRequest
from eval.outcomes.observed import by_beginnings, select
from eval.outcomes.statistics import Interval, Rate, wilson
from eval.outcomes.targets import moves
from ftri.prompts.sets import PromptSet


class SweepPoint(BaseModel):
    """The first k experts alone: the gain, and its costs in changed other answers, damage and KL.

    `damaged` is None where answers ended once their label was decided.
    """

    num_experts: int
    semantics: str
    moved: Change
    others_changed: Rate
    damaged: Rate | None
    kl_per_token: Interval | None


def load(request: EvalRequest) -> PromptSet | None:
    """Neutral prompts for the KL, where there is a sweep at all."""
    return load_neutral(request) if request.options.sweep_k else None


def parts(neutral: PromptSet | None, scene: Scene) -> Iterable[Part]:
    """All k, where an engine answers."""
    if scene.live is None or not scene.options.sweep_k:
        return []
    return [Part("sweep over k", partial(sweep, scene, scene.live, neutral))]


def sweep(scene: Scene, live: LiveResponder, neutral: PromptSet | None) -> Found:
    """Every k on the controls' prompts."""
    options, edit, target = scene.options, scene.edit, scene.target
    positions = control_positions(scene)
    requests = [scene.requests[position] for position in positions]
    shorter = labels_alone(requests) if ends_early(scene) else requests
    chosen = select(scene.base, positions)
    if ends_early(scene):
        chosen = by_beginnings(scene.collector, chosen)
    clusters, units = ([each[position] for position in positions] for each in (scene.clusters, scene.units))
    text = read_neutral(scene, neutral) if neutral is not None else None
    base_cache: list[TokenDistributions] = []
    points = []
    # Beyond the size of the set every k is the whole set.
    largest = max(len(edit.suppress), len(edit.stimulate))
    for count in sorted({min(count, largest) for count in options.sweep_k}):
        top = edit.top(count)
        semantics = scene.plan.primary.semantics
        shifts, factors = top.shifts_under(semantics), top.factors_under(semantics)
        arm = Arm(f"top-{count}", "sweep", semantics, top.suppress, top.stimulate, bias_shifts=shifts, factors=factors)
        # The whole set has answered in full already.
        asked = requests if arm.identity() == scene.plan.primary.identity() else shorter
        outcomes = scene.observe(arm, asked)
        if asked is not shorter:
            outcomes = by_beginnings(scene.collector, outcomes)
        before, after = chosen.labels(target.axis), outcomes.labels(target.axis)
        comparison = compare(target, "base", arm.name, before, after, clusters, units=units, seed=options.seed)
        at_risk, _ = moves(target, before, before)
        others = [b != a for b, a, risk in zip(before, after, at_risk, strict=True) if not risk]
        kl = None
        if text is not None:
            kl = kl_from_base(
                scene.collector,
                live,
                arm,
                scene.plan.base,
                text,
                num_listed=options.kl_listed,
                seed=options.seed,
                base_cache=base_cache,
            )
        damaged = None if asked is not requests else outcomes.damaged()
        points.append(
            SweepPoint(
                num_experts=len(top.pairs),
                semantics=str(arm.semantics),
                moved=comparison.moved,
                others_changed=wilson(sum(others), len(others)),
                damaged=None if damaged is None else wilson(sum(damaged), len(damaged)),
                kl_per_token=kl,
            )
        )
    return {"sweep": points}


def lines(found: Sequence[SweepPoint], shown: Shown) -> list[str]:
    """The counted change at each k."""
    return ["", "k: " + ", ".join(f"{p.num_experts} -> {percent(p.moved.rate.rate)}" for p in found)]


def figures(found: Sequence[SweepPoint], shown: Shown) -> dict[str, Any]:
    """The chart of gain and costs."""
    return {"chart": sweep_chart(found, shown.target["change"])}


def sweep_chart(points: Sequence[SweepPoint], change: str) -> str:
    """The counted change against k, and below it both costs: other answers changed, and KL per token."""
    width, left, plot_width = 760, 70, 520
    panels: list[tuple[str, list[float], list[tuple[float, float] | None], str, bool]] = [
        (
            f"{change}, share of those at risk",
            [p.moved.rate.rate or 0 for p in points],
            [error_bar(p.moved.rate.low, p.moved.rate.high) for p in points],
            GAIN,
            True,
        ),
        (
            "cost: other answers changed, share of them",
            [p.others_changed.rate or 0 for p in points],
            [error_bar(p.others_changed.low, p.others_changed.high) for p in points],
            COST,
            True,
        ),
    ]
    if all(p.kl_per_token is not None for p in points):
        kl = [p.kl_per_token for p in points if p.kl_per_token is not None]
        panels.append(
            (
                "cost: KL from the base (nats per token)",
                [one.estimate or 0 for one in kl],
                [error_bar(one.low, one.high) for one in kl],
                COST,
                False,
            )
        )
    panel_height, gap, top = 100, 56, 26
    height = top + len(panels) * (panel_height + gap) + 10
    parts = [svg_open(width, height, f"Sweep over the number of experts: {change} and its costs")]
    step = plot_width / max(len(points) - 1, 1)
    for number, (name, values, bounds, colour, is_share) in enumerate(panels):
        y0 = top + number * (panel_height + gap)
        highest = max([*values, *(pair[1] for pair in bounds if pair), 1e-9])
        limit = round_share(highest) if is_share else highest * 1.1
        show = percent if is_share else (lambda value, digits=3: f"{value:.{digits}g}")
        words = [tick_percent(v) if is_share else show(v) for v in (0.0, limit / 2, limit)]
        parts.append(write(left, y0 - 8, name, "start", size=13, bold=True, colour=colour))
        parts += y_axis(left, y0, plot_width, panel_height, [0, limit / 2, limit], words, "")
        xs = [left + step * k if len(points) > 1 else left + plot_width / 2 for k in range(len(points))]
        ys = [y0 + panel_height * (1 - value / limit) for value in values]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y, value, pair, point in zip(xs, ys, values, bounds, points, strict=True):
            if pair:
                low, high = (y0 + panel_height * (1 - min(bound, limit) / limit) for bound in pair)
                parts.append(
                    f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}" stroke-width="1.2"/>'
                )
            marker = (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}">'
                if number == 0
                else f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" fill="{colour}">'
            )
            parts.append(
                f"{marker}<title>k = {point.num_experts}: {show(value)}</title></{'circle' if number == 0 else 'rect'}>"
            )
            parts.append(write(x, y0 + panel_height + 16, f"k = {point.num_experts}", "middle", size=11, colour=MUTED))
        parts.append(write(left + plot_width + 14, ys[-1] + 4, show(values[-1]), "start", size=12, colour=colour))
    return "".join(parts) + "</svg>"


REPORT = """\
<h2>How many experts</h2>
{{ chart | svg }}
<table>
<tr><th>k</th><th>{{ results.target.change }}</th><th>other answers changed</th><th>looping or garbled</th><th>KL, nats per token</th></tr>
{% for point in found %}
<tr><td>{{ point.num_experts }}</td><td>{{ words.rate_words(point.moved.rate) }}</td><td class="n">{{ words.short_rate(point.others_changed) }}</td><td class="n">{{ words.short_rate(point.damaged) if point.damaged else "-" }}</td><td class="n">{{ words.interval_words(point.kl_per_token, 4) if point.kl_per_token else "-" }}</td></tr>
{% endfor %}
</table>
"""  # noqa: E501
MEASURE = Measure(field="sweep", load=load, parts=parts, lines=lines, report=REPORT, figures=figures, place=30)
