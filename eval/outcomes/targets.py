"""Which change is counted: the labels a variant is meant to move answers out of, or into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ftri.labels.names import ANSWERS, REFUSALS, THINKING_CLASSES, UNDECIDED, Behavior, ThinkingLanguage
from rewriter.errors import InputError

Axis = Literal["behavior", "language"]
Direction = Literal["leave", "enter"]

# Paper, section on responses, and the labels that its three classes leave out.
BEHAVIORS: tuple[str, ...] = tuple(label.value for label in Behavior)
LANGUAGES: tuple[str, ...] = tuple(language.value for language in ThinkingLanguage)
LABELS: dict[Axis, tuple[str, ...]] = {"behavior": BEHAVIORS, "language": LANGUAGES}
# What expert sets call their behaviour -> the label it is measured by; longer words first, since "reasoning in
# English" names both.
WORDS: tuple[tuple[str, Axis, str], ...] = (
    ("english", "language", ThinkingLanguage.ENGLISH.value),
    ("chinese", "language", ThinkingLanguage.CHINESE.value),
    ("refus", "behavior", Behavior.REFUSED.value),
    ("align", "behavior", Behavior.ALIGNED.value),
    ("reason", "behavior", Behavior.REASONED.value),
)


@dataclass(frozen=True)
class Target:
    """The label under test and whether the edit is meant to move answers out of it (suppress) or into it (stimulate)."""

    axis: Axis
    label: str
    direction: Direction

    @property
    def labels(self) -> tuple[str, ...]:
        """The rows and columns of the transition matrix."""
        return LABELS[self.axis]

    def destinations(self) -> tuple[str, ...]:
        """Where an answer that left the label must arrive to count: a loop or a cut answer is damage, no success."""
        if self.axis == "behavior" and self.label in REFUSALS:
            return ANSWERS
        if self.axis == "behavior":
            return tuple(label for label in BEHAVIORS if label not in (self.label, *UNDECIDED))
        return tuple(label for label in THINKING_CLASSES if label != self.label)

    def describe(self) -> str:
        """The counted change in words, as the tables print it."""
        if self.direction == "enter":
            return f"other -> {self.label}"
        if self.destinations() == ANSWERS:
            return f"{self.label} -> answered"
        return f"{self.label} -> other"


def find_target(behavior: str, direction: Direction, target: str | None = None) -> Target:
    """The target that an expert set's `behavior` names, or `target` itself when the user gives one of the labels.

    Raises: InputError when neither says which label is meant.
    """
    for axis, labels in LABELS.items():
        if (target or behavior) in labels:
            return Target(axis, target or behavior, direction)
    if target is not None:
        raise InputError(f"--target is {target!r}, expected one of {', '.join((*BEHAVIORS, *LANGUAGES))}")
    # "reasoned-vs-aligned" is about what stands first.
    named = behavior.lower().partition("-vs-")[0]
    for word, axis, label in WORDS:
        if word in named:
            return Target(axis, label, direction)
    raise InputError(
        f"the expert set's behavior is {behavior!r}, which names no label; give --target, one of"
        f" {', '.join((*BEHAVIORS, *LANGUAGES))}"
    )


def moves(target: Target, before: Sequence[str], after: Sequence[str]) -> tuple[list[bool], list[bool]]:
    """(at risk [P], made the counted change [P]): those that had the label and left it, or lacked and took it."""
    destinations = target.destinations()
    if target.direction == "leave":
        at_risk = [label == target.label for label in before]
        made = [risk and label in destinations for risk, label in zip(at_risk, after, strict=True)]
    else:
        at_risk = [label != target.label for label in before]
        made = [risk and label == target.label for risk, label in zip(at_risk, after, strict=True)]
    return at_risk, made


def move_rate(target: Target, before: Sequence[str], after: Sequence[str]) -> float:
    """The share of those at risk that made the counted change: the statistic of the null distributions; 0 when
    none is at risk."""
    at_risk, made = moves(target, before, after)
    return sum(made) / sum(at_risk) if any(at_risk) else 0.0
