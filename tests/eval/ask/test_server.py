"""The page's server against a stand-in engine: who may ask, what is refused, what a stream holds, and how questions wait."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from ask_double import HELD_AFTER, ROUTES, AskDouble, render
from doubles import MOE_LAYERS
from replies import ALIGNED, REASONED, REFUSAL, REFUSAL_EXPERT

from eval.answers.plan import NamedEdit
from eval.ask import desk as desks
from eval.ask.desk import Desk
from eval.ask.live import LiveSides
from eval.ask.question import MOST_CHARACTERS
from eval.ask.server import MOST_BODY_BYTES, Page, PageServer
from rewriter.errors import MoteError
from rewriter.semantics import SEMANTICS

SET = NamedEdit("refusal", suppress=(REFUSAL_EXPERT, (3, 1)))
ASKED = {"prompt": "What happened in Beijing?", "max_tokens": 200, "temperature": 0, "seed": 0, "semantics": "reroute"}


@dataclass
class Running:
    """A server with its engine; `failure` is what ended the answering."""

    server: PageServer
    engine: AskDouble
    failure: list[BaseException]

    @property
    def port(self) -> int:
        return self.server.server_port

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict, bytes]:
        """(status, headers, body); headers of the page unless others are given, None of those that are empty."""
        host = f"127.0.0.1:{self.port}"
        given = {"Host": host, "Origin": f"http://{host}", "Content-Type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in given.items():
            if value:
                connection.putheader(name, value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, dict(response.headers), content

    def post(self, name: str, document: object, **headers: str) -> tuple[int, dict, bytes]:
        return self.request("POST", f"/{self.server.token}/{name}", json.dumps(document).encode(), **headers)

    def ask(self, **changed: object) -> list[dict]:
        """All events of a question."""
        status, _, content = self.post("ask", ASKED | changed)
        assert status == 200, content
        return [json.loads(line) for line in content.splitlines()]

    @contextmanager
    def open(self, **changed: object) -> Iterator[tuple[socket.socket, Iterator[dict]]]:
        """A question whose events are read one by one."""
        body = json.dumps(ASKED | changed).encode()
        host = f"127.0.0.1:{self.port}"
        head = (
            f"POST /{self.server.token}/ask HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(head.encode() + body)
            lines = connection.makefile("rb")
            while lines.readline().strip():
                pass
            yield connection, (json.loads(line) for line in lines)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    desk, engine = Desk(), AskDouble()
    sides = LiveSides(engine, render, SET, None)  # type: ignore[arg-type]
    failure: list[BaseException] = []

    def answer() -> None:
        try:
            desk.answer_all(sides)
        except MoteError as error:
            failure.append(error)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    with PageServer(0, desk) as server, server.serving(Page({"title": "t"}, SEMANTICS, 300)):
        yield Running(server, engine, failure)


def of(events: list[dict], kind: str, side: str | None = None) -> list[dict]:
    return [one for one in events if one["event"] == kind and (side is None or one["side"] == side)]


def said(events: list[dict], side: str) -> str:
    return "".join(one["text"] for one in of(events, "text", side))


def test_both_sides_answer_at_once_and_are_labelled(running: Running) -> None:
    events = running.ask()
    assert said(events, "base") == REFUSAL
    assert said(events, "variant") in (ALIGNED, REASONED)
    first = [one["side"] for one in of(events, "text")[:20]]
    assert first.count("base") > 5 and first.count("variant") > 5, "neither waits for the other"
    ends = {one["side"]: one for one in of(events, "end")}
    assert ends["base"]["label"] == "REFUSED" and ends["variant"]["label"] in ("ALIGNED", "REASONED")
    assert ends["base"]["reason"] == "stop" and ends["base"]["num_tokens"] == len(REFUSAL.encode())
    assert events[0]["event"] == "begin" and events[-1] == {"event": "done"}
    base, variant = running.engine.edits[-3:-1]
    assert base is None and variant.semantics == "reroute" and variant.suppress == SET.suppress


def test_marks_are_where_the_base_selects_an_expert_of_the_set(running: Running) -> None:
    events = running.ask()
    marked = [(MOE_LAYERS.index(layer), expert) for layer, expert in SET.pairs]
    for side in ("prompt", "base", "variant"):
        (found,) = of(events, "marks", side)
        text = "".join(piece for piece, _ in found["pieces"])
        assert text == (render([("user", ASKED["prompt"])]).text if side == "prompt" else said(events, side))
        expected = [[n for n, (row, e) in enumerate(marked) if e in ROUTES[byte, row]] for byte in text.encode()]
        if side == "base":
            # The end-of-text token was sampled after the last one of the text, which was run.
            assert len(expected) == found["num_tokens"]
        assert [one for _, one in found["pieces"]] == expected
        assert found["num_marked"] == sum(map(bool, expected)) > 0


def test_the_last_token_of_an_answer_that_was_cut_was_not_run(running: Running) -> None:
    events = running.ask(prompt="echo" + "t" * 50, max_tokens=20)
    experts = [[n for n, (layer, e) in enumerate(SET.pairs) if e in ROUTES[ord("t"), MOE_LAYERS.index(layer)]]]
    (base,), (variant,) = of(events, "marks", "base"), of(events, "marks", "variant")
    assert [one for _, one in base["pieces"]] == experts * 19 + [[]]
    assert [one for _, one in variant["pieces"]] == experts * 20, "the base read all of it"
    assert [one["label"] for one in of(events, "end")] == ["TRUNCATED"] * 2


def test_sampling_and_semantics_are_those_of_the_question(running: Running) -> None:
    running.ask(temperature=0.5, seed=7, max_tokens=30, semantics="drop-renorm")
    sampling = running.engine.samplings[-2]
    assert (sampling.temperature, sampling.seed, sampling.max_tokens) == (0.5, 7, 30)
    assert running.engine.edits[-2].semantics == "drop-renorm"


@pytest.mark.parametrize(
    "text",
    ["</pre><script>alert(1)</script>", "\u202e\u2066\x1b[31m\x07\x00", "{{ 7 * 7 }} \\u0000 \u2028", "日本語 🎉"],
)
def test_hostile_text_comes_back_as_the_text_that_it_is(running: Running, text: str) -> None:
    events = running.ask(prompt=f"echo{text}")
    for side in ("base", "variant"):
        assert said(events, side) == text
        assert "".join(piece for piece, _ in of(events, "marks", side)[0]["pieces"]) == text


def test_half_a_character_in_a_prompt_is_replaced(running: Running) -> None:
    assert said(running.ask(prompt="echo \ud800!"), "base") == " ?!"


def test_the_page_and_its_parts_are_served_with_a_policy(running: Running) -> None:
    for name, kind in (
        ("", "text/html"),
        ("ask.js", "text/javascript"),
        ("ask.css", "text/css"),
        ("about", "application/json"),
    ):
        status, headers, content = running.request("GET", f"/{running.server.token}/{name}", Origin="")
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8") and content
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "path", ["/", "/about", "/x/about", "/{token}", "/{token}x/", "/{token}/../etc/passwd", "/{token}/?q", "/%C3%A9/"]
)
def test_other_addresses_hold_nothing(running: Running, path: str) -> None:
    path = path.replace("{token}", running.server.token)
    status, headers, content = running.request("GET", path)
    assert status == 404 and running.server.token.encode() not in content
    assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}", ""]
)
def test_another_host_name_is_refused(running: Running, host: str) -> None:
    for method, name in (("GET", ""), ("GET", "about"), ("POST", "ask")):
        host = host.replace("{port}", str(running.port))
        status, _, content = running.request(
            method, f"/{running.server.token}/{name}", b"{}", Host=host, Origin=f"http://{host}"
        )
        assert status == 403 and b"127.0.0.1" in content


def test_the_name_localhost_is_this_machine(running: Running) -> None:
    host = f"localhost:{running.port}"
    assert running.request("GET", f"/{running.server.token}/about", Host=host)[0] == 200
    assert running.post("ask", ASKED, Host=host, Origin=f"http://{host}")[0] == 200


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "", "https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://localhost:{port}"],
)
def test_a_question_from_another_page_is_refused(running: Running, origin: str) -> None:
    steps = running.engine.num_steps
    status, _, content = running.post("ask", ASKED, Origin=origin.replace("{port}", str(running.port)))
    assert status == 403 and b"Origin" in content
    assert running.engine.num_steps == steps


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_a_form_of_another_page_is_no_question(running: Running, kind: str) -> None:
    assert running.post("ask", ASKED, Content_Type=kind)[0] == 415


def test_a_question_is_asked_by_post_alone(running: Running) -> None:
    steps = running.engine.num_steps
    for path in ("ask", "stop"):
        assert running.request("GET", f"/{running.server.token}/{path}")[0] == 405
    assert running.request("GET", f"/{running.server.token}/ask?prompt=hello")[0] == 404
    assert running.request("POST", f"/{running.server.token}/about", b"{}")[0] == 405
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "HEAD"):
        assert running.request(method, f"/{running.server.token}/ask")[0] == 501
    assert running.engine.num_steps == steps


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": ["a"]}, "the prompt is empty"),
        (
            {"prompt": "a" * (MOST_CHARACTERS + 1)},
            f"{MOST_CHARACTERS + 1} characters, expected at most {MOST_CHARACTERS}",
        ),
        ({"max_tokens": 0}, "max tokens is '0', expected a whole number from 1 to 300"),
        ({"max_tokens": 301}, "from 1 to 300"),
        ({"max_tokens": 1.5}, "a whole number"),
        ({"max_tokens": True}, "a whole number"),
        ({"temperature": -1}, "temperature is '-1', expected a number from 0 to 2"),
        ({"temperature": float("nan")}, "temperature is 'nan'"),
        ({"seed": 2**31}, "seed is"),
        ({"seed": None}, "seed is 'None'"),
        ({"semantics": "<b>"}, "semantics is '<b>', expected reroute or drop or drop-renorm"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_a_sentence(running: Running, changed: dict, words: str) -> None:
    status, _, content = running.post("ask", ASKED | changed)
    assert status == 400 and words in json.loads(content)["error"]
    assert len(content) < 400


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'"x"', b"[" * 100_000, b'{"prompt": 1' + b"0" * 9999 + b"}"]
)
def test_what_is_no_question_is_refused(running: Running, body: bytes) -> None:
    assert running.request("POST", f"/{running.server.token}/ask", body)[0] == 400


def test_a_body_is_bounded_before_it_is_read(running: Running) -> None:
    for length in (str(MOST_BODY_BYTES + 1), "9" * 400):
        status = running.request("POST", f"/{running.server.token}/ask", Content_Length=length)[0]
        assert status == 413
    for length in ("-1", "x", "", "²"):
        assert running.request("POST", f"/{running.server.token}/ask", Content_Length=length)[0] == 411
    chunked = running.request("POST", f"/{running.server.token}/ask", b"", Transfer_Encoding="chunked")
    assert chunked[0] == 411


def test_a_refused_question_leaves_the_page_alive(running: Running) -> None:
    events = running.ask(prompt="refuse this")
    assert of(events, "error") == [{"event": "error", "message": "told to refuse"}]
    (error,) = of(running.ask(prompt="x" * AskDouble.max_model_len), "error")
    assert f"expected fewer than {AskDouble.max_model_len}" in error["message"]
    assert running.ask()[-1] == {"event": "done"}


@pytest.fixture
def held(running: Running) -> Iterator[threading.Event]:
    """Lets answers that are held go on; all of them after the test."""
    running.engine.gate.clear()
    yield running.engine.gate
    running.engine.gate.set()


def until(true: Callable[[], object]) -> None:
    """Wait for what another thread does."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_stopping_keeps_what_there_is_with_its_marks(running: Running, held: threading.Event) -> None:
    with running.open(prompt="hold echo" + "word " * 40) as (_, events):
        number = next(one["number"] for one in events if one["event"] == "begin")
        assert next(events)["event"] == "text"
        assert json.loads(running.post("stop", {"number": number})[2]) == {"stopped": True}
        held.set()
        rest = list(events)
    ends = of(rest, "end")
    assert [one["reason"] for one in ends] == ["stopped"] * 2 and ends[0]["num_tokens"] <= HELD_AFTER + 1
    (marks,) = of(rest, "marks", "base")
    assert marks["num_tokens"] == ends[0]["num_tokens"]
    assert json.loads(running.post("stop", {"number": number})[2]) == {"stopped": False}
    assert json.loads(running.post("stop", {"number": "x"})[2]) == {"stopped": False}


def test_a_reader_who_leaves_stops_the_answer(running: Running, held: threading.Event) -> None:
    asked = len(running.engine.samplings)
    with running.open(prompt="hold echo" + "word " * 40) as (connection, events):
        assert next(one for one in events if one["event"] == "text")
        current = running.server.desk.current
        assert current is not None
        connection.shutdown(socket.SHUT_RDWR)
    until(lambda: current.is_left)
    begun = running.engine.num_steps
    held.set()
    running.ask(prompt="echo x", max_tokens=3)
    assert running.engine.num_steps - begun <= 10
    assert len(running.engine.samplings) == asked + 3, "an answer that nobody reads is not read by the base either"


def test_questions_wait_and_are_told_so(running: Running, held: threading.Event) -> None:
    with (
        running.open(prompt="hold echo" + "a" * 60) as (_, first),
        running.open(prompt="echo b") as (_, second),
        running.open(prompt="echo c") as (_, third),
    ):
        assert next(second) == {"event": "waiting", "ahead": 1}
        assert next(third) == {"event": "waiting", "ahead": 2}
        held.set()
        assert [one["event"] for one in first][-1] == "done"
        assert [one["event"] for one in second][-1] == "done"
        rest = list(third)
    assert rest[0] == {"event": "waiting", "ahead": 1} and said(rest, "base") == " c"


def test_a_reader_who_leaves_the_queue_makes_room(running: Running, held: threading.Event) -> None:
    asked = len(running.engine.samplings)
    with (
        running.open(prompt="hold echo" + "a" * 100) as (_, first),
        running.open(prompt="echo b") as (leaver, second),
        running.open(prompt="echo c") as (_, third),
    ):
        assert next(second)["ahead"] == 1 and next(third)["ahead"] == 2
        leaver.shutdown(socket.SHUT_RDWR)
        assert next(third) == {"event": "waiting", "ahead": 1}
        held.set()
        assert list(first)[-1] == list(third)[-1] == {"event": "done"}
    assert len(running.engine.samplings) == asked + 4, "two were answered and read"


def test_too_many_questions_are_refused(
    running: Running, held: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(desks, "MOST_WAITING", 1)
    with running.open(prompt="hold echo" + "a" * 40) as (_, first):
        assert next(first)["event"] == "begin"
        with running.open() as (_, second):
            assert next(second)["event"] == "waiting"
            status, _, content = running.post("ask", ASKED)
            assert status == 503 and b"1 questions wait already" in content


def test_a_port_that_is_taken_is_said(running: Running) -> None:
    with pytest.raises(MoteError, match=f"--port {running.port} cannot be listened on"):
        PageServer(running.port, Desk())


def test_an_engine_that_died_ends_the_answering() -> None:
    desk, engine = Desk(), AskDouble()
    sides = LiveSides(engine, render, SET, None)  # type: ignore[arg-type]
    with PageServer(0, desk) as server, server.serving(Page({}, SEMANTICS, 300)):
        running = Running(server, engine, [])
        found: list[list[dict]] = []
        thread = threading.Thread(target=lambda: found.append(running.ask(prompt="break")))
        thread.start()
        with pytest.raises(MoteError, match="told to"):
            desk.answer_all(sides)
        thread.join(10)
    assert found[0][-1]["event"] == "error" and "told to" in found[0][-1]["message"]


def test_waiting_questions_are_told_that_it_ended() -> None:
    desk = Desk()
    with PageServer(0, desk) as server:
        with server.serving(Page({}, SEMANTICS, 300)):
            running = Running(server, AskDouble(), [])
            found: list[list[dict]] = []
            thread = threading.Thread(target=lambda: found.append(running.ask()))
            thread.start()
            until(lambda: desk.num_waiting)
        thread.join(10)
    assert "was ended before" in found[0][-1]["message"]
