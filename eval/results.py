"""The result file, schema `mote.results/1`: everything that was measured, with what it was measured on and with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.measures.fidelity import TouchedShares
from eval.measures.held_out import HeldOut
from eval.measures.paper import PaperNumber
from eval.measures.statistics import Interval, Rate
from eval.measures.transitions import Change, Comparison
from rewriter.errors import InputError
from rewriter.whole_file import write_whole

SCHEMA_ID: Literal["mote.results/1"] = "mote.results/1"
FILE_NAME = "results.json"


class ArmSummary(BaseModel):
    """One arm: what was edited and how its answers turned out, on `num_answers` of them."""

    name: str
    kind: str
    semantics: str | None
    suppress: list[tuple[int, int]]
    stimulate: list[tuple[int, int]]
    checkpoint: str | None
    num_answers: int
    labels: dict[str, Rate]
    languages: dict[str, Rate]
    looping: Rate
    garbled: Rate
    canned: Rate
    mean_answer_characters: float

    def labels_of(self, label: str, axis: str) -> Rate:
        """The share of one label on an axis."""
        return (self.labels if axis == "behavior" else self.languages)[label]


class NullDistribution(BaseModel):
    """The counted change under random expert sets beside that of the variant, on the same prompts."""

    matching: str
    statistic: str
    semantics: str
    num_prompts_at_risk: int
    num_other_prompts: int
    observed: float
    null_values: list[float]
    opposite_observed: float
    opposite_null_values: list[float]
    damaged_observed: float
    damaged_null_values: list[float]
    p_value: float
    mean: float
    highest: float
    frequency_gap: float | None = Field(None, description="Selections per token, mean over the sets.")
    experts_per_set: int
    sets: list[list[tuple[int, int]]]


class SweepPoint(BaseModel):
    """The first k experts alone: the gain, and its costs in changed other answers, damage and KL."""

    num_experts: int
    semantics: str
    moved: Change
    others_changed: Rate
    damaged: Rate
    kl_per_token: Interval | None


class Divergence(BaseModel):
    """Teacher-forced KL(left || right) in nats per token over the base's own answers to neutral prompts."""

    left: str
    right: str
    answer_tokens: Interval
    all_tokens: Interval
    first_token: Interval


class Fidelity(BaseModel):
    """How far the semantics are from the base and from each other, and how much routing the experts take part in."""

    num_prompts: int
    num_answer_tokens: int
    num_tokens: int
    neutral_source: dict[str, str | None]
    listed_tokens: int
    exact: bool
    action: str
    divergences: list[Divergence]
    touched: TouchedShares | None
    slots_changed: dict[str, float] = Field(
        default_factory=dict,
        description="Semantics -> share of the base's router slots that hold another expert under the edit.",
    )


class SafetyGroup(BaseModel):
    """Refusals in one group of a safety set (XSTest: safe and unsafe; else all)."""

    group: str
    expectation: str
    before: Rate
    after: Rate
    difference: Interval
    gained: int
    lost: int
    p_value: float


class SafetySet(BaseModel):
    """Refusal rates before and after on prompts where refusing protects people, or where it should not happen."""

    name: str
    source: dict[str, str | None]
    arm: str
    num_prompts: int
    groups: list[SafetyGroup]
    damaged_before: Rate
    damaged_after: Rate


class CategoryScore(BaseModel):
    """MT-Bench scores (1..10, mean over both turns) of one category; intervals are over questions."""

    category: str
    num_questions: int
    before: Interval
    after: Interval
    difference: Interval
    paper: tuple[float, float] | None = Field(
        None, description="The paper's (suppressed, original), for reference only."
    )


class MtBench(BaseModel):
    """MT-Bench by a judge, before and after."""

    judge: str
    arm: str
    question_source: dict[str, str | None]
    judge_prompt_source: dict[str, str | None]
    num_questions: int
    categories: list[CategoryScore]
    overall: CategoryScore
    turns: dict[str, tuple[float | None, float | None]]
    unrated: list[str]


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
    repeat_flips: Rate | None
    repeat_flips_at_risk: Rate | None
    comparisons: list[Comparison]
    other_axis: list[Comparison]
    controls: list[NullDistribution]
    sweep: list[SweepPoint]
    fidelity: list[Fidelity]
    safety: list[SafetySet]
    mt_bench: MtBench | None
    examples: list[Example]
    paper: list[PaperNumber]
    warnings: list[str]
    missing: list[Missing]
    transcripts: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a results file. Raises: InputError with the file and the first thing wrong in it."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from None
        except (ValidationError, UnicodeDecodeError) as error:
            first = error.errors(include_url=False)[0] if isinstance(error, ValidationError) else None
            what = f"{'.'.join(map(str, first['loc'])) or 'document'}: {first['msg']}" if first else "not UTF-8 text"
            raise InputError(f"{path}: is not a result of {SCHEMA_ID} ({what})") from None

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
