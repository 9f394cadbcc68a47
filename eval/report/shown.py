"""Which measures a result holds, in the order in which card and report show them."""

from __future__ import annotations

from typing import Any

from eval.measures.measure import Measure
from eval.results import Results
from eval.run import MEASURES


def shown_measures(results: Results) -> list[tuple[Measure, Any]]:
    """(measure, its field of the results), by place; a measure that did not run is left out, but for those that say so."""
    return [
        (measure, found)
        for measure in sorted(MEASURES, key=lambda one: one.place)
        if (found := getattr(results, measure.field)) or measure.shown_empty
    ]
