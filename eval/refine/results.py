"""What a causal search found, as `refine.json` holds it, and the expert set made of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.refine.growing import Growth, Step
from eval.refine.screening import Screened
from eval.refine.tuning import Dose, Trial, Tuning
from rewriter.errors import InputError, first_problem
from rewriter.expert_set import ExpertEntry
from rewriter.small_file import MAX_TABLE_BYTES, read_small
from rewriter.whole_file import write_whole

SCHEMA_ID: Literal["mote.refine/1"] = "mote.refine/1"
FILE_NAME = "refine.json"


class DecidingPlace(BaseModel):
    """A place where responses part: the tokens before it, and the next ones with the share of target responses behind each."""

    before: str
    next: list[tuple[str, float]]


class ScreenedExpert(BaseModel):
    """One candidate, suppressed alone. `shift`: change of the behaviour's log-odds with its 95 % interval over prompts."""

    layer: int
    expert: int
    moved: float
    shift: float
    shift_low: float
    shift_high: float
    kl: float
    rate: float = Field(description="Selections per token of prompts and answers of the base.")
    resonance: float = Field(description="The paper's fTRI map, selections per prompt.")

    @classmethod
    def of(cls, row: Screened, rate: float, resonance: float) -> ScreenedExpert:
        """From a screened candidate."""
        layer, expert = row.pair
        return cls(
            layer=layer,
            expert=expert,
            moved=row.moved,
            shift=row.shift.mean,
            shift_low=row.shift.low,
            shift_high=row.shift.high,
            kl=row.kl,
            rate=rate,
            resonance=resonance,
        )


class PathStep(BaseModel):
    """One set on the search's path."""

    change: str
    layer: int
    expert: int
    experts: list[tuple[int, int]]
    moved: float
    kl: float
    on_front: bool

    @classmethod
    def of(cls, step: Step, front: list[Step]) -> PathStep:
        """From a step of the growth."""
        layer, expert = step.expert
        return cls(
            change=step.change,
            layer=layer,
            expert=expert,
            experts=list(step.experts),
            moved=step.moved,
            kl=step.kl,
            on_front=step in front,
        )


class TunedTrial(BaseModel):
    """One set of strengths: its experts, the bias shifts of those that stay selectable, and what it was measured to do."""

    experts: list[tuple[int, int]]
    bias_shifts: list[tuple[int, int, float]]
    moved: float
    kl: float

    @classmethod
    def of(cls, trial: Trial) -> TunedTrial:
        """From a trial of the tuning."""
        return cls(
            experts=list(trial.dose.experts),
            bias_shifts=list(trial.dose.bias_shifts),
            moved=trial.moved,
            kl=trial.kl,
        )


class TunedStrengths(BaseModel):
    """What searching strengths came to, beside the best set that was grown of whole reroutes (None: there was none)."""

    budget_kl: float | None = Field(description="Nats a token; None: no bound.")
    best: TunedTrial | None
    grown_moved: float | None
    grown_kl: float | None
    trials: list[TunedTrial]

    @classmethod
    def of(cls, tuning: Tuning, growth: Growth) -> TunedStrengths:
        """From a search's tuning."""
        return cls(
            budget_kl=tuning.budget_kl if math.isfinite(tuning.budget_kl) else None,
            best=TunedTrial.of(tuning.best) if tuning.best is not None else None,
            grown_moved=growth.best.moved if growth.best is not None else None,
            grown_kl=growth.best.kl if growth.best is not None else None,
            trials=[TunedTrial.of(one) for one in tuning.trials],
        )


class NullSearch(BaseModel):
    """The same search with shuffled labels: what it thought it moved, and what its set moves on the held-out prompts."""

    seed: int
    experts: list[tuple[int, int]]
    moved_in_search: float
    held_out_moved: float | None


class RefineResults(BaseModel):
    """All of it but the check, whose results are those of mote-eval."""

    model_config = ConfigDict(populate_by_name=True)

    schema_id: Literal["mote.refine/1"] = Field(SCHEMA_ID, alias="schema")
    tool_version: str
    subject: dict[str, Any]
    options: dict[str, Any]
    num_finding: int
    num_finding_target: int
    num_testing: int
    deciding: list[DecidingPlace]
    base_chance: float
    layers: list[int]
    num_experts: int
    resonance: list[list[float]]
    screened: list[ScreenedExpert]
    path: list[PathStep]
    chosen: list[tuple[int, int]]
    moved: float
    kl: float
    ended: str
    num_edits: int
    num_screen_tokens: int
    num_screen_prompts: int | None = Field(
        None, description="Prompts that every candidate was run on; --screen-prompts or fewer."
    )
    seconds: float
    tuned: TunedStrengths | None = None
    nulls: list[NullSearch] = []

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote. Raises: InputError with the file and what is wrong in it."""
        try:
            return cls.model_validate_json(read_small(path, MAX_TABLE_BYTES))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            raise InputError(
                f"{path}: is not a result of {SCHEMA_ID} ({first_problem(error)}); move it away to search anew"
            ) from None

    def save(self, path: Path) -> None:
        """Write the results, replacing the file in one step. Raises: OutputError."""
        write_whole(path, self.model_dump_json(by_alias=True, indent=1) + "\n")


def path_of(growth: Growth) -> list[PathStep]:
    """The search's path, with what lies on the front of moved against KL."""
    front = growth.front()
    return [PathStep.of(step, front) for step in growth.steps]


def entries_of(growth: Growth, dose: Dose, rows: list[ScreenedExpert]) -> list[ExpertEntry]:
    """The chosen set's experts in the order in which they were taken, so that the first K are a set as well.

    Each has its own effect and cost (alone, as a whole reroute) with the interval, and those of the set up to it; of tuned sets
    only the whole was measured.
    """
    alone = {(row.layer, row.expert): row for row in rows}
    reached = {step.experts: step for step in growth.steps}
    shifts = {(layer, expert): shift for layer, expert, shift in dose.bias_shifts}
    entries = []
    for place, (layer, expert) in enumerate(dose.experts, start=1):
        row = alone[layer, expert]
        step = None if dose.bias_shifts else reached.get(dose.experts[:place])
        entries.append(
            ExpertEntry.model_validate(
                {
                    "layer": layer,
                    "expert": expert,
                    "resonance": row.resonance,
                    "bias_shift": shifts.get((layer, expert)),
                    "order": place,
                    "moved_alone": round(row.moved, 4),
                    "log_odds_alone": round(row.shift, 4),
                    "log_odds_interval": [round(row.shift_low, 4), round(row.shift_high, 4)],
                    "kl_alone": round(row.kl, 6),
                    # None where the search reached the set by a step back and never measured its first experts alone.
                    "moved_so_far": None if step is None else round(step.moved, 4),
                    "kl_so_far": None if step is None else round(step.kl, 6),
                }
            )
        )
    return entries
