"""Edits of a running engine's routers, as its callers name them; ftri.worker.planning says what they mean."""

from ftri.worker.planning import (
    Pair,
    PlannedEdit,
    RouterEdit,
    as_expert_set,
    by_layer,
    check_factors,
    check_pairs,
    check_shifts,
    plan_edit,
    planned_biases,
    shift_width,
)
from ftri.worker.request import ServedChoice

__all__ = [
    "Pair",
    "PlannedEdit",
    "RouterEdit",
    "ServedChoice",
    "as_expert_set",
    "by_layer",
    "check_factors",
    "check_pairs",
    "check_shifts",
    "plan_edit",
    "planned_biases",
    "shift_width",
]
