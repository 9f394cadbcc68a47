"""The one home of the labels' names, and of what each says."""

from __future__ import annotations

from enum import StrEnum


class Behavior(StrEnum):
    """The three classes of the paper and the three kinds of responses that belong to none of them."""

    REFUSED = "REFUSED"
    ALIGNED = "ALIGNED"
    REASONED = "REASONED"
    REFUSED_AFTER_REASONING = "REFUSED_AFTER_REASONING"
    TRUNCATED = "TRUNCATED"
    UNPARSED = "UNPARSED"


class ThinkingLanguage(StrEnum):
    """The languages that thinking is told apart by."""

    ENGLISH = "english"
    CHINESE = "chinese"
    MIXED = "mixed"
    NONE = "none"


# Paper, section on responses.
PAPER_CLASSES: tuple[str, ...] = (Behavior.REFUSED.value, Behavior.ALIGNED.value, Behavior.REASONED.value)
REFUSALS: tuple[str, ...] = (Behavior.REFUSED.value, Behavior.REFUSED_AFTER_REASONING.value)
ANSWERS: tuple[str, ...] = (Behavior.ALIGNED.value, Behavior.REASONED.value)
UNDECIDED: tuple[str, ...] = (Behavior.TRUNCATED.value, Behavior.UNPARSED.value)
THINKING_CLASSES: tuple[str, ...] = (
    ThinkingLanguage.ENGLISH.value,
    ThinkingLanguage.CHINESE.value,
    ThinkingLanguage.MIXED.value,
)
