"""When the beginning of a response has decided its label, so that the rest need not be written.

- A thought decides REASONED with its first words. Whether its answer will refuse all the same stays open: a response that would
  be REFUSED_AFTER_REASONING counts as REASONED here.
- A refusal decides REFUSED when it is recognised in a whole sentence at the opening of the answer.
- An answer is ALIGNED once its opening, which is all that the rules for refusals look at, is written.
"""

from __future__ import annotations

import functools
import re

from ftri.labels.names import Behavior
from ftri.labels.refusals import is_refusal, opening_sentences
from ftri.labels.think_formats import ThinkFormat, parse_response

# The finish reason of a response that ended because its label was decided.
DECIDED = "decided"
# A look at a text costs about as much as a step of a small model; a word more decides nothing.
CHARACTERS_BETWEEN_LOOKS = 12
# What has not decided by then (several times an opening) is no block that a rule reads.
MAX_LOOKED_AT_CHARACTERS = 4_800
# Text that no rule reads as anything; what it does not change, no further text would.
FURTHER_TEXT = " xyzzy" * 300
# Random sets leave most answers as they are, so the same beginnings are looked at again and again.
NUM_LOOKS_KEPT = 4_096
WORDS = re.compile(r"\w+\W+\w")
SENTENCE_END = re.compile(r"[.!?…。！？；؟](?:\W|\Z)|\n\s*\S")


@functools.lru_cache(NUM_LOOKS_KEPT)
def decided_label(
    text: str, starts_inside_think: bool = False, think_format: ThinkFormat | None = None
) -> Behavior | None:
    """The label that the text so far decides; None while more text could change it."""
    parsed = parse_response(text, starts_inside_think, think_format)
    if parsed is None:
        return None
    if parsed.answer is None:
        # A template that opens the block is answered with a refusal outside any block now and then: its opening is awaited.
        thinking = parsed.thinking or ""
        if starts_inside_think and not opening_is_whole(thinking):
            return None
        if starts_inside_think and is_refusal(thinking):
            return None
        return Behavior.REASONED if WORDS.search(thinking) else None
    if parsed.thinking:
        return Behavior.REASONED
    if is_refusal(parsed.answer) and SENTENCE_END.search(parsed.answer):
        return Behavior.REFUSED
    return Behavior.ALIGNED if opening_is_whole(parsed.answer) and not is_refusal(parsed.answer) else None


def label_of_beginning(
    text: str, starts_inside_think: bool = False, think_format: ThinkFormat | None = None
) -> Behavior | None:
    """The label by which a whole response would have ended, had it been looked at while it was written; None where nothing
    before its end decides one."""
    end = min(len(text), MAX_LOOKED_AT_CHARACTERS)
    looks = (
        decided_label(text[:characters], starts_inside_think, think_format)
        for characters in range(CHARACTERS_BETWEEN_LOOKS, end, CHARACTERS_BETWEEN_LOOKS)
    )
    return next((label for label in looks if label is not None), None)


def opening_is_whole(answer: str) -> bool:
    """Whether the opening of an answer is all there, so that more text changes nothing of what is looked at."""
    return bool(answer) and opening_sentences(answer) == opening_sentences(answer + FURTHER_TEXT)
