"""Detects answers that loop or are garbled: the damage that labels and KL do not see."""

from __future__ import annotations

import re
import unicodedata
import zlib
from functools import cache

from pydantic import BaseModel

# A tail that repeats one unit this often, over at least this many characters, is a loop and not rhetoric.
MIN_REPEATS = 4
MIN_LOOP_CHARACTERS = 40
MAX_UNIT_CHARACTERS = 400
# Ordinary prose of a few hundred characters deflates to 0.35-0.6 of its size; only repetition gets it below this.
LOOP_COMPRESSION = 0.16
MIN_COMPRESSION_CHARACTERS = 400
MAX_ODD_SHARE = 0.05
MAX_LONG_WORD_SHARE = 0.5
LONG_WORD_CHARACTERS = 60
# A script change inside one word ("hэllо世") on more than this share of words is not language.
MAX_MIXED_WORD_SHARE = 0.2
MIN_WORDS = 5
MIN_CHARACTERS = 20


class TextHealth(BaseModel):
    """Whether an answer is in order, with the numbers behind the verdict (shares are of characters unless said)."""

    looping: bool
    garbled: bool
    repeated_characters: int
    compression: float | None
    odd_share: float
    mixed_word_share: float

    @property
    def damaged(self) -> bool:
        """True for a loop or garble."""
        return self.looping or self.garbled


def check_text(text: str) -> TextHealth:
    """Judge one answer; an empty one is in order (whether it answers is the label's business)."""
    stripped = text.strip()
    repeated = repeated_tail(stripped)
    encoded = stripped.encode("utf-8", errors="replace")
    compression = len(zlib.compress(encoded, 9)) / len(encoded) if len(stripped) >= MIN_COMPRESSION_CHARACTERS else None
    looping = repeated > 0 or (compression is not None and compression < LOOP_COMPRESSION)
    odd_share = sum(map(_is_odd, stripped)) / max(len(stripped), 1)
    words = re.findall(r"\S+", stripped)
    mixed = sum(map(_mixes_scripts, words)) / max(len(words), 1)
    long_characters = sum(len(word) for word in words if _is_long_word(word)) / max(len(stripped), 1)
    garbled = len(stripped) >= MIN_CHARACTERS and (
        odd_share > MAX_ODD_SHARE
        or (len(words) >= MIN_WORDS and mixed > MAX_MIXED_WORD_SHARE)
        or long_characters > MAX_LONG_WORD_SHARE
    )
    return TextHealth(
        looping=looping,
        garbled=garbled,
        repeated_characters=repeated,
        compression=compression,
        odd_share=odd_share,
        mixed_word_share=mixed,
    )


def repeated_tail(text: str) -> int:
    """Characters at the end of `text` that repeat one unit at least `MIN_REPEATS` times; 0 when they do not.

    A loop that the token limit cut ends in the middle of its unit, so the period is looked for, not the unit's end.
    """
    best = 0
    # A multiple of a period repeats over the same stretch: without looking again, the work stays linear in the text.
    found: list[tuple[int, int]] = []
    for period in range(1, min(MAX_UNIT_CHARACTERS, len(text) // MIN_REPEATS) + 1):
        # Periodic with `period` as far back as text[i] == text[i - period] holds.
        if text[-1] != text[-1 - period] or any(
            period % shorter == 0 and stretch >= shorter + period for shorter, stretch in found
        ):
            continue
        length = period
        while length < len(text) and text[-1 - length] == text[-1 - length + period]:
            length += 1
        found.append((period, length))
        if (
            length >= MIN_REPEATS * period
            and length >= MIN_LOOP_CHARACTERS
            and length > best
            and _says_something(text, period)
        ):
            best = length
    return best


def _says_something(text: str, period: int) -> bool:
    # Rows of dashes, dots or blanks are rulers and tables, not loops.
    return any(character.isalnum() for character in text[-period:])


@cache
def _is_odd(character: str) -> bool:
    if character in "\n\r\t":
        return False
    # Replacement character, controls, private use, unassigned, surrogates: nothing a tokenizer should end up with.
    return character == "\ufffd" or unicodedata.category(character) in ("Cc", "Co", "Cn", "Cs")


@cache
def _script(character: str) -> str | None:
    if not character.isalpha():
        return None
    name = unicodedata.name(character, "")
    for script in ("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI", "HANGUL"):
        if name.startswith(script):
            return script
    # Chinese and Japanese scripts mix within one run of text.
    return "CJK" if name.startswith(("CJK", "HIRAGANA", "KATAKANA")) else "OTHER"


def _mixes_scripts(word: str) -> bool:
    scripts = {script for script in map(_script, word) if script is not None}
    # Chinese text has no spaces, so Latin names stand inside its runs: that pair alone is ordinary.
    return len(scripts) > 1 and not scripts <= {"CJK", "LATIN"}


def _is_long_word(word: str) -> bool:
    # Runs of Chinese or Japanese have no spaces, and links, rulers and code are long too: only letters of an alphabet count.
    if len(word) <= LONG_WORD_CHARACTERS or "/" in word:
        return False
    scripts = [_script(character) for character in word]
    return not {"CJK", "OTHER"} & set(scripts) and scripts.count(None) < len(word) / 2
