"""The pictures of the page as SVG: a forest of rates, and moved against KL with the front. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

from eval.compare.variants import Comparisons, Variant
from eval.display.drawing import (
    GRID,
    INK,
    MUTED,
    NULL,
    OBSERVED,
    label_words,
    round_share,
    svg_open,
    tick_percent,
    write,
)
from eval.display.words import percent, rate_words, short_rate
from eval.outcomes.statistics import Rate

# A variant's name beside a row; the whole one is in the table.
NAME_CHARACTERS = 26
LABEL_SIZE = 13


@dataclass(frozen=True)
class Group:
    """Rows of the forest under one title: each variant's number, name and rate; `line` is a share to compare with."""

    title: str
    rows: list[tuple[int, str, Rate]]
    line: float | None = None


def forest_groups(found: Comparisons) -> list[Group]:
    """The counted change, the opposite one, any change, then every single transition that some variant made, the commonest
    first."""
    variants = found.variants
    base_flips = found.repeat_flips.rate if found.repeat_flips is not None else None
    groups = [
        Group(variants[0].moved.description, [(one.number, one.name, one.moved.rate) for one in variants]),
        Group(variants[0].returned.description, [(one.number, one.name, one.returned.rate) for one in variants]),
        Group("another label than the base's", [(one.number, one.name, one.changed) for one in variants], base_flips),
    ]
    counts: dict[tuple[str, str], int] = {}
    for variant in variants:
        for one in variant.transitions:
            counts[one.before, one.after] = counts.get((one.before, one.after), 0) + one.rate.count
    for before, after in sorted((pair for pair in counts if counts[pair]), key=lambda pair: -counts[pair]):
        rows = [
            (variant.number, variant.name, one.rate)
            for variant in variants
            for one in variant.transitions
            if (one.before, one.after) == (before, after)
        ]
        groups.append(Group(f"{label_words(before)} -> {label_words(after)}", rows))
    return groups


def forest(groups: Sequence[Group]) -> str:
    """One line a rate with its interval, 0 to 100 %, in groups; a dashed line is the share that comes with no change at all."""
    width, left, right, row_height, title_height = 860, 220, 210, 20, 34
    plot = width - left - right
    floor = sum(title_height + row_height * len(group.rows) for group in groups) + 6
    parts = [svg_open(width, floor + 46, "Rates of every transition with 95 % intervals")]
    for fifth in range(6):
        x = left + plot * fifth / 5
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="6" y2="{floor}" stroke="{GRID}"/>')
        parts.append(write(x, floor + 18, f"{20 * fifth} %", "middle", size=11, colour=MUTED))
    y = 0.0
    for group in groups:
        y += title_height
        parts.append(write(6, y - 10, group.title, "start", size=13, bold=True))
        if group.line is not None:
            x = left + plot * group.line
            bottom = y + row_height * len(group.rows)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4:.1f}" y2="{bottom:.1f}" stroke="{INK}" stroke-dasharray="4 3">'
                f"<title>the base run twice: {percent(group.line)}</title></line>"
            )
            parts.append(
                write(
                    width - right + 10, y - 10, f"dashed: the base run twice, {percent(group.line)}", "start", size=11
                )
            )
        for number, name, rate in group.rows:
            middle = y + row_height / 2
            parts.append(write(left - 10, middle + 4, f"{number}  {shortened(name)}", "end", size=12))
            parts.append(_rate_mark(rate, left, plot, middle))
            parts.append(write(width - right + 10, middle + 4, short_rate(rate), "start", size=12, colour=MUTED))
            y += row_height
    parts.append(
        write(left + plot / 2, floor + 38, "share of the answers that could make the change", "middle", size=12)
    )
    return "".join(parts) + "</svg>"


def shortened(name: str) -> str:
    """A name for a picture: its beginning and its end, where it is long, since long names often differ there."""
    if len(name) <= NAME_CHARACTERS:
        return name
    half = (NAME_CHARACTERS - 1) // 2
    return f"{name[:half]}\u2026{name[-half:]}"


def _rate_mark(rate: Rate, left: float, plot: float, y: float) -> str:
    if rate.rate is None or rate.low is None or rate.high is None:
        return write(left + 6, y + 4, "none could", "start", size=11, colour=MUTED)
    low, at, high = (left + plot * share for share in (rate.low, rate.rate, rate.high))
    return (
        f'<g><title>{escape(rate_words(rate))}</title><line x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        f' stroke="{NULL}" stroke-width="3"/><circle cx="{at:.1f}" cy="{y:.1f}" r="4.5" fill="{OBSERVED}"/></g>'
    )


@dataclass(frozen=True)
class _Point:
    variant: Variant
    kl: float
    moved: float
    x: float
    y: float


def pareto(found: Comparisons) -> str:
    """Moved (up) against KL from the base (to the right) with 95 % intervals; the front is joined, what it beats is hollow.

    Empty where no variant's KL was measured.
    """
    width, left, top, plot_width, plot_height = 860, 76, 26, 740, 340
    kl_ends, moved_ends = [0.0], [0.0]
    for one in found.variants:
        if one.kl is not None and one.kl.estimate is not None and one.moved.rate.rate is not None:
            kl_ends += [one.kl.estimate, one.kl.high or 0.0]
            moved_ends += [one.moved.rate.rate, one.moved.rate.high or 0.0]
    if len(kl_ends) == 1:
        return ""
    most_kl, most_moved = _round_end(max(kl_ends)), round_share(max(moved_ends))

    def across(kl: float) -> float:
        return left + plot_width * kl / most_kl

    def up(moved: float) -> float:
        return top + plot_height * (1 - moved / most_moved)

    points = [
        _Point(one, one.kl.estimate, one.moved.rate.rate, across(one.kl.estimate), up(one.moved.rate.rate))
        for one in found.variants
        if one.kl is not None and one.kl.estimate is not None and one.moved.rate.rate is not None
    ]
    bottom = top + plot_height
    parts = [svg_open(width, bottom + 52, f"{found.target['change']} against KL from the base")]
    for fifth in range(6):
        x, y = across(most_kl * fifth / 5), up(most_moved * fifth / 5)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(f'<line x1="{left}" x2="{left + plot_width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(write(x, bottom + 18, f"{most_kl * fifth / 5:.3g}", "middle", size=11, colour=MUTED))
        parts.append(write(left - 8, y + 4, tick_percent(most_moved * fifth / 5), "end", size=11, colour=MUTED))
    parts.append(write(left, 14, f"{found.target['change']}, share of those at risk", "start", size=12, bold=True))
    bound = "" if all(one.variant.kl_is_exact for one in points) else "at least; "
    axis = f"KL from the base ({bound}nats per token of neutral text)"
    parts.append(write(left + plot_width, bottom + 40, axis, "end", size=12, bold=True))
    parts += [_whiskers(point, across, up) for point in points]
    parts.append(_front_line([point for point in points if point.variant.on_front], left, bottom, left + plot_width))
    for point in points:
        fill = OBSERVED if point.variant.on_front else "white"
        edge = OBSERVED if point.variant.on_front else MUTED
        title = (
            f"{point.variant.number} {point.variant.name}: {rate_words(point.variant.moved.rate)}, KL {point.kl:.4g}"
        )
        parts.append(
            f'<circle cx="{point.x:.1f}" cy="{point.y:.1f}" r="6" fill="{fill}" stroke="{edge}" stroke-width="2">'
            f"<title>{escape(title)}</title></circle>"
        )
    parts += _numbers(points)
    return "".join(parts) + "</svg>"


def _whiskers(point: _Point, across: object, up: object) -> str:
    assert callable(across) and callable(up)
    kl, rate = point.variant.kl, point.variant.moved.rate
    lines = []
    if kl is not None and kl.low is not None and kl.high is not None:
        lines.append((across(kl.low), point.y, across(kl.high), point.y))
    if rate.low is not None and rate.high is not None:
        lines.append((point.x, up(rate.low), point.x, up(rate.high)))
    return "".join(
        f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{NULL}" stroke-width="1.5"/>'
        for x0, y0, x1, y1 in lines
    )


def _front_line(front: Iterable[_Point], left: float, bottom: float, right: float) -> str:
    """What is had for at most so much KL: nothing up to the first of the front, then steps."""
    path, y = f"M{left:.1f},{bottom:.1f}", bottom
    for point in sorted(front, key=lambda one: one.kl):
        path += f" L{point.x:.1f},{y:.1f} L{point.x:.1f},{point.y:.1f}"
        y = point.y
    return f'<path d="{path} L{right:.1f},{y:.1f}" fill="none" stroke="{OBSERVED}" stroke-width="1.5" stroke-dasharray="5 3"/>'


def _numbers(points: Sequence[_Point]) -> list[str]:
    """Each variant's number beside its mark, where neither a mark nor another number is."""
    taken = [(point.x, point.y) for point in points]
    parts = []
    for point in points:
        places = [
            (point.x + dx, point.y + dy) for dx, dy in ((15, -12), (-15, -12), (15, 14), (-15, 14), (0, -21), (0, 23))
        ]
        free = [
            place
            for place in places
            if all(abs(place[0] - x) > LABEL_SIZE or abs(place[1] - y) > LABEL_SIZE for x, y in taken)
        ]
        x, y = (free or places)[0]
        taken.append((x, y))
        parts.append(write(x, y + 4, str(point.variant.number), "middle", size=LABEL_SIZE, bold=True))
    return parts


def _round_end(highest: float) -> float:
    """The end of an axis that begins at 0: the next of a few round numbers times a power of ten."""
    size = 1e-9
    while isfinite(size):
        for step in (1, 1.5, 2, 3, 4, 5, 6, 8):
            if highest <= step * size:
                return step * size
        size *= 10
    return highest
