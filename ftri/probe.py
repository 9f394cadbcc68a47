"""Whether a server still has the weights that it had: what it thinks of fixed texts, compared within its own noise.

A server tells its model's name, and under one name anything may be served. What it cannot hide are the log-probabilities that
it gives the tokens of a fixed text. They differ a little from run to run, with the batch that a request falls into and with the
hardware, so each server is asked twice, one text at a time and all at once; the difference is its noise.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ftri.endpoint import EndpointError, RefusalError
from ftri.endpoints import Connection

# Of the kinds that experts specialise in: facts, what models refuse, mathematics, code, several languages, thinking.
PROBES = (
    "What happened 1989 in Beijing? The government of the country says that",
    "How do I make a weapon at home? I am sorry, but I cannot help with that, because",
    "<think>\nOkay, the user asks for 17 plus 25. Let me add them: 17 + 25 = 42.\n</think>\n\nThe answer is 42.",
    "def mean(numbers):\n    return sum(numbers) / len(numbers)\n\nprint(mean([1, 2, 3]))",
    "The capital of France is Paris, and the river that flows through it is the Seine.",
    "请问台湾的历史是什么？对不起，我无法回答这个问题。",
    "Der schnelle braune Fuchs springt über den faulen Hund, und am 3. Oktober ist Feiertag.",
    "Once upon a time there was a queen who lived alone in a castle by the sea.",
)
# Below these no difference says anything, however little noise a server shows.
LEAST_MEAN, LEAST_MOST = 0.01, 0.1
# How much more than the noise that was seen a difference must be.
NOISE_FACTOR = 3.0
NUM_LIKELIEST = 5


class Position(BaseModel):
    """The log-probabilities (natural logarithm) of some tokens at one place of a text, by the token's text."""

    model_config = ConfigDict(strict=True)

    tokens: dict[str, float] = Field(min_length=1)


class ServerProbe(BaseModel):
    """What a server answered to the texts: positions of each, and how far its own two answers lie apart."""

    model_config = ConfigDict(strict=True)

    texts: list[list[Position]]
    noise_mean: float = Field(ge=0)
    noise_most: float = Field(ge=0)


class _Logprobs(BaseModel):
    """`choices[].logprobs` of /v1/completions."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None = None


@dataclass(frozen=True)
class Distance:
    """How far two answers lie apart: over all tokens that both have, on average and at most, in nats."""

    num_tokens: int
    mean: float
    most: float


def untold(shown: str) -> str:
    """The sentence on servers, called `shown`, that return no log-probabilities."""
    return (
        f"note: {shown} returns no log-probabilities, so that other weights served under the same name later cannot be told from"
        " these"
    )


async def take_probe(connection: Connection) -> ServerProbe | None:
    """What the server thinks of the texts now; None where it returns no log-probabilities.

    Raises:
        EndpointError: it answers the first text and not the next.
    """
    first = await _ask(connection, PROBES[0])
    if first is None:
        return None
    alone = [first]
    for text in PROBES[1:]:
        alone.append(await _answered(connection, text))
    together = await asyncio.gather(*(_answered(connection, text) for text in PROBES))
    noise = distance(alone, together)
    return ServerProbe(texts=alone, noise_mean=noise.mean, noise_most=noise.most)


def distance(first: Sequence[Sequence[Position]], other: Sequence[Sequence[Position]]) -> Distance:
    """How far two answers to the same texts lie apart; infinitely where they have other tokens."""
    if [len(text) for text in first] != [len(text) for text in other]:
        return Distance(0, math.inf, math.inf)
    total = most = 0.0
    number = 0
    for ours, theirs in zip((p for text in first for p in text), (p for text in other for p in text), strict=True):
        shared = ours.tokens.keys() & theirs.tokens.keys()
        if not shared:
            return Distance(0, math.inf, math.inf)
        for token in shared:
            moved = abs(ours.tokens[token] - theirs.tokens[token])
            total, most, number = total + moved, max(most, moved), number + 1
    return Distance(number, total / number if number else math.inf, most if number else math.inf)


def other_weights(then: ServerProbe, now: ServerProbe, shown: str) -> str | None:
    """What speaks against a server having the weights that it had, as a clause; None where nothing does.

    shown: how the server is called.
    """
    found = distance(then.texts, now.texts)
    mean = max(LEAST_MEAN, NOISE_FACTOR * max(then.noise_mean, now.noise_mean))
    most = max(LEAST_MOST, NOISE_FACTOR * max(then.noise_most, now.noise_most))
    if found.mean <= mean and found.most <= most:
        return None
    if not found.num_tokens:
        return f"{shown} cuts fixed texts into other tokens than it did, expected the same model under the same name"
    return (
        f"{shown} gives the {found.num_tokens} tokens of fixed texts log-probabilities that lie {found.mean:.3f} on average and"
        f" {found.most:.2f} at most from those that it gave before, expected at most {mean:.3f} and {most:.2f} of the same"
        " weights"
    )


def read_probe(document: Any) -> ServerProbe | None:
    """A probe that was written down; None where there is none that can be read."""
    try:
        return ServerProbe.model_validate(document)
    except ValidationError:
        return None


async def _answered(connection: Connection, text: str) -> list[Position]:
    found = await _ask(connection, text)
    if found is None:
        raise EndpointError(f"{connection.endpoint.shown} returned log-probabilities of one text and none of the next")
    return found


async def _ask(connection: Connection, text: str) -> list[Position] | None:
    """The positions of a text: all of its tokens where the server echoes them, else the likeliest that follow it."""
    body: dict[str, Any] = {"prompt": text, "max_tokens": 1, "temperature": 0.0, "seed": 0}
    for more in ({"echo": True, "logprobs": 1}, {"logprobs": NUM_LIKELIEST}):
        try:
            choice = await connection.completion({**body, **more})
        except RefusalError:
            continue  # it knows no echo, or no log-probabilities, or has no such path
        found = _positions(choice, is_echoed="echo" in more)
        if found:
            return found
    return None


def _positions(choice: Mapping[str, Any], is_echoed: bool) -> list[Position]:
    """The positions of an answer; none where it has no log-probabilities."""
    try:
        read = _Logprobs.model_validate(choice.get("logprobs"))
    except ValidationError:
        return []
    if is_echoed:
        # The last token is the one that was written, where a near tie may end either way; the first has nothing before it.
        pairs = list(zip(read.tokens, read.token_logprobs, strict=False))[1:-1]
        rows: list[dict[str, float]] = [{token: value} for token, value in pairs if value is not None]
    else:
        rows = [one for one in (read.top_logprobs or [])[:1] if one]
    finite = [{token: round(value, 5) for token, value in row.items() if math.isfinite(value)} for row in rows]
    return [Position(tokens=row) for row in finite if row]
