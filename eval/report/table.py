"""The result on one screen."""

from __future__ import annotations

from collections.abc import Sequence

from eval.results import Results
from eval.run import MEASURES


def one_screen(results: Results) -> list[str]:
    """The table on stdout: transitions, chance, divergence, safety, quality and what is missing."""
    lines = [
        f"{results.behavior}: {results.edit_words()}; {results.prompts['num_prompts']} prompts ({results.held_out.status})",
        "",
    ]
    filled = [(measure, found) for measure in MEASURES if (found := getattr(results, measure.field))]
    rows: list[Sequence[str]] = [("", results.target["change"], "opposite", "label share", "loop/garble", "McNemar")]
    rows += [row for measure, found in filled for row in measure.rows(found, results)]
    lines += align(rows)
    lines += [line for measure, found in filled for line in measure.lines(found, results)]
    lines += [f"warning: {warning}" for warning in results.warnings]
    lines += [f"not measured: {one.part}: {one.reason}" for one in results.missing]
    return lines


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with columns below each other; short rows are filled up."""
    width = max(map(len, rows))
    filled = [[*row, *[""] * (width - len(row))] for row in rows]
    widths = [max(len(row[column]) for row in filled) for column in range(width)]
    return ["  ".join(cell.ljust(size) for cell, size in zip(row, widths, strict=True)).rstrip() for row in filled]
