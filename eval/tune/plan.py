"""What mote-tune is going to do and what each step costs, before any engine is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from eval.refine.costs import RefineCosts, refinement_costs
from eval.session import Say
from eval.tune.options import TuneRequest
from ftri.costs import Costs
from ftri.record import RecordPlan
from rewriter.semantics import CENTROID, REROUTE


@dataclass(frozen=True)
class TunePlan:
    """The recording, and the search with its check; the other steps need no engine and take seconds."""

    request: TuneRequest
    recording: RecordPlan
    record_costs: Costs
    refine_costs: RefineCosts

    def as_json(self) -> dict[str, Any]:
        """The plan for scripts."""
        return {
            "recording": self.recording.summary(),
            "record_costs": self.record_costs.as_json(),
            "refine_costs": self.refine_costs.as_json(),
            "engine_loads": 1,
            "outputs": [str(path) for path in self._outputs()],
        }

    def sentences(self) -> list[str]:
        """The plan for people, a line each."""
        request = self.request
        sets = " and ".join([f"mote-ftri's {request.k} experts", *request.compare])
        return [
            f"1. record {self.recording.num_responses:,} responses -> {request.recording}",
            *(f"   {line}" for line in self.record_costs.sentences()),
            f"2. label those of the finding prompts ({request.split:.0%}) -> {request.labels}",
            f"3. find the {request.k} experts most distinctive of {request.target} -> {request.found}",
            f"4. refine by cause ({request.candidates}, {request.semantics}), check on the other prompts beside {sets}"
            f" -> {request.refined}",
            *(f"   {line}" for line in self.refine_costs.sentences()),
            f"5. write the variant with its card -> {request.variant}",
            "all of it in one engine load; the same command goes on where it was stopped",
        ]

    def _outputs(self) -> list[Any]:
        request = self.request
        return [request.recording, request.labels, request.found, request.refined, request.variant]


def as_written(request: TuneRequest, plan: RecordPlan) -> TuneRequest:
    """The request with the reroute that a checkpoint of this model holds, so that what is measured is what is written."""
    is_centroid = request.semantics == REROUTE and not plan.layout.has_bias
    return replace(request, semantics=CENTROID) if is_centroid else request


def show_plan(
    request: TuneRequest, recording: RecordPlan, say: Say, tokens_per_second: float | None = None
) -> TunePlan:
    """Reckon all steps, at a given rate or those that were measured so far.

    Raises: MoteError for what the run itself would refuse before it loads an engine.
    """
    is_recorded = request.recording.is_dir() and request.found.is_file()
    refinement = refinement_costs(
        request.as_refinement(recorded=is_recorded),
        say,
        tokens_per_second,
        num_recorded=len(recording.records),
        num_compared=int(not is_recorded),
        num_ranked=request.num_ranked,
    )
    # The search runs on the recording's engine.
    refinement = replace(refinement, search=replace(refinement.search, engine_loads=0))
    return TunePlan(as_written(request, recording), recording, recording.costs(tokens_per_second), refinement)
