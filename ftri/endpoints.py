"""The one client of OpenAI-compatible servers: many questions at once, tried again where that can help, and one clear
sentence where it cannot.

    endpoint = Endpoint("http://localhost:8000", api_key_variable="SERVER_KEY")

    async def ask(connection, position, question):
        choice = await connection.chat({"messages": question, "max_tokens": 64})
        answers[position] = message_text(choice, endpoint)

    ask_all(endpoint, questions, ask)
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from ftri.endpoint import Endpoint, EndpointError, RefusalError, without_credentials
from rewriter.json_text import whole_characters

if TYPE_CHECKING:
    import httpx2

Item = TypeVar("Item")
MAX_WAIT_SECONDS = 30.0
CONNECT_SECONDS = 10.0
# Of vLLM's server; it stands beside /v1, not in it.
TOKENIZE_PATH = "/tokenize"
# What runtimes serve beside /v1: vLLM's, and SGLang's own.
ROOT_PATHS = frozenset({TOKENIZE_PATH, "/generate", "/get_model_info"})
# Overload, restarts and proxies in between; anything else would fail the same way again.
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
# Where servers put the text that a reasoning parser cut off; any of them filled means that classes are hidden.
REASONING_FIELDS = ("reasoning_content", "reasoning")


class RetryableError(Exception):
    """A failure that may pass; carries the sentence to end with if it does not, the wait the server asked for, what to do, and
    whether it was an answer at all."""

    def __init__(
        self, sentence: str, retry_after_seconds: float | None = None, remedy: str = "", is_answer: bool = False
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.remedy = f"; {remedy}" if remedy else ""
        self.retry_after_seconds = retry_after_seconds
        self.is_answer = is_answer


@dataclass(frozen=True)
class Connection:
    """An open connection to a server, and the name of the model that is asked there."""

    client: httpx2.AsyncClient
    endpoint: Endpoint
    model: str

    async def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        """The one choice of POST /completions.

        Raises:
            EndpointError: as `call`, or the answer has no choice.
        """
        return await self._ask("/completions", body)

    async def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """The one choice of POST /chat/completions.

        Raises:
            EndpointError: as `call`, or the answer has no choice.
        """
        return await self._ask("/chat/completions", body)

    async def _ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        document = await call(self.client, self.endpoint, "POST", path, self.fields(body))
        choice = first_choice(document)
        if choice is not None:
            return choice
        words = self.endpoint.redacted(str(document)[:1000])[:80]
        raise EndpointError(f"{self.endpoint.shown} answered without choices, expected an OpenAI completion: {words!r}")

    def fields(self, body: dict[str, Any]) -> dict[str, Any]:
        """A request's fields: the user's own stand over ours; null takes a field out."""
        fields = {"model": self.model} | body | self.endpoint.extra_body
        return {name: value for name, value in fields.items() if value is not None}


def first_choice(document: dict[str, Any]) -> dict[str, Any] | None:
    """The first choice of an OpenAI completion; None without one."""
    choices = document.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


@asynccontextmanager
async def connect(endpoint: Endpoint, *, listed: bool = True) -> AsyncIterator[Connection]:
    """Open a connection; the model's name is the endpoint's own, or, unless `listed` is false, found as `find_model` does.

    Raises:
        EndpointError: as `find_model`.
    """
    import httpx2

    limits = httpx2.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
    async with httpx2.AsyncClient(limits=limits) as client:
        model = endpoint.model if endpoint.model is not None and not listed else await find_model(client, endpoint)
        yield Connection(client, endpoint, model)


def ask_all(
    endpoint: Endpoint,
    items: Sequence[Item],
    ask: Callable[[Connection, int, Item], Awaitable[None]],
    *,
    listed: bool = True,
) -> None:
    """Run `ask(connection, position, item)` over all items, as many at a time as the endpoint bears.

    Raises:
        EndpointError: as `connect`; or whatever `ask` raises first, and the others are then stopped.
    """

    async def go() -> None:
        async with connect(endpoint, listed=listed) as connection:
            await for_all(items, lambda position, item: ask(connection, position, item), endpoint.concurrency)

    asyncio.run(go())


async def template_sha256(connection: Connection) -> str | None:
    """SHA-256 of the tokens of a fixed conversation in the server's own chat template, by vLLM's POST /tokenize (beside /v1);
    None where the server has none, so that its template cannot be told.

    Raises:
        EndpointError: it is unreachable.
    """
    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    ]
    body = {"model": connection.model, "messages": messages, "add_generation_prompt": True}
    document = await call(connection.client, connection.endpoint, "POST", TOKENIZE_PATH, body, missing_is_none=True)
    tokens = document.get("tokens")
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest() if isinstance(tokens, list) else None


async def list_models(client: httpx2.AsyncClient, endpoint: Endpoint) -> list[dict[str, Any]]:
    """The entries of GET /models; none where the server has no such path.

    Raises:
        EndpointError: as `call`, or the answer is no list of models.
    """
    document = await call(client, endpoint, "GET", "/models", None, missing_is_none=True)
    entries = document.get("data") if document else []
    if not isinstance(entries, list):
        raise EndpointError(
            f"{endpoint.shown} lists no models in data, expected what an OpenAI server answers to /models"
        )
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]


async def find_model(client: httpx2.AsyncClient, endpoint: Endpoint) -> str:
    """The name to ask for: the endpoint's, checked against what the server lists, or the only one that it serves.

    Raises:
        EndpointError: the server is unreachable, refuses, or serves another model.
    """
    served = [entry["id"] for entry in await list_models(client, endpoint)]
    names = endpoint.redacted(", ".join(served)) or "nothing"
    if endpoint.model is None:
        if len(served) == 1:
            return str(served[0])
        raise EndpointError(f"{endpoint.shown} lists {names}; name the model to ask for")
    if served and endpoint.model not in served:
        raise EndpointError(f"{endpoint.shown} does not serve a model {endpoint.model!r}; it serves {names}")
    return endpoint.model


async def call(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    *,
    missing_is_none: bool = False,
) -> dict[str, Any]:
    """One JSON call with retries: exponential waits with jitter, or what a Retry-After header says.

    Raises:
        EndpointError: with the status, the server's own words and how often it was tried.
    """
    import tenacity

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, RetryableError) and error.retry_after_seconds is not None:
            return min(error.retry_after_seconds, MAX_WAIT_SECONDS)
        backoff = tenacity.wait_random_exponential(multiplier=endpoint.first_wait_seconds, max=MAX_WAIT_SECONDS)
        return float(backoff(state))

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(RetryableError),
        stop=tenacity.stop_after_attempt(endpoint.attempts),
        wait=wait,
        reraise=True,
    )
    try:
        return await retrying(_call_once, client, endpoint, method, path, body, missing_is_none)
    except RetryableError as error:
        kind = RefusalError if error.is_answer else EndpointError
        times = "once" if endpoint.attempts == 1 else f"{endpoint.attempts} times"
        raise kind(f"{error.sentence} (tried {times}){error.remedy}") from None


async def _call_once(
    client: httpx2.AsyncClient,
    endpoint: Endpoint,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    missing_is_none: bool,
) -> dict[str, Any]:
    import httpx2

    with request_errors(endpoint, when_slow="fewer at a time (--concurrency) are answered sooner"):
        response = await client.request(
            method,
            address(endpoint, path),
            json=body,
            headers=endpoint.headers(),
            timeout=httpx2.Timeout(endpoint.timeout_seconds, connect=min(CONNECT_SECONDS, endpoint.timeout_seconds)),
        )
    if response.status_code in (404, 405, 501) and missing_is_none:
        return {}
    check_status(response, endpoint, path)
    document = _json(response)
    if not isinstance(document, dict):
        start = endpoint.redacted(response.text.strip()[:1000])[:80]
        raise EndpointError(f"{endpoint.shown} answered {path} with something else than a JSON object: {start!r}")
    return document


def address(endpoint: Endpoint, path: str) -> str:
    """The whole URL of a path, which stands in /v1 or beside it."""
    return (endpoint.base.removesuffix("/v1") if path in ROOT_PATHS else endpoint.base) + path


@contextmanager
def request_errors(endpoint: Endpoint, *, when_slow: str = "") -> Iterator[None]:
    """What can go wrong on the way to a server as sentences; `when_slow` is what to do where an answer takes too long.

    Raises:
        RetryableError: it may pass.
        EndpointError: it will not.
    """
    import httpx2

    shown = endpoint.shown
    try:
        yield
    except httpx2.TimeoutException:
        raise RetryableError(
            f"{shown} did not answer within {endpoint.timeout_seconds:g} s", remedy=when_slow
        ) from None
    except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
        raise EndpointError(
            f"{shown!r} is not a server address ({error}), expected something like http://localhost:8000"
        ) from None
    except httpx2.RequestError as error:
        reason = endpoint.redacted(str(error)) or type(error).__name__
        raise RetryableError(
            f"{shown} cannot be reached ({reason})", remedy="start it (vllm serve MODEL), or give the server's address"
        ) from None


def check_status(response: httpx2.Response, endpoint: Endpoint, path: str) -> None:
    """Refuse an answer whose status is none of success; its body has been read.

    Raises:
        RetryableError: the server is overloaded or about to start again.
        EndpointError: with the status and the server's own words.
    """
    shown = endpoint.shown
    if response.status_code in RETRIED_STATUS:
        sentence = f"{shown} answered {response.status_code} to {path}: {server_words(response, endpoint)}"
        raise RetryableError(sentence, retry_after(response.headers.get("Retry-After")), is_answer=True)
    if response.status_code in (401, 403):
        source = f"the key in {endpoint.api_key_variable}" if endpoint.api_key_variable else "a request without a key"
        raise EndpointError(f"{shown} refused {source} with {response.status_code}: {server_words(response, endpoint)}")
    if response.status_code >= 400:
        raise RefusalError(f"{shown} answered {response.status_code} to {path}: {server_words(response, endpoint)}")
    if response.status_code >= 300:
        # Not followed: a body and a key would go to a place that nobody named.
        place = without_credentials(response.headers.get("Location", "nowhere"))
        raise EndpointError(f"{shown} sends {path} on to {endpoint.redacted(place)}, expected the server's own address")


def _json(response: httpx2.Response) -> Any:
    try:
        return whole_characters(response.json())
    except (ValueError, RecursionError):
        return None


def server_words(response: httpx2.Response, endpoint: Endpoint) -> str:
    """The server's own message on one line of bounded length, without secrets."""
    document = _json(response)
    return document_words(response.text[:4000] if document is None else document, endpoint)


def document_words(document: Any, endpoint: Endpoint) -> str:
    """The message in what a server said, on one line of bounded length, without secrets."""
    error = document.get("error", document) if isinstance(document, dict) else document
    message = error.get("message") or error.get("detail") or error if isinstance(error, dict) else error
    return endpoint.redacted(str(message)[:4000]) or "no message"


def message_text(choice: dict[str, Any], endpoint: Endpoint) -> str:
    """The text of a chat choice's message; empty without one.

    Raises:
        EndpointError: it is no text.
    """
    message = choice.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    if content is not None and not isinstance(content, str):
        raise EndpointError(
            f"{endpoint.shown} answered with a message whose content is a {type(content).__name__}, expected text"
        )
    return content or ""


def reasoning_field(choice: dict[str, Any]) -> str | None:
    """The field into which a reasoning parser put part of a chat choice's text; None where none did."""
    message = choice.get("message")
    return next((name for name in REASONING_FIELDS if isinstance(message, dict) and message.get(name)), None)


def retry_after(header: str | None) -> float | None:
    """Seconds to wait by a Retry-After header (seconds or an HTTP date); None without a usable one."""
    if not header:
        return None
    text = header.strip()
    if text.isascii() and text.replace(".", "", 1).isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - datetime.now(UTC)).total_seconds(), 0.0)


async def for_all(items: Sequence[Item], work: Callable[[int, Item], Awaitable[None]], concurrency: int) -> None:
    """Run `work(position, item)` over all items, at most `concurrency` at a time; the first failure stops the
    rest and is raised."""
    positions = iter(range(len(items)))

    async def worker() -> None:
        for position in positions:
            await work(position, items[position])

    tasks = [asyncio.create_task(worker()) for _ in range(min(concurrency, len(items)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
