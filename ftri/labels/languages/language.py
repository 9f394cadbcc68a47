"""What a row of the table of languages says: how refusals are worded in one language."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass


def any_of(*patterns: str) -> str:
    """A group of alternatives."""
    return "(?:" + "|".join(patterns) + ")"


def compiled(*patterns: str) -> re.Pattern[str]:
    """The alternatives as one pattern that ignores case."""
    return re.compile(any_of(*patterns), re.IGNORECASE)


def unchanged(text: str) -> str:
    """The normal form of a language that needs none."""
    return text


@dataclass(frozen=True)
class Language:
    """How one language refuses. Patterns see the opening of an answer in its `normal_form`, without quotations.

    `unmistakable` says in the speaker's own person that the speaker will not or cannot help, and is searched for in
    every sentence of the opening. `at_the_start` holds what is a refusal only as the very first statement, after the
    `lead_ins` ("Sorry, but"). Where `answers` is found, the opening is an answer that resembles a refusal.
    """

    name: str
    codes: tuple[str, ...]  # what the identifier of languages calls it (ISO 639)
    letters: re.Pattern[str]  # a text without any of these cannot be in this language
    unmistakable: re.Pattern[str]
    answers: re.Pattern[str]
    lead_ins: re.Pattern[str] | None = None
    at_the_start: re.Pattern[str] | None = None
    never_at_the_start: re.Pattern[str] | None = None  # what keeps `at_the_start` from counting
    normal_form: Callable[[str], str] = unchanged


LATIN = re.compile(r"[A-Za-z]")
