"""The variants on one screen."""

from __future__ import annotations

from eval.compare.variants import Comparisons
from eval.display.words import number, percent, short_rate
from eval.report.table import align


def one_screen(found: Comparisons) -> list[str]:
    """The table on stdout: a line a variant, those of the front with a star."""
    head = ("", "variant", "", found.target["change"], "95 % interval", "opposite", "KL", "front")
    rows = [head]
    for one in found.variants:
        rate = one.moved.rate
        rows.append(
            (
                str(one.number),
                one.name,
                one.edit,
                short_rate(rate),
                f"{percent(rate.low)} to {percent(rate.high)}",
                short_rate(one.returned.rate),
                number(one.kl.estimate) if one.kl is not None else "-",
                "*" if one.on_front else "",
            )
        )
    return [*align(rows), *(f"note: {note}" for note in found.notes)]
