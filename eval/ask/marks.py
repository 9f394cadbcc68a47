"""Tokens as readable pieces of text, and which of an edit's experts were selected at each. Pure.

Letters of shapes: T tokens run through the model, L MoE layers, K selected experts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# (text, positions in the list of marked experts), as the page gets it.
Piece = tuple[str, list[int]]
# What a decoder writes where a character's bytes are not all there.
UNFINISHED = "\ufffd"
# So many tokens before the first decide whether its text begins with a space.
NUM_CONTEXT = 6


@dataclass(frozen=True)
class Marks:
    """A text with its marks: `counts` are (position in the list of marked experts, tokens), the most first."""

    pieces: list[Piece]
    num_tokens: int
    num_marked: int
    counts: list[tuple[int, int]]


def marks_of(
    decode: Callable[[Sequence[int]], str],
    token_ids: Sequence[int],
    experts: npt.NDArray[np.integer[Any]],
    marked: Sequence[tuple[int, int]],
    context: Sequence[int] = (),
) -> Marks:
    """The marks of tokens that were run through the model; those behind the end of `experts` were not, and have none.

    experts: [T, L, K]; marked: (row of L, expert); context: the tokens before, on which the text of the first may depend.
    """
    found = selected_experts(experts[: len(token_ids)], marked)
    counts = Counter(position for one in found for position in one)
    return Marks(
        pieces(decode, token_ids, found, context),
        num_tokens=len(token_ids),
        num_marked=sum(map(bool, found)),
        counts=sorted(counts.items(), key=lambda item: (-item[1], item[0])),
    )


def selected_experts(experts: npt.NDArray[np.integer[Any]], marked: Sequence[tuple[int, int]]) -> list[list[int]]:
    """For each of T tokens the positions in `marked` that were selected there.

    experts: [T, L, K] whole numbers; marked: (row of L, expert).
    """
    found: list[list[int]] = [[] for _ in range(len(experts))]
    for position, (row, expert) in enumerate(marked):
        for token in np.flatnonzero((experts[:, row] == expert).any(axis=-1)):
            found[token].append(position)
    return found


def pieces(
    decode: Callable[[Sequence[int]], str],
    token_ids: Sequence[int],
    marks: Sequence[Sequence[int]],
    context: Sequence[int] = (),
) -> list[Piece]:
    """Tokens as text with their marks; tokens that make up one character together come as one piece.

    marks: as `selected_experts` has them; tokens behind its end, which were not run, have none. context: the tokens before.
    """
    ids = [*context[-NUM_CONTEXT:], *token_ids]
    num_context = len(ids) - len(token_ids)
    found: list[Piece] = []
    # A token's text depends on those before it, of which the last whole piece is enough.
    start, read, pending = 0, num_context, list[int]()
    for end in range(num_context + 1, len(ids) + 1):
        position = end - 1 - num_context
        pending += [mark for mark in (marks[position] if position < len(marks) else ()) if mark not in pending]
        before, text = decode(ids[start:read]), decode(ids[start:end])
        is_last = end == len(ids)
        if len(text) > len(before) and (is_last or not text.endswith(UNFINISHED)):
            found.append((text[len(before) :], pending))
            start, read, pending = read, end, []
    if pending and found:
        # The last tokens have no text of their own.
        text, marked = found[-1]
        found[-1] = (text, [*marked, *(mark for mark in pending if mark not in marked)])
    return found
