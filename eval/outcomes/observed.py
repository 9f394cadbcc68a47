"""Labels for the answers of an arm, and their summary. Texts pass through one at a time and are not kept in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from pydantic import BaseModel

from eval.answers.arms import Answer, Arm, Request
from eval.answers.journal import Collector
from eval.outcomes.garble import check_text
from eval.outcomes.statistics import Rate, wilson
from eval.outcomes.targets import BEHAVIORS, LANGUAGES, Axis
from ftri.labels.behavior import answer_is_canned, label_behavior, language_of_thinking
from ftri.labels.coverage import coverage_warning, uncovered_language
from ftri.labels.deciding import DECIDED, decided_label, label_of_beginning
from ftri.labels.think_formats import ThinkFormat, parse_response


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
    bias_shifts: list[tuple[int, int, float]] = []
    factors: list[tuple[int, int, float]] = []

    def labels_of(self, label: str, axis: str) -> Rate:
        """The share of one label on an axis."""
        return (self.labels if axis == "behavior" else self.languages)[label]


@dataclass
class Outcomes:
    """What became of each request of an arm; all lists are [P] in the order of the requests."""

    arm: Arm
    keys: list[str] = field(default_factory=list)
    behaviors: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    looping: list[bool] = field(default_factory=list)
    garbled: list[bool] = field(default_factory=list)
    canned: list[bool] = field(default_factory=list)
    uncovered: Counter[str] = field(default_factory=Counter)  # answers in languages without rules for refusals
    num_characters: int = 0

    def labels(self, axis: Axis) -> list[str]:
        """The labels on one axis."""
        return self.behaviors if axis == "behavior" else self.languages

    def damaged(self) -> list[bool]:
        """Whether an answer loops or is garbled."""
        return [loop or garble for loop, garble in zip(self.looping, self.garbled, strict=True)]

    def summary(self) -> ArmSummary:
        """The arm as the results hold it."""
        arm = self.arm
        return ArmSummary(
            name=arm.name,
            kind=arm.kind,
            semantics=arm.semantics,
            suppress=list(arm.suppress),
            stimulate=list(arm.stimulate),
            bias_shifts=list(arm.bias_shifts),
            factors=list(arm.factors),
            checkpoint=arm.checkpoint,
            num_answers=len(self.keys),
            labels=shares(self.behaviors, BEHAVIORS),
            languages=shares(self.languages, LANGUAGES),
            looping=wilson(sum(self.looping), len(self.looping)),
            garbled=wilson(sum(self.garbled), len(self.garbled)),
            canned=wilson(sum(self.canned), len(self.canned)),
            mean_answer_characters=self.num_characters / max(len(self.keys), 1),
        )


def language_warnings(observed: Iterable[Outcomes]) -> list[str]:
    """What to say about the answers that no rule for refusals could judge; empty where there are none."""
    languages: Counter[str] = Counter()
    num_answers = 0
    for outcomes in observed:
        languages += outcomes.uncovered
        num_answers += len(outcomes.keys)
    warning = coverage_warning(languages, num_answers)
    return [f"{warning}."] if warning else []


def shares(labels: Sequence[str], names: Sequence[str]) -> dict[str, Rate]:
    """The rate of every label, those that do not occur included."""
    counts = Counter(labels)
    return {name: wilson(counts[name], len(labels)) for name in names}


def observe(collector: Collector, arm: Arm, requests: Sequence[Request], *, label_cut: bool = False) -> Outcomes:
    """Get the answers of an arm and label them. `label_cut`: see `ftri.labels.behavior.label_behavior`."""
    outcomes = Outcomes(arm, keys=collector.complete(arm, requests))
    told = collector.think_format
    for key in outcomes.keys:
        answer = collector.journal.answer(key)
        inside = answer.starts_inside_think
        health = check_text(answer.text)
        parsed = parse_response(answer.text, inside, told)
        outcomes.behaviors.append(label_answer(answer, told, label_cut=label_cut))
        outcomes.languages.append(language_of_thinking(parsed.thinking if parsed else None))
        unjudged = uncovered_language(parsed.answer if parsed else None)
        if unjudged is not None:
            outcomes.uncovered[unjudged] += 1
        outcomes.looping.append(health.looping)
        outcomes.garbled.append(health.garbled)
        outcomes.canned.append(answer_is_canned(parsed.answer if parsed else None))
        outcomes.num_characters += len(answer.text)
    return outcomes


def label_answer(answer: Answer, think_format: ThinkFormat | None, *, label_cut: bool = False) -> str:
    """The behaviour of one answer, as `observe` labels those of an arm."""
    inside = answer.starts_inside_think
    # An answer that was ended once its label was decided has that label.
    decided = decided_label(answer.text, inside, think_format) if answer.finish_reason == DECIDED else None
    if decided is not None:
        return decided.value
    return label_behavior(answer.text, answer.finish_reason, inside, label_cut, think_format=think_format).value


def by_beginnings(collector: Collector, outcomes: Outcomes) -> Outcomes:
    """The same answers with the labels that their beginnings decide, to be compared with answers that ended there.

    A thought begun is REASONED in those, whatever its answer would have been; whole answers are labelled by all of it.
    """
    behaviors = []
    for key, label in zip(outcomes.keys, outcomes.behaviors, strict=True):
        answer = collector.journal.answer(key)
        begun = label_of_beginning(answer.text, answer.starts_inside_think, collector.think_format)
        behaviors.append(label if begun is None else begun.value)
    return replace(outcomes, behaviors=behaviors)


def select(outcomes: Outcomes, positions: Sequence[int]) -> Outcomes:
    """The outcomes at some positions."""
    chosen = Outcomes(outcomes.arm)
    for name in ("keys", "behaviors", "languages", "looping", "garbled", "canned"):
        values = getattr(outcomes, name)
        setattr(chosen, name, [values[position] for position in positions])
    return chosen
