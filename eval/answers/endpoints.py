"""Questions to any OpenAI-compatible server: many at once, tried again where that can help, and one clear
sentence where it cannot."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from eval.errors import EndpointError

if TYPE_CHECKING:
    import httpx

Item = TypeVar("Item")
MAX_WAIT_SECONDS = 30.0
# Overload, restarts and proxies in between; anything else would fail the same way again.
RETRIED_STATUS = frozenset({408, 409, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Endpoint:
    """Where a server is and how it is asked."""

    url: str
    model: str | None = None
    api_key_variable: str | None = None
    concurrency: int = 16
    attempts: int = 6
    first_wait_seconds: float = 0.5
    timeout_seconds: float = 600.0
    extra_body: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The URL that ends in /v1, with or without which people give it."""
        stripped = self.url.rstrip("/")
        return stripped if stripped.endswith("/v1") else f"{stripped}/v1"

    def headers(self) -> dict[str, str]:
        """The key comes from the environment, so that it is in no command line, journal or result. Raises EndpointError."""
        if self.api_key_variable is None:
            return {}
        key = os.environ.get(self.api_key_variable)
        if not key:
            raise EndpointError(
                f"the environment variable {self.api_key_variable}, which should hold the key for {self.url}, is not set"
            )
        return {"Authorization": f"Bearer {key}"}


class _Retryable(Exception):
    """A failure that may pass; carries the sentence to end with if it does not, and the wait the server asked for."""

    def __init__(self, sentence: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.retry_after_seconds = retry_after_seconds


async def find_model(client: httpx.AsyncClient, endpoint: Endpoint) -> str:
    """The name to ask for: the endpoint's, checked against what the server lists, or the only one that it serves.

    Raises: EndpointError when the server is unreachable, refuses, or serves another model.
    """
    listed = await call(client, endpoint, "GET", "/models", None, missing_is_none=True)
    served = [entry.get("id") for entry in listed.get("data", []) if isinstance(entry, dict)] if listed else []
    if endpoint.model is None:
        if len(served) == 1:
            return str(served[0])
        names = ", ".join(map(str, served)) or "nothing"
        raise EndpointError(f"{endpoint.url} lists {names}; name the model to ask for")
    if served and endpoint.model not in served:
        raise EndpointError(
            f"{endpoint.url} does not serve a model {endpoint.model!r}; it serves {', '.join(map(str, served))}"
        )
    return endpoint.model


async def call(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    *,
    missing_is_none: bool = False,
) -> dict[str, Any]:
    """One JSON call with retries: exponential waits with jitter, or what a Retry-After header says.

    Raises: EndpointError with the status, the server's own words and how often it was tried.
    """
    import tenacity

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Retryable) and error.retry_after_seconds is not None:
            return min(error.retry_after_seconds, MAX_WAIT_SECONDS)
        backoff = tenacity.wait_random_exponential(multiplier=endpoint.first_wait_seconds, max=MAX_WAIT_SECONDS)
        return float(backoff(state))

    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(_Retryable),
        stop=tenacity.stop_after_attempt(endpoint.attempts),
        wait=wait,
        reraise=True,
    )
    try:
        return await retrying(_call_once, client, endpoint, method, path, body, missing_is_none)
    except _Retryable as error:
        raise EndpointError(f"{error.sentence} (tried {endpoint.attempts} times)") from None


async def _call_once(
    client: httpx.AsyncClient,
    endpoint: Endpoint,
    method: str,
    path: str,
    body: dict[str, Any] | None,
    missing_is_none: bool,
) -> dict[str, Any]:
    import httpx

    url = endpoint.base + path
    try:
        response = await client.request(
            method,
            url,
            json=body,
            headers=endpoint.headers(),
            timeout=httpx.Timeout(endpoint.timeout_seconds, connect=10),
        )
    except httpx.TimeoutException:
        raise _Retryable(f"{endpoint.url} did not answer within {endpoint.timeout_seconds:g} s") from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise EndpointError(
            f"{endpoint.url!r} is not a server address ({error}), expected something like http://localhost:8000"
        ) from None
    except httpx.TransportError as error:
        reason = str(error).strip() or type(error).__name__
        raise _Retryable(f"{endpoint.url} cannot be reached ({reason}); is the server running?") from None
    if response.status_code == 404 and missing_is_none:
        return {}
    if response.status_code in RETRIED_STATUS:
        sentence = f"{endpoint.url} answered {response.status_code} to {path}: {server_words(response)}"
        raise _Retryable(sentence, retry_after(response.headers.get("Retry-After")))
    if response.status_code in (401, 403):
        source = f"the key in {endpoint.api_key_variable}" if endpoint.api_key_variable else "a request without a key"
        raise EndpointError(f"{endpoint.url} refused {source} with {response.status_code}: {server_words(response)}")
    if response.status_code >= 400:
        raise EndpointError(f"{endpoint.url} answered {response.status_code} to {path}: {server_words(response)}")
    try:
        document = response.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        start = response.text.strip()[:80]
        raise EndpointError(f"{endpoint.url} answered {path} with something else than a JSON object: {start!r}")
    return document


def server_words(response: httpx.Response) -> str:
    """The server's own message on one line of bounded length."""
    try:
        document = response.json()
        error = document.get("error", document) if isinstance(document, dict) else document
        message = error.get("message") or error.get("detail") or error if isinstance(error, dict) else error
    except ValueError:
        message = response.text
    line = " ".join(str(message).split())
    return (line if len(line) <= 200 else f"{line[:197]}...") or "no message"


def retry_after(header: str | None) -> float | None:
    """Seconds to wait by a Retry-After header (seconds or an HTTP date); None without a usable one."""
    if not header:
        return None
    if header.strip().replace(".", "", 1).isdigit():
        return float(header)
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
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
