"""All experts of a map, for the page's table and its maps of single labels.

Letters of shapes: L MoE layers, E experts, C labels.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ftri.analysis import resonance
from ftri.report.examples import label_means

if TYPE_CHECKING:
    from ftri.analysis.findings import Findings

# Maps of R1's 14,848 experts weigh 79 kB each; more labels than this have none of their own.
MOST_LABELS = 8
# Rows that the page holds as they are, for readers without JavaScript.
NUM_PLAIN_ROWS = 100


@dataclass(frozen=True)
class Cells:
    """Maps by their name in the page, each [L, E]; `labels`, by name, those of single labels, and of these `shown` those
    that differ from the class's or the others' map, since their side has several labels."""

    maps: dict[str, npt.NDArray[np.float32]]
    labels: dict[str, str]
    shown: dict[str, str]


def cells_of(findings: Findings, labels: Sequence[str]) -> Cells:
    """Scores, chances and mean tokens per prompt of every expert; of the labels with most responses, in their order."""
    counts = findings.class_counts
    kept = set(heapq.nlargest(MOST_LABELS, labels, key=lambda label: counts[label]))
    chosen = [label for label in labels if label in kept]
    names = {f"label{number}": label for number, label in enumerate(chosen)}
    sides = [
        [label for label in labels if label in side] for side in (findings.contrast.target, findings.contrast.others)
    ]
    shared = [label for side in sides if len(side) > 1 for label in side]
    named = {
        "score": findings.scores,
        "chance": findings.p_max_t,
        "class": findings.means[0],
        "others": findings.means[1],
    }
    named |= dict(zip(names, label_means(findings.maps, chosen).reshape(-1, *findings.maps.shape), strict=True))
    return Cells(
        {name: values.astype(np.float32) for name, values in named.items()},
        names,
        {name: label for name, label in names.items() if label in shared},
    )


def plain_rows(findings: Findings, cells: Cells, count: int = NUM_PLAIN_ROWS) -> list[dict[str, Any]]:
    """The first experts by rank: their place, and the value of every map by its name."""
    layers, num_experts = findings.maps.moe_layers, findings.maps.num_experts
    rows = []
    for rank, flat in enumerate(resonance.rank(findings.scores)[:count].tolist(), start=1):
        row, expert = divmod(flat, num_experts)
        values = {name: float(values[row, expert]) for name, values in cells.maps.items()}
        rows.append({"rank": rank, "layer": layers[row], "expert": expert, **values})
    return rows
