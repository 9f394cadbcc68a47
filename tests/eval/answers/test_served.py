"""Against a real server process that fails as it is told."""

import time

import pytest

from eval.answers.arms import Answer, Arm, Request, Sampling
from eval.answers.served import ServedResponder
from ftri.endpoint import Endpoint, EndpointError
from ftri.prompts.rendering import Rendered

BASE = Arm("base", "base")
REQUESTS = [
    Request(f"p{n}", 0, (("user", f"What happened {1980 + n} in Paris?"),), Sampling(64, seed=n)) for n in range(20)
]


def as_bytes(messages):
    text = "".join(f"<{role}>{content}" for role, content in messages)
    return Rendered(text, list(text.encode()))


def endpoint(url, **changes):
    return Endpoint(url, **({"first_wait_seconds": 0.01, "attempts": 3, "concurrency": 4} | changes))


def ask(url, requests=REQUESTS, render=as_bytes, **changes):
    answers: dict[int, Answer] = {}
    responder = ServedResponder({None: endpoint(url, **changes)}, render)
    responder.answer([BASE] * len(requests), requests, answers.__setitem__)
    return answers


def test_all_answers_come_back_with_bounded_concurrency(serve):
    server = serve(slow=0.02)
    answers = ask(server.url)
    assert sorted(answers) == list(range(20))
    assert {answer.prompt_id for answer in answers.values()} == {f"p{n}" for n in range(20)}
    assert 1 < server.seen()["most"] <= 4


def test_chat_gives_the_same_raw_text_as_completions(serve):
    server = serve()
    chat = ask(server.url, render=None)
    assert all(answer.text.startswith("<think>") for answer in chat.values())


def test_429_and_500_are_tried_again(serve):
    server = serve(failures={"/v1/completions": [429, 500, 503]}, retry_after=0)
    assert len(ask(server.url, attempts=5)) == 20


def test_retry_after_is_waited_for(serve):
    server = serve(failures={"/v1/completions": [429]}, retry_after=1.2)
    started = time.monotonic()
    ask(server.url, REQUESTS[:1])
    assert time.monotonic() - started > 1.1


@pytest.mark.parametrize("status", [429, 500])
def test_a_server_that_never_recovers_is_named(serve, status):
    server = serve(failures={"/v1/completions": [status] * 1000})
    with pytest.raises(EndpointError, match=rf"answered {status} to /completions: told to fail \(tried 3 times\)"):
        ask(server.url)


def test_unreachable_server():
    with pytest.raises(
        EndpointError, match=r"http://127.0.0.1:9 cannot be reached .*\(tried 3 times\); start it \(vllm serve MODEL\)"
    ):
        ask("http://127.0.0.1:9")


@pytest.mark.parametrize("url", ["not a url", "ftp://127.0.0.1", "localhost:8000"])
def test_not_an_address(url):
    with pytest.raises(EndpointError, match="is not a server address"):
        ask(url)


def test_wrong_model_name_names_what_is_served(serve):
    server = serve(name="tiny-r1")
    with pytest.raises(EndpointError, match="does not serve a model 'tiny-r2'; it serves tiny-r1"):
        ask(server.url, model="tiny-r2")
    assert server.seen()["completions"] == 0


def test_wrong_model_name_where_the_server_does_not_list(serve):
    server = serve(name="tiny-r1", failures={"/v1/models": [404]})
    with pytest.raises(EndpointError, match="answered 404 to /completions: The model `tiny-r2` does not exist."):
        ask(server.url, model="tiny-r2")


def test_401_names_the_variable_and_not_the_key(serve, monkeypatch):
    server = serve(key="right")
    with pytest.raises(EndpointError, match="refused a request without a key with 401: Incorrect API key"):
        ask(server.url)
    monkeypatch.setenv("MOTE_TEST_KEY", "wrong")
    with pytest.raises(EndpointError, match="refused the key in MOTE_TEST_KEY with 401") as caught:
        ask(server.url, api_key_variable="MOTE_TEST_KEY")
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("MOTE_TEST_KEY", "right")
    assert len(ask(server.url, api_key_variable="MOTE_TEST_KEY")) == 20


def test_a_missing_key_variable_is_named(monkeypatch):
    monkeypatch.delenv("MOTE_TEST_KEY", raising=False)
    with pytest.raises(EndpointError, match="MOTE_TEST_KEY.*is not set"):
        ask("http://127.0.0.1:9", api_key_variable="MOTE_TEST_KEY")


def test_a_reasoning_parser_is_refused(serve):
    server = serve(parser=True)
    with pytest.raises(EndpointError, match="'reasoning_content'.*--reasoning-parser"):
        ask(server.url, render=None)


def test_a_server_that_dies_keeps_what_it_gave_and_names_what_is_missing(serve):
    server = serve(die_after=12, slow=0.01)
    answers: dict[int, Answer] = {}
    responder = ServedResponder({None: endpoint(server.url, concurrency=2)}, as_bytes)
    with pytest.raises(EndpointError) as caught:
        responder.answer([BASE] * len(REQUESTS), REQUESTS, answers.__setitem__)
    assert 5 <= len(answers) < 12
    first_missing = min(set(range(20)) - set(answers))
    sentence = str(caught.value)
    assert f"{len(answers)} of 20 answers of 'base' are kept, missing are p{first_missing}" in sentence
    assert sentence.endswith("run the same command again to go on from there")
