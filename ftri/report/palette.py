"""Colours that people with any colour vision can tell apart; classes differ in their marks as well."""

from __future__ import annotations

from collections.abc import Sequence

# The qualitative palette of Okabe and Ito; the class comes first and is the warm one.
CLASS_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
CLASS_MARKS = ("circle", "square", "triangle", "diamond", "cross", "plus", "ring")
MATPLOTLIB_MARKS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "cross": "x",
    "plus": "+",
    "ring": ".",
}
# Blue for less, white for nothing, orange for more: the two ends differ in hue for every kind of colour blindness.
DIVERGING = ("#08306B", "#2C7FB8", "#A6CEE3", "#FBFBF9", "#FDBE85", "#E6550D", "#7F2704")
# From white, so that experts which are never selected leave the page empty.
SEQUENTIAL = ("#FBFBF9", "#C7D7EA", "#7FA8D1", "#3F6FB0", "#1B3A78", "#0B1B45")


def class_styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(colour, mark) of each label, in order; more labels than colours share the last."""
    last = len(CLASS_COLORS) - 1
    return {
        label: (CLASS_COLORS[min(number, last)], CLASS_MARKS[min(number, last)]) for number, label in enumerate(labels)
    }
