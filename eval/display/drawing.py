"""Diagrams of the report as SVG text. Pure. Colours are Okabe and Ito's, told apart by colour-blind readers;
shapes and words say the same."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from eval.display.words import percent
from ftri.labels.names import Behavior, ThinkingLanguage

COLOURS = {
    Behavior.REFUSED.value: "#d55e00",
    Behavior.ALIGNED.value: "#0072b2",
    Behavior.REASONED.value: "#009e73",
    Behavior.REFUSED_AFTER_REASONING.value: "#e69f00",
    Behavior.TRUNCATED.value: "#8c8c8c",
    Behavior.UNPARSED.value: "#555555",
    ThinkingLanguage.ENGLISH.value: "#0072b2",
    ThinkingLanguage.CHINESE.value: "#d55e00",
    ThinkingLanguage.MIXED.value: "#cc79a7",
    ThinkingLanguage.NONE.value: "#8c8c8c",
}
# Backgrounds that white letters could not be read on.
PALE = frozenset(
    {
        Behavior.REFUSED_AFTER_REASONING.value,
        Behavior.TRUNCATED.value,
        ThinkingLanguage.MIXED.value,
        ThinkingLanguage.NONE.value,
    }
)
INK, MUTED, GRID = "#1f2430", "#5c6370", "#e3e6ea"
OBSERVED, NULL = "#d55e00", "#56b4e9"
GAIN, COST = "#0072b2", "#d55e00"


def dumbbell(rows: Sequence[tuple[str, float | None, float | None]], axis: str) -> str:
    """One line a row from the rate before (open) to the rate after (filled), 0 to 100 % of what `axis` says."""
    width, left, row_height, top = 760, 250, 30, 10
    plot_width = width - left - 60
    bottom = top + row_height * len(rows) + 4
    parts = [svg_open(width, bottom + 46, "Rates before and after")]
    for k in range(6):
        x = left + plot_width * k / 5
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(write(x, bottom + 18, f"{20 * k} %", "middle", size=11, colour=MUTED))
    for number, (name, before, after) in enumerate(rows):
        y = top + row_height * (number + 0.5)
        parts.append(write(left - 10, y + 4, name, "end", size=12))
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
    parts.append(write(left + plot_width / 2, bottom + 38, axis, "middle", size=12, colour=MUTED))
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


def stack(sizes: Sequence[int], top: float, scale: float, gap: float) -> list[float]:
    """The upper end of every bar; empty ones take no room."""
    starts, y = [], top
    for size in sizes:
        starts.append(y)
        if size:
            y += size * scale + gap
    return starts


def spread(wanted: Sequence[float], sizes: Sequence[int], least: float = 15.0) -> list[float]:
    """Label heights near the wanted ones, but never on top of each other."""
    heights, last = [], -1e9
    for y, size in zip(wanted, sizes, strict=True):
        if size:
            last = max(y, last + least)
        heights.append(last if size else y)
    return heights


def error_bar(low: float | None, high: float | None) -> tuple[float, float] | None:
    return None if low is None or high is None else (low, high)


def svg_open(width: float, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{escape(title, quote=True)}"'
        f' xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title>'
    )


def write(x: float, y: float, words: str, anchor: str, *, size: int = 14, colour: str = INK, bold: bool = False) -> str:
    weight = ' font-weight="600"' if bold else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"'
    return f'<text {place} fill="{colour}"{weight}>{escape(words)}</text>'


def y_axis(
    left: float, top: float, width: float, height: float, values: Sequence[float], words: Sequence[str], name: str
) -> list[str]:
    parts = []
    highest = values[-1] or 1
    for value, word in zip(values, words, strict=True):
        y = top + height * (1 - value / highest)
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y:.1f}" y2="{y:.1f}" stroke="{GRID}"/>')
        parts.append(write(left - 8, y + 4, word, "end", size=11, colour=MUTED))
    if name:
        parts.append(write(left - 8, top - 8, name, "end", size=11, colour=MUTED))
    return parts


def x_ticks(left: float, y: float, width: float, values: Sequence[float], limit: float, show: object) -> list[str]:
    assert callable(show)
    return [
        write(left + width * value / limit, y + 16, show(value), "middle", size=11, colour=MUTED) for value in values
    ]
