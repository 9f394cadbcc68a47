"""A judge model, asked over an OpenAI-compatible endpoint whether an answer refuses, in the words of judge.txt."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import resources
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rewriter.errors import MoteError

if TYPE_CHECKING:
    import httpx

REFUSES, ANSWERS = "REFUSES", "ANSWERS"
# More than one word, since a judge that reasons first needs room before it answers.
MAX_TOKENS = 1024
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


class JudgeError(MoteError):
    """The judge cannot be reached, or does not answer as asked."""


class _Busy(Exception):
    """A failure that may pass; the text is the sentence to end with if it does not."""


def judge_question(question: str, answer: str) -> str:
    """What the judge is asked about one answer."""
    template = (resources.files("ftri.labels") / "judge.txt").read_text(encoding="utf-8")
    # The answer goes in last, so that braces or markers inside it stay as they are.
    head, _, tail = template.partition("{answer}")
    return head.replace("{question}", question) + answer + tail


def read_verdict(reply: str) -> bool | None:
    """True when the reply's last word of the two is REFUSES, False for ANSWERS, None when it says neither."""
    after_thinking = reply.rpartition("</think>")[2].upper()
    refuses, answers = after_thinking.rfind(REFUSES), after_thinking.rfind(ANSWERS)
    return None if refuses == answers else refuses > answers


@dataclass
class Judge:
    """An endpoint and a model on it; `num_unclear` counts replies that were neither of the two words."""

    url: str
    model: str
    api_key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 16
    attempts: int = 5
    first_wait_seconds: float = 0.5
    timeout_seconds: float = 120.0
    num_unclear: int = 0
    _client: httpx.Client | None = field(default=None, repr=False)

    @property
    def base(self) -> str:
        """The URL that ends in /v1, with or without which people give it."""
        stripped = self.url.rstrip("/")
        return stripped if stripped.endswith("/v1") else f"{stripped}/v1"

    def __enter__(self) -> Self:
        """Open the connections. The key, where the server needs one, comes from the environment."""
        import httpx

        key = os.environ.get(self.api_key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(timeout=self.timeout_seconds, headers=headers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()

    def refuses(self, question: str, answer: str) -> bool | None:
        """Whether the answer refuses; None when the judge says neither. Raises JudgeError."""
        import tenacity

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Busy),
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_random_exponential(multiplier=self.first_wait_seconds, max=30),
            reraise=True,
        )
        try:
            verdict = read_verdict(retrying(self._ask, judge_question(question, answer)))
        except _Busy as error:
            raise JudgeError(f"{error} (tried {self.attempts} times)") from None
        self.num_unclear += verdict is None
        return verdict

    def refuse_all(self, pairs: Iterable[tuple[str, str]]) -> Iterator[bool | None]:
        """Verdicts for (question, answer) pairs in their order, several at a time."""
        with ThreadPoolExecutor(self.concurrency) as pool:
            yield from pool.map(lambda pair: self.refuses(*pair), pairs)

    def _ask(self, content: str) -> str:
        import httpx

        assert self._client is not None, "the judge is used inside its with block"
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
        }
        try:
            response = self._client.post(f"{self.base}/chat/completions", json=body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol):
            raise JudgeError(
                f"--judge-url {self.url} is not a server address, expected like http://localhost:8000"
            ) from None
        except httpx.TransportError as error:
            raise _Busy(f"the judge at {self.url} cannot be reached ({str(error) or type(error).__name__})") from None
        if response.status_code in RETRIED_STATUS:
            raise _Busy(f"the judge at {self.url} answered {response.status_code}")
        if response.status_code >= 400:
            raise JudgeError(f"the judge at {self.url} answered {response.status_code}: {response.text[:200]!r}")
        return _reply(response, self.url)


def _reply(response: httpx.Response, url: str) -> str:
    try:
        document: Any = response.json()
        content = document["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise JudgeError(f"the judge at {url} answered with no message: {response.text[:200]!r}") from error
    return content if isinstance(content, str) else ""
