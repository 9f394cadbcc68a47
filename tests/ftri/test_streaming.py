"""Streams of servers: the parts as they come, and each stream that is none in one sentence."""

import asyncio
import json

import httpx2
import pytest

from ftri.endpoint import Endpoint, EndpointError
from ftri.endpoints import Connection
from ftri.streaming import stream_choices


def streamed(*events, status=200, kind="text/event-stream", endpoint=None, seen=None):
    """What a stream of these events comes to; an exception in place of a response is raised by the transport."""
    failure = next((event for event in events if isinstance(event, Exception)), None)
    text = "".join(
        event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n" for event in events if not failure
    )

    async def handler(request):
        if seen is not None:
            seen.append(request)
        if failure is not None:
            raise failure
        return httpx2.Response(status, text=text, headers={"Content-Type": kind})

    async def go():
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handler)) as client:
            connection = Connection(client, endpoint or Endpoint("http://example.test"), "R1")
            return [choice async for choice in stream_choices(connection, "/completions", {"prompt": [1]})]

    return asyncio.run(go())


def part(text, **more):
    return {"choices": [{"text": text, **more}]}


def test_the_parts_come_in_order_and_the_usage_is_no_part():
    seen = []
    endpoint = Endpoint("http://example.test/v1", extra_body={"top_k": 5, "seed": None})
    found = streamed(
        ": a comment\n\n",
        part("a\ud800"),
        part("b", finish_reason="stop"),
        {"choices": [], "usage": {}},
        "data: [DONE]\n\n",
        endpoint=endpoint,
        seen=seen,
    )
    assert found == [{"text": "a\ufffd"}, {"text": "b", "finish_reason": "stop"}]
    assert str(seen[0].url) == "http://example.test/v1/completions"
    assert json.loads(seen[0].content) == {"model": "R1", "prompt": [1], "stream": True, "top_k": 5}


@pytest.mark.parametrize(
    ("events", "settings", "sentence"),
    [
        ([part("a")], {}, r"broke off its answer to /completions, expected \[DONE\]"),
        ([], {}, "broke off its answer"),
        (["data: {\n\n"], {}, "streams something else than JSON objects: '{'"),
        (["data: [1]\n\n"], {}, "streams something else than JSON objects"),
        (["data: " + "[" * 100_000 + "\n\n"], {}, "streams something else than JSON objects"),
        ([{"error": {"message": "no\x1b[31m\u202e memory"}}], {}, r"broke off its answer: no\\x1b\[31m\\u202e memory"),
        (["{}"], {"kind": "application/json"}, "with application/json, expected a stream"),
        (["<html>"], {"kind": "text/html\x1b"}, "expected a stream"),
        (["busy"], {"status": 503}, "answered 503 to /completions: busy"),
        (["who?"], {"status": 403}, "refused a request without a key with 403: who?"),
        ([""], {"status": 302}, "sends /completions on to"),
        ([httpx2.ConnectError("refused")], {}, r"cannot be reached \(refused\); start it \(vllm serve MODEL\)"),
        ([httpx2.ReadTimeout("slow")], {}, "did not answer within 600 s$"),
        ([httpx2.RemoteProtocolError("peer closed")], {}, r"cannot be reached \(peer closed\)"),
    ],
)
def test_each_stream_that_is_none_is_one_sentence(events, settings, sentence):
    with pytest.raises(EndpointError, match=sentence) as caught:
        streamed(*events, **settings)
    assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_a_server_that_echoes_the_key_tells_nobody(monkeypatch):
    monkeypatch.setenv("MOTE_TEST_KEY", "plain-word-77")
    endpoint = Endpoint("http://example.test", api_key_variable="MOTE_TEST_KEY")
    with pytest.raises(EndpointError) as caught:
        streamed({"error": "you sent plain-word-77"}, endpoint=endpoint)
    assert "plain-word-77" not in str(caught.value)
