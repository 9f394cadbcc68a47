"""Answers of OpenAI-compatible servers as they are written: server-sent events, each with the text that came since the last."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from ftri.endpoint import EndpointError
from ftri.endpoints import (
    CONNECT_SECONDS,
    Connection,
    RetryableError,
    address,
    check_status,
    document_words,
    first_choice,
    request_errors,
)
from rewriter.json_text import whole_characters

EVENT_STREAM = "text/event-stream"
END = "[DONE]"


async def stream_choices(connection: Connection, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The one choice of a completion, part by part: of POST /completions with `text`, of /chat/completions with `delta`.

    Nothing is tried again: what has been shown cannot be taken back. Leaving the iterator closes the connection, which
    tells the server to stop.

    Raises:
        EndpointError: the server cannot be reached, refuses, breaks off, or sends something else than was asked for.
    """
    import httpx2

    endpoint = connection.endpoint
    timeout = httpx2.Timeout(endpoint.timeout_seconds, connect=CONNECT_SECONDS)
    fields = connection.fields(body | {"stream": True})
    try:
        with request_errors(endpoint):
            async with connection.client.stream(
                "POST", address(endpoint, path), json=fields, headers=endpoint.headers(), timeout=timeout
            ) as response:
                if not response.is_success:
                    await response.aread()
                check_status(response, endpoint, path)
                kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
                if kind != EVENT_STREAM:
                    raise EndpointError(
                        f"{endpoint.shown} answered {path} with {endpoint.redacted(kind) or 'no content type'}, expected a stream"
                        f" ({EVENT_STREAM})"
                    )
                async for event in httpx2.EventSource(response):
                    if event.data.strip() == END:
                        return
                    choice = _choice(event.data, connection)
                    if choice is not None:
                        yield choice
    except RetryableError as error:
        raise EndpointError(f"{error.sentence}{error.remedy}") from None
    raise EndpointError(f"{endpoint.shown} broke off its answer to {path}, expected {END} at the end of a stream")


def _choice(data: str, connection: Connection) -> dict[str, Any] | None:
    """One event's choice; None where it has none, as the last one with the usage."""
    shown = connection.endpoint.shown
    try:
        document = whole_characters(json.loads(data))
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        words = connection.endpoint.redacted(data[:1000])[:80]
        raise EndpointError(f"{shown} streams something else than JSON objects: {words!r}")
    if "error" in document:
        raise EndpointError(f"{shown} broke off its answer: {document_words(document, connection.endpoint)}")
    return first_choice(document)
