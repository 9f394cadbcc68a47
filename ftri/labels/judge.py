"""A judge model, asked over an OpenAI-compatible endpoint whether an answer refuses, in the words of judge.txt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from ftri.endpoint import Endpoint
from ftri.endpoints import Connection, ask_all, message_text
from ftri.labels.think_formats import parse_response

REFUSES, ANSWERS = "REFUSES", "ANSWERS"
# More than one word, since a judge that reasons first needs room before it answers.
MAX_TOKENS = 1024
KEY_VARIABLE = "OPENAI_API_KEY"


def judge_endpoint(url: str, model: str) -> Endpoint:
    """Where a judge is asked; the key, where the environment has one, is the usual variable's."""
    key = KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else None
    return Endpoint(url, model, key, attempts=5, timeout_seconds=120.0)


def judge_question(question: str, answer: str) -> str:
    """What the judge is asked about one answer."""
    template = (resources.files("ftri.labels") / "judge.txt").read_text(encoding="utf-8")
    # The answer goes in last, so that braces or markers inside it stay as they are.
    head, _, tail = template.partition("{answer}")
    return head.replace("{question}", question) + answer + tail


def read_verdict(reply: str) -> bool | None:
    """True when the reply's last word of the two is REFUSES, False for ANSWERS, None when it says neither."""
    parsed = parse_response(reply)
    after_thinking = ((parsed.answer if parsed else None) or reply).upper()
    refuses, answers = after_thinking.rfind(REFUSES), after_thinking.rfind(ANSWERS)
    return None if refuses == answers else refuses > answers


@dataclass
class Judge:
    """A model at an endpoint; `num_unclear` counts replies that were neither of the two words."""

    endpoint: Endpoint
    num_unclear: int = 0

    def refuse_all(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Whether each (question, answer) pair's answer refuses; None where the judge says neither.

        Raises:
            EndpointError: the server refuses, or cannot be reached.
        """
        verdicts: list[bool | None] = [None] * len(pairs)

        async def ask(connection: Connection, position: int, pair: tuple[str, str]) -> None:
            body = {
                "messages": [{"role": "user", "content": judge_question(*pair)}],
                "temperature": 0,
                "max_tokens": MAX_TOKENS,
            }
            verdicts[position] = read_verdict(message_text(await connection.chat(body), self.endpoint))

        # The user named the model, and judges behind gateways often list none.
        ask_all(self.endpoint, pairs, ask, listed=False)
        self.num_unclear += verdicts.count(None)
        return verdicts
