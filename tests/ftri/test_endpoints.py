"""The client of OpenAI-compatible servers against answers that a server may give; whole runs are in tests/eval."""

import asyncio
import json

import httpx2
import pytest

from ftri.endpoint import Endpoint, EndpointError
from ftri.endpoints import Connection, call, list_models, message_text, retry_after


def one_call(answer, endpoint=None, work=None):
    """What `call` makes of one answer: a response, or an exception that the transport raises."""

    async def handler(request):
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def go():
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handler)) as client:
            where = endpoint or Endpoint("http://example.test", attempts=1)
            if work is not None:
                return await work(client, where)
            return await call(client, where, "POST", "/chat/completions", {})

    return asyncio.run(go())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (httpx2.Response(200, text="<html>hello</html>"), "something else than a JSON object: '<html>hello</html>'"),
        (httpx2.Response(200, text="[" * 200_000), "something else than a JSON object"),
        (httpx2.Response(200, json=[1]), "something else than a JSON object"),
        (
            httpx2.Response(302, headers={"Location": "https://login.test/?token=abc"}),
            "sends /chat/completions on to https://login.test",
        ),
        (httpx2.RemoteProtocolError("peer closed connection"), r"cannot be reached \(peer closed connection\)"),
        (httpx2.DecodingError("bad gzip"), r"cannot be reached \(bad gzip\)"),
        (
            httpx2.Response(500, text="a\x1b[31m\nb\u202ec" * 500),
            r"answered 500 to /chat/completions: a\\x1b\[31m b\\u202ec",
        ),
    ],
)
def test_each_answer_that_is_none_is_one_sentence(answer, sentence):
    with pytest.raises(EndpointError, match=sentence) as caught:
        one_call(answer)
    shown = str(caught.value)
    assert len(shown) < 400
    assert shown.isprintable()
    assert "abc" not in shown


def test_half_of_a_character_in_an_answer_is_replaced():
    """No file or terminal could hold it."""
    answer = httpx2.Response(200, content=b'{"choices": [{"text": "\\ud83d", "raw": "\xed\xa0\x80"}]}')
    assert one_call(answer)["choices"][0]["text"] == "\ufffd"
    json.dumps(one_call(answer), ensure_ascii=False).encode()


def test_a_server_that_echoes_key_and_url_tells_nobody(monkeypatch):
    monkeypatch.setenv("MOTE_TEST_KEY", "plain-word-77")
    endpoint = Endpoint("http://user:KEY99@example.test", api_key_variable="MOTE_TEST_KEY", attempts=1)
    echo = "you sent Bearer plain-word-77, and plain-word-77 is no key, to http://user:KEY99@example.test/v1"
    for status in (400, 401, 500):
        with pytest.raises(EndpointError) as caught:
            one_call(httpx2.Response(status, json={"error": {"message": echo}}), endpoint)
        assert "plain-word-77" not in str(caught.value)
        assert "KEY99" not in str(caught.value)
        assert "http://example.test" in str(caught.value)


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines"])
def test_a_key_that_no_header_holds_is_named_by_its_variable(monkeypatch, key):
    monkeypatch.setenv("MOTE_TEST_KEY", key)
    with pytest.raises(EndpointError, match="MOTE_TEST_KEY holds other than printable ASCII") as caught:
        one_call(httpx2.Response(200, json={}), Endpoint("http://example.test", api_key_variable="MOTE_TEST_KEY"))
    assert key not in str(caught.value)


def test_the_users_fields_stand_over_ours_and_null_takes_one_out():
    sent = {}

    async def work(client, endpoint):
        async def handler(request):
            sent.update(json.loads(request.content))
            return httpx2.Response(200, json={"choices": [{"text": "yes"}]})

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handler)) as own:
            return await Connection(own, endpoint, "m").completion({"prompt": [1], "seed": 3})

    endpoint = Endpoint("http://example.test", extra_body={"seed": None, "top_k": 20})
    assert one_call(httpx2.Response(200), endpoint, work) == {"text": "yes"}
    assert sent == {"model": "m", "prompt": [1], "top_k": 20}


@pytest.mark.parametrize("document", [{}, {"choices": []}, {"choices": [7]}, {"choices": "none"}])
def test_an_answer_without_choices_is_refused(document):
    async def work(client, endpoint):
        return await Connection(client, endpoint, "m").chat({"messages": []})

    with pytest.raises(EndpointError, match="answered without choices"):
        one_call(httpx2.Response(200, json=document), work=work)


def test_models_that_are_none_are_left_out():
    entries = [{"id": "a"}, {"id": None}, "b", {"name": "c"}]
    assert one_call(httpx2.Response(200, json={"data": entries}), work=list_models) == [{"id": "a"}]
    assert one_call(httpx2.Response(404), work=list_models) == []
    with pytest.raises(EndpointError, match="lists no models"):
        one_call(httpx2.Response(200, json={"data": 7}), work=list_models)


def test_a_message_is_text():
    endpoint = Endpoint("http://example.test")
    assert message_text({"message": {"content": None}}, endpoint) == ""
    assert message_text({}, endpoint) == ""
    with pytest.raises(EndpointError, match="content is a list, expected text"):
        message_text({"message": {"content": [{"type": "text"}]}}, endpoint)


def test_retry_after_reads_seconds_and_dates():
    assert retry_after("2.5") == 2.5
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 -0000") == 0.0
    assert retry_after("soon") is None
    assert retry_after("²") is None
    assert retry_after(None) is None
