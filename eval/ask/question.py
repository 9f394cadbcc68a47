"""What the page asks: one prompt and how it is answered, read from a request's body and checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewriter.errors import InputError
from rewriter.semantics import Semantics

# More than any context of today's models holds; the engine or the server says what its own holds.
MOST_CHARACTERS = 500_000
MOST_TOKENS = 131_072
# vLLM's own bound, and that of OpenAI's interface.
MOST_TEMPERATURE = 2
MOST_SEED = 2**31 - 1
SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Question:
    """One prompt and how it is answered; `semantics` is the variant's, None where it is a server's own."""

    prompt: str
    max_tokens: int
    temperature: float = 0.0
    seed: int = 0
    semantics: Semantics | None = None


def read_question(body: bytes, semantics: Sequence[Semantics], most_tokens: int = MOST_TOKENS) -> Question:
    """The question in a request's body; `semantics` are those to choose from, none where there is no choice.

    Raises:
        InputError: anything else than the page sends.
    """
    given = read_object(body)
    prompt = given.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise InputError("the prompt is empty, expected some text")
    if len(prompt) > MOST_CHARACTERS:
        raise InputError(f"the prompt has {len(prompt)} characters, expected at most {MOST_CHARACTERS}")
    chosen = given.get("semantics")
    if semantics and chosen not in semantics:
        raise InputError(f"semantics is {_shown(chosen)}, expected {' or '.join(semantics)}")
    return Question(
        # Half of a character has no UTF-8, which tokenizers and servers want.
        prompt=prompt.encode("utf-8", "replace").decode("utf-8"),
        max_tokens=int(_number(given, "max_tokens", 1, most_tokens, whole=True)),
        temperature=_number(given, "temperature", 0, MOST_TEMPERATURE),
        seed=int(_number(given, "seed", 0, MOST_SEED, whole=True)),
        semantics=chosen if semantics else None,
    )


def read_object(body: bytes) -> dict[str, Any]:
    """A request's body as a JSON object.

    Raises:
        InputError: it is none.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise InputError("the request is not JSON, expected what the page sends") from None
    if not isinstance(given, dict):
        raise InputError(f"the request is a JSON {type(given).__name__}, expected an object")
    return given


def _number(given: dict[str, Any], name: str, low: float, high: float, *, whole: bool = False) -> float:
    value = given.get(name)
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        words = name.replace("_", " ")
        raise InputError(f"{words} is {_shown(value)}, expected {kind} from {low} to {high}")
    return float(value)


def _shown(value: Any) -> str:
    return repr(str(value)[:SHOWN_CHARACTERS])
