"""What the page is told while a question is answered: JSON objects that name themselves under "event".

waiting  {ahead}                       so many questions are answered before this one
begin    {number}                      it is answered now; /stop takes the number
text     {side, text}                  the text that came since the last one
end      {side, reason, label, num_tokens}
                                       the answer is whole or was stopped; label is None where none is decided
marks    {side, pieces, num_tokens, num_marked, counts}
                                       the prompt or an answer again, as pieces of text with what was chosen there; see Marks
unmarked {why}                         in place of marks
error    {message}                     nothing more comes of this question
done     {}                            the last of a question that was answered
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from eval.answers.arms import Answer
from eval.ask.marks import Marks
from eval.outcomes.observed import label_answer
from ftri.labels.deciding import decided_label
from ftri.labels.think_formats import ThinkFormat

Side = Literal["base", "variant"]
SIDES: tuple[Side, Side] = ("base", "variant")
Marked = Side | Literal["prompt"]
# An answer's reason where the reader stopped it.
STOPPED = "stopped"
Event = dict[str, Any]


def waiting(ahead: int) -> Event:
    """So many questions are answered before this one."""
    return {"event": "waiting", "ahead": ahead}


def begin(number: int) -> Event:
    """The question of this number is answered now."""
    return {"event": "begin", "number": number}


def text(side: Side, piece: str) -> Event:
    """More of a side's answer."""
    return {"event": "text", "side": side, "text": piece}


def end(side: Side, reason: str, label: str | None, num_tokens: int | None) -> Event:
    """A side's answer ended; None tokens where a server did not count them."""
    return {"event": "end", "side": side, "reason": reason, "label": label, "num_tokens": num_tokens}


def marks(side: Marked, found: Marks) -> Event:
    """The prompt or an answer as pieces with their marks."""
    return {"event": "marks", "side": side, **asdict(found)}


def unmarked(why: str) -> Event:
    """Why there are no marks."""
    return {"event": "unmarked", "why": why}


def error(message: str) -> Event:
    """Why there is no answer."""
    return {"event": "error", "message": message}


def done() -> Event:
    """All was told."""
    return {"event": "done"}


def label_of(answer: str, reason: str, starts_inside_think: bool, think_format: ThinkFormat | None) -> str | None:
    """The label by the project's rules; of a stopped answer only what its beginning decides."""
    if reason == STOPPED:
        decided = decided_label(answer, starts_inside_think, think_format)
        return None if decided is None else decided.value
    return label_answer(Answer("", 0, answer, reason, starts_inside_think), think_format)
