"""Diagrams of the report as SVG text. Pure. Colours are Okabe and Ito's, told apart by colour-blind readers;
shapes and words say the same."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.measures.transitions import TransitionMatrix
from eval.report.words import percent
from eval.results import NullDistribution, SweepPoint

COLOURS = {
    "REFUSED": "#d55e00",
    "ALIGNED": "#0072b2",
    "REASONED": "#009e73",
    "REFUSED_AFTER_REASONING": "#e69f00",
    "TRUNCATED": "#8c8c8c",
    "UNPARSED": "#555555",
    "english": "#0072b2",
    "chinese": "#d55e00",
    "mixed": "#cc79a7",
    "none": "#8c8c8c",
}
# Backgrounds that white letters could not be read on.
PALE = frozenset({"REFUSED_AFTER_REASONING", "mixed", "TRUNCATED", "none"})
INK, MUTED, GRID = "#1f2430", "#5c6370", "#e3e6ea"
OBSERVED, NULL = "#d55e00", "#56b4e9"
GAIN, COST = "#0072b2", "#d55e00"


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
    left = _stack(row_sums, top, scale, gap)
    right = _stack(column_sums, top, scale, gap)
    parts = [_svg_open(width, top + height + 12, f"Transitions from {before} to {after}")]
    parts.append(_text(left_x + bar, 20, before, "end", bold=True) + _text(right_x, 20, after, "start", bold=True))
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
        label_y = _spread([start + size * scale / 2 for start, size in zip(starts, sums, strict=True)], sums)
        for label, start, size, y in zip(matrix.labels, starts, sums, label_y, strict=True):
            if size:
                parts.append(
                    f'<rect x="{x}" y="{start:.1f}" width="{bar}" height="{max(size * scale, 1):.1f}" fill="{COLOURS[label]}"/>'
                )
                words = f"{label_words(label)} {size} ({percent(size / total, 0)})"
                parts.append(_text(text_x, y + 4, words, anchor, size=12))
    return "".join(parts) + "</svg>"


def null_histogram(control: NullDistribution) -> str:
    """How often random sets reach each rate, with the variant's own rate as a line."""
    width, height, left, bottom, top = 760, 190, 56, 42, 40
    highest = max([control.observed, *control.null_values, 0.05])
    limit = round_share(highest)
    num_bins = 30
    counts = [0] * num_bins
    for value in control.null_values:
        counts[min(int(value / limit * num_bins), num_bins - 1)] += 1
    tallest = max(counts)
    plot_width, plot_height = width - left - 24, height - bottom - top
    parts = [_svg_open(width, height, f"Null distribution of {control.statistic}, matched by {control.matching}")]
    parts += _y_axis(left, top, plot_width, plot_height, [0, tallest], [str(0), str(tallest)], "sets")
    for number, count in enumerate(counts):
        if count:
            x = left + number * plot_width / num_bins
            tall = plot_height * count / tallest
            title = f"{percent(number * limit / num_bins)} to {percent((number + 1) * limit / num_bins)}: {count} sets"
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{top + plot_height - tall:.1f}" width="{plot_width / num_bins - 2:.1f}"'
                f' height="{tall:.1f}"'
                f' fill="{NULL}"><title>{title}</title></rect>'
            )
    parts += _x_ticks(left, top + plot_height, plot_width, [limit * k / 5 for k in range(6)], limit, tick_percent)
    parts.append(
        _text(
            left + plot_width / 2,
            height - 6,
            f"{control.statistic}, share of those at risk",
            "middle",
            size=12,
            colour=MUTED,
        )
    )
    x = left + plot_width * control.observed / limit
    anchor = "end" if x > width / 2 else "start"
    offset = -6 if anchor == "end" else 6
    parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 16}" y2="{top + plot_height}" stroke="{OBSERVED}" stroke-width="2.5"/>'
    )
    words = f"variant {percent(control.observed)}, p = {control.p_value:.3g}"
    parts.append(_text(x + offset, top - 6, words, anchor, size=13, colour=OBSERVED, bold=True))
    return "".join(parts) + "</svg>"


def sweep_chart(points: Sequence[SweepPoint], change: str) -> str:
    """The counted change against k, and below it both costs: other answers changed, and KL per token."""
    width, left, plot_width = 760, 70, 520
    panels: list[tuple[str, list[float], list[tuple[float, float] | None], str, bool]] = [
        (
            change,
            [p.moved.rate.rate or 0 for p in points],
            [_bounds(p.moved.rate.low, p.moved.rate.high) for p in points],
            GAIN,
            True,
        ),
        (
            "cost: other answers changed",
            [p.others_changed.rate or 0 for p in points],
            [_bounds(p.others_changed.low, p.others_changed.high) for p in points],
            COST,
            True,
        ),
    ]
    if all(p.kl_per_token is not None for p in points):
        kl = [p.kl_per_token for p in points if p.kl_per_token is not None]
        panels.append(
            (
                "cost: KL per token, nats",
                [one.estimate or 0 for one in kl],
                [_bounds(one.low, one.high) for one in kl],
                COST,
                False,
            )
        )
    panel_height, gap, top = 100, 56, 26
    height = top + len(panels) * (panel_height + gap) + 10
    parts = [_svg_open(width, height, f"Sweep over the number of experts: {change} and its costs")]
    step = plot_width / max(len(points) - 1, 1)
    for number, (name, values, bounds, colour, is_share) in enumerate(panels):
        y0 = top + number * (panel_height + gap)
        highest = max([*values, *(pair[1] for pair in bounds if pair), 1e-9])
        limit = round_share(highest) if is_share else highest * 1.1
        show = percent if is_share else (lambda value, digits=3: f"{value:.{digits}g}")
        words = [tick_percent(v) if is_share else show(v) for v in (0.0, limit / 2, limit)]
        parts.append(_text(left, y0 - 8, name, "start", size=13, bold=True, colour=colour))
        parts += _y_axis(left, y0, plot_width, panel_height, [0, limit / 2, limit], words, "")
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
            parts.append(_text(x, y0 + panel_height + 16, f"k = {point.num_experts}", "middle", size=11, colour=MUTED))
        parts.append(_text(left + plot_width + 14, ys[-1] + 4, show(values[-1]), "start", size=12, colour=colour))
    return "".join(parts) + "</svg>"


def dumbbell(rows: Sequence[tuple[str, float | None, float | None]]) -> str:
    """One line a row from the rate before (open) to the rate after (filled), 0 to 100 %."""
    width, left, row_height, top = 760, 250, 30, 10
    plot_width = width - left - 60
    height = top + row_height * len(rows) + 34
    parts = [_svg_open(width, height, "Rates before and after")]
    for k in range(6):
        x = left + plot_width * k / 5
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{height - 30}" stroke="{GRID}"/>')
        parts.append(_text(x, height - 12, f"{20 * k} %", "middle", size=11, colour=MUTED))
    for number, (name, before, after) in enumerate(rows):
        y = top + row_height * (number + 0.5)
        parts.append(_text(left - 10, y + 4, name, "end", size=12))
        if before is None or after is None:
            continue
        x0, x1 = left + plot_width * before, left + plot_width * after
        parts.append(f'<line x1="{x0:.1f}" x2="{x1:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="{MUTED}" stroke-width="2"/>')
        parts.append(
            f'<circle cx="{x0:.1f}" cy="{y:.1f}" r="6" fill="white" stroke="{GAIN}" stroke-width="2.5">'
            f"<title>before {percent(before)}</title></circle>"
        )
        parts.append(
            f'<circle cx="{x1:.1f}" cy="{y:.1f}" r="6" fill="{COST}"><title>after {percent(after)}</title></circle>'
        )
    return "".join(parts) + "</svg>"


def round_share(highest: float) -> float:
    """The end of an axis of shares: the next of a few round numbers whose fifths are round too."""
    return next((end for end in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8) if highest <= end), 1.0)


def tick_percent(share: float) -> str:
    """0.05 -> `5 %`."""
    return f"{100 * share:g} %" if abs(100 * share - round(100 * share)) > 1e-9 else f"{100 * share:.0f} %"


def label_words(label: str) -> str:
    """Labels as people read them."""
    return {"REFUSED_AFTER_REASONING": "REFUSED LATER"}.get(label, label)


def _stack(sizes: Sequence[int], top: float, scale: float, gap: float) -> list[float]:
    """The upper end of every bar; empty ones take no room."""
    starts, y = [], top
    for size in sizes:
        starts.append(y)
        if size:
            y += size * scale + gap
    return starts


def _spread(wanted: Sequence[float], sizes: Sequence[int], least: float = 15.0) -> list[float]:
    """Label heights near the wanted ones, but never on top of each other."""
    heights, last = [], -1e9
    for y, size in zip(wanted, sizes, strict=True):
        if size:
            last = max(y, last + least)
        heights.append(last if size else y)
    return heights


def _bounds(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def _svg_open(width: float, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{escape(title, quote=True)}"'
        f' xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>'
    )


def _text(x: float, y: float, words: str, anchor: str, *, size: int = 14, colour: str = INK, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="{colour}"{weight}>{escape(words)}</text>'


def _y_axis(
    left: float, top: float, width: float, height: float, values: Sequence[float], words: Sequence[str], name: str
) -> list[str]:
    parts = []
    highest = values[-1] or 1
    for value, word in zip(values, words, strict=True):
        y = top + height * (1 - value / highest)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(_text(left - 8, y + 4, word, "end", size=11, colour=MUTED))
    if name:
        parts.append(_text(left - 8, top - 8, name, "end", size=11, colour=MUTED))
    return parts


def _x_ticks(left: float, y: float, width: float, values: Sequence[float], limit: float, show: object) -> list[str]:
    assert callable(show)
    return [
        _text(left + width * value / limit, y + 16, show(value), "middle", size=11, colour=MUTED) for value in values
    ]
