"""What the tests' server doubles answer when they are asked for the log-probabilities of a text: by rule, from its words."""

import hashlib
import random
import re
from typing import Any


def part(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone."""
    return int(hashlib.sha256(repr(words).encode()).hexdigest()[:8], 16) / 2**32


def logprobs(text: str, weights: float, noise: float = 0.0, *, echoes: bool = True) -> dict[str, Any]:
    """A choice of /v1/completions with `logprobs`; other `weights` move one word of five by their difference, and every answer is
    off by up to `noise`. Servers that do not echo give the likeliest next words."""

    def value(word: str) -> float:
        moved = weights if part(word, "moved") < 0.2 else 0.0
        return -5 * part(word) - moved + random.uniform(-noise, noise)

    written = " and"
    if not echoes:
        likeliest = {f" w{number}": value(f"{text} w{number}") for number in range(5)}
        return {
            "text": written,
            "logprobs": {"tokens": [written], "token_logprobs": [-1.0], "top_logprobs": [likeliest]},
        }
    words = re.findall(r"\s?\S+", text)
    values = [None, *map(value, words[1:]), -1.0]
    return {"text": text + written, "logprobs": {"tokens": [*words, written], "token_logprobs": values}}
