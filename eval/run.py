"""Runs a whole evaluation: measure after measure, part after part, each kept in the journal, and what fails named in the result
instead of losing the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eval.measures import (
    controls,
    damage,
    divergence,
    fidelity,
    mt_bench,
    off_topic,
    repeat,
    safety,
    sweep,
    transitions,
)
from eval.measures.measure import Measure, Part, Scene, SideBySide
from eval.options import EvalRequest
from eval.outcomes.observed import language_warnings
from eval.results import Missing
from rewriter.errors import MoteError

# In the order in which they are run, which is also the table's; those that cost most come late, and other checkpoints last.
MEASURES: tuple[Measure, ...] = (
    transitions.MEASURE,
    repeat.MEASURE,
    transitions.OTHERS,
    fidelity.MEASURE,
    sweep.MEASURE,
    controls.MEASURE,
    damage.MEASURE,
    safety.MEASURE,
    mt_bench.MEASURE,
    divergence.MEASURE,
    off_topic.MEASURE,
)

Loaded = Sequence[tuple[Measure, Any]]


def load_measures(request: EvalRequest) -> Loaded:
    """Read what the measures need before anything is asked. Raises: MoteError for an input that is missing or wrong."""
    return [(measure, measure.load(request)) for measure in MEASURES]


def measure_all(scene: Scene, loaded: Loaded) -> dict[str, Any]:
    """The fields of the results that the measures fill, and `missing`: the parts that failed.

    Raises: MoteError when not even the base and the variant could be compared.
    """
    found: dict[str, Any] = {"missing": []}
    for measure, inputs in loaded:
        for part in measure.parts(inputs, scene):
            _attempt(part, scene, found)
    scene.transcripts.insert(0, SideBySide("prompts", scene.requests, list(scene.outcomes.values())))
    seen = [outcomes for table in scene.transcripts for outcomes in table.outcomes]
    found["warnings"] = found.get("warnings", []) + language_warnings(seen)
    return found


def _attempt(part: Part, scene: Scene, found: dict[str, Any]) -> None:
    try:
        values = part.work()
    except MoteError as error:
        if part.fatal:
            raise
        scene.say(f"{part.name}: {error}")
        found["missing"].append(Missing(part=part.name, reason=str(error)))
        return
    for field, value in values.items():
        found[field] = found.get(field, []) + value if isinstance(value, list) else value
