"""Splits a response at its thinking, by a row of the table of formats (ftri/labels/think_rows.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ftri.labels.think_rows import AFTER_TURN, BEFORE_TURN, THINK_FORMATS, Markers, ThinkFormat
from rewriter.errors import InputError

# Of a rendered prompt, what is looked at for an opening mark.
PROMPT_TAIL_CHARACTERS = 200

_BY_MODEL_TYPE = {name: row for row in THINK_FORMATS for name in row.model_types}

# What ends one of several blocks, where `closes` ends the last.
_END_OF_BLOCK = re.compile(r"<\|(?:end|call|start)\|>(?:assistant)?|assistantcommentary")
# Marks that the text talks about, rather than uses: between backticks or quotation marks.
_MENTIONED = re.compile(r"`[^`\n]*`|\"</?[^\"\s]{0,30}\"|“</?[^”\s]{0,30}”|'</?[^'\s]{0,30}'")


@dataclass(frozen=True)
class ParsedResponse:
    """A response split at its think block: no block, no `thinking`; a block that never ends, no `answer`."""

    thinking: str | None
    answer: str | None


def think_format(name: str) -> ThinkFormat:
    """The row of a name.

    Raises:
        InputError: no row has that name.
    """
    for row in THINK_FORMATS:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in THINK_FORMATS)
    raise InputError(
        f"--think-format {name}: no such format; known are {known}. A new one is a row of ftri/labels/think_rows.py"
    )


def format_of_family(model_type: str | None) -> ThinkFormat | None:
    """The format that a `model_type` of config.json writes; None where the table does not say."""
    return _BY_MODEL_TYPE.get(model_type or "")


def choose_format(name: str | None, model_type: str | None) -> ThinkFormat | None:
    """The row that is told by name, else the one of the model's family; None: the text of each response tells it.

    Raises:
        InputError: no row has that name.
    """
    return think_format(name) if name else format_of_family(model_type)


def starts_inside_think(rendered_prompt: str, told: ThinkFormat | None = None) -> bool:
    """Whether the chat template has opened the think block, so that the response begins inside it.

    R1's own does since 9-10 February 2025.
    """
    tail = rendered_prompt[-PROMPT_TAIL_CHARACTERS:]
    rows = (told,) if told else THINK_FORMATS
    return any(markers.ends_open(tail) for row in rows for markers in row.markers)


def parse_response(text: str, starts_inside: bool = False, told: ThinkFormat | None = None) -> ParsedResponse | None:
    """Split raw text at its think block; None when the marks do not make one block at the start.

    Without `told` the format is the first of the table that the text shows. A text that a template's opening mark
    precedes carries only the closing one; that is recognised by itself, so `starts_inside` matters only where the block
    is never closed.
    """
    body, markers = _body_and_markers(text, told)
    opening = markers.opening.match(body)
    if opening:
        body = body[opening.end() :]
    marks = _marks(markers, body)
    inside = starts_inside or opening is not None
    if not inside and not marks:
        return ParsedResponse(None, _answer(markers, body))
    if not inside and marks[0].opens:
        return None
    if not marks:
        return ParsedResponse(_thinking(markers, body), None)
    end = _end_of_block(markers, marks, body)
    if end is None:
        # The marks are there, but are no block that ends.
        return (
            None
            if not inside or any(not mark.opens for mark in marks)
            else ParsedResponse(_thinking(markers, body), None)
        )
    if any(mark.start >= end.end for mark in marks):
        return None
    return ParsedResponse(_thinking(markers, body[: end.start]), _answer(markers, body[end.end :]))


@dataclass(frozen=True)
class _Mark:
    opens: bool
    start: int
    end: int


def _body_and_markers(text: str, told: ThinkFormat | None) -> tuple[str, Markers]:
    """The text without the tokens around a turn, and the marks that it is to be split by."""
    body = text.strip()
    while match := AFTER_TURN.search(body):
        body = body[: match.start()]
    rows = (told,) if told else THINK_FORMATS
    while True:
        opened = any(markers.opening.match(body) for row in rows for markers in row.markers)
        for row in rows:
            for markers in row.markers:
                # A format that is known needs no more than its opening, which an unfinished response has alone.
                if markers.told(body, opened) or (told and markers.opening.match(body)):
                    before = BEFORE_TURN.match(body)
                    while before and before.end():
                        body = body[before.end() :]
                        before = BEFORE_TURN.match(body)
                    return body, markers
        before = BEFORE_TURN.match(body)
        if not before or not before.end():
            return body, rows[-1].markers[0]
        body = body[before.end() :]


def _marks(markers: Markers, body: str) -> list[_Mark]:
    """The marks of a text that are used, not talked about, in their order."""
    masked = _MENTIONED.sub(lambda match: "\0" * len(match.group()), body)
    return [_Mark(found.lastgroup == "open", found.start(), found.end()) for found in markers.either.finditer(masked)]


def _end_of_block(markers: Markers, marks: list[_Mark], body: str) -> _Mark | None:
    """The mark that closes the block that is open at the beginning of `body`; None where none does."""
    depth = 1
    for place, mark in enumerate(marks):
        if mark.opens:
            depth += not markers.many_blocks
            continue
        depth -= 1
        if depth == 0:
            rest = marks[place + 1 :]
            # A thought about the tags closes early; the block's own end then stands on a line of its own.
            later = [other for other in rest if body[: other.start].endswith("\n")]
            return later[-1] if rest and later and not any(other.opens for other in rest) else mark
        if place == len(marks) - 1:
            # A thought about the tags has opened one without closing it.
            return mark
    return None


def _thinking(markers: Markers, text: str) -> str:
    if markers.many_blocks:
        text = _END_OF_BLOCK.sub(" ", re.sub(markers.opens, " ", text))
    return text.strip()


def _answer(markers: Markers, text: str) -> str:
    answer = text.strip()
    if markers.answer_opens:
        answer = re.sub(rf"\A(?:{markers.answer_opens})", "", answer)
        answer = re.sub(rf"(?:{markers.answer_closes})\s*\Z", "", answer)
    return answer.strip()
