"""The result file, schema `mote.results/1`: everything that was measured, with what it was measured on and with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.measures.controls import NullDistribution
from eval.measures.divergence import ArmDivergence
from eval.measures.fidelity import Fidelity
from eval.measures.mt_bench import MtBench
from eval.measures.off_topic import OffTopic
from eval.measures.paper import PaperNumber
from eval.measures.safety import SafetySet
from eval.measures.sweep import SweepPoint
from eval.measures.transitions import Comparison
from eval.outcomes.held_out import HeldOut
from eval.outcomes.observed import ArmSummary
from eval.outcomes.statistics import Rate
from rewriter.errors import InputError
from rewriter.json_text import read_json
from rewriter.small_file import MAX_TABLE_BYTES, read_small
from rewriter.whole_file import write_whole

SCHEMA_ID: Literal["mote.results/1"] = "mote.results/1"
FILE_NAME = "results.json"


class Missing(BaseModel):
    """A part that could not be measured, and why."""

    part: str
    reason: str


class ExampleAnswer(BaseModel):
    """One arm's answer in an example."""

    arm: str
    label: str
    text: str
    finish_reason: str


class Example(BaseModel):
    """One prompt with the answers of several arms side by side."""

    prompt_id: str
    prompt: str
    answers: list[ExampleAnswer]
    why: str


class Results(BaseModel):
    """All of it."""

    model_config = ConfigDict(populate_by_name=True)

    schema_id: Literal["mote.results/1"] = Field(SCHEMA_ID, alias="schema")
    tool_version: str
    created: str
    mode: Literal["live", "served"]
    subject: dict[str, Any]
    behavior: str
    target: dict[str, str]
    primary: str
    options: dict[str, Any]
    prompts: dict[str, Any]
    held_out: HeldOut
    clusters: str
    arms: list[ArmSummary]
    repeat_flips: Rate | None = None
    repeat_flips_at_risk: Rate | None = None
    comparisons: list[Comparison] = []
    other_axis: list[Comparison] = []
    controls: list[NullDistribution] = []
    sweep: list[SweepPoint] = []
    fidelity: list[Fidelity] = []
    divergences: list[ArmDivergence] = []
    off_topic: list[OffTopic] = []
    safety: list[SafetySet] = []
    mt_bench: MtBench | None = None
    examples: list[Example]
    paper: list[PaperNumber]
    warnings: list[str]
    missing: list[Missing]
    transcripts: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a results file. Raises: InputError with the file and the first thing wrong in it."""
        try:
            text = read_small(path, MAX_TABLE_BYTES)
            # No result is NaN or infinite, of which no picture could be drawn; pydantic's reader lets both through.
            read_json(text)
            return cls.model_validate_json(text)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except ValueError as error:
            first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
            what = f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}" if first else f"no JSON: {error}"
            raise InputError(
                f"{path}: is not a result of {SCHEMA_ID} ({what}); mote-eval -o FOLDER writes results.json"
            ) from None

    def save(self, path: str | Path) -> None:
        """Write as JSON, replacing the file in one step."""
        write_whole(path, self.model_dump_json(by_alias=True, indent=1) + "\n")

    def arm(self, name: str) -> ArmSummary:
        """The arm of that name. Raises KeyError."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def primary_comparison(self) -> Comparison | None:
        """The comparison of the base with the variant that was asked about; None when it is missing."""
        return next((one for one in self.comparisons if one.after == self.primary), None)

    def edit_words(self, name: str | None = None) -> str:
        """What the variant, or the arm of that name, is: `10 experts suppressed, reroute`."""
        arm = self.arm(self.primary if name is None else name)
        if arm.checkpoint is not None and not (arm.suppress or arm.stimulate):
            return "the tuned server" if self.mode == "served" else arm.checkpoint
        parts = [
            f"{len(pairs)} expert{'s' if len(pairs) != 1 else ''} {verb}"
            for verb, pairs in (("suppressed", arm.suppress), ("stimulated", arm.stimulate))
            if pairs
        ]
        shifted = f" ({len(arm.bias_shifts)} of them by a finite shift)" if arm.bias_shifts else ""
        num_partial = sum((layer, expert) in arm.suppress for layer, expert, _ in arm.factors)
        partial = f" ({num_partial} of them in part)" if num_partial else ""
        num_gains = len(arm.factors) - num_partial
        gains = f" ({num_gains} with a gain)" if num_gains else ""
        return f"{' and '.join(parts)}, {arm.semantics}{shifted}{partial}{gains}"
