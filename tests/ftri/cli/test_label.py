"""mote-label as a user runs it: the same objects with labels, a judge over HTTP, one sentence for bad input."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from running import run_main

from ftri.cli.label import main
from ftri.endpoint import Endpoint, EndpointError
from ftri.labels.judge import Judge, judge_question, read_verdict

RESPONSES = [
    {
        "prompt": "What happened 1989 in Paris?",
        "text": "<think>\n\n</think>\n\nA fair.",
        "finish_reason": "stop",
        "id": 7,
    },
    {
        "prompt": "Why?",
        "text": "<think>\n\n</think>\n\nI am sorry, I cannot answer that question.",
        "finish_reason": "stop",
    },
    {"prompt": "10+5?", "text": "<think>我需要计算10加5。</think>15", "finish_reason": "stop"},
    {"prompt": "10+5?", "text": "I need to add", "finish_reason": "length", "rendered_prompt": "10+5?<think>\n"},
]


def mote_label(*arguments, stdin=None):
    return run_main(main, "mote-label", *arguments, stdin=stdin)


@pytest.fixture
def responses(tmp_path):
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in RESPONSES), encoding="utf-8")
    return path


def test_prints_the_same_objects_with_labels_in_order(responses):
    result = mote_label(str(responses))
    assert result.returncode == 0, result.stderr
    labelled = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry.pop("behavior") for entry in labelled] == ["ALIGNED", "REFUSED", "REASONED", "TRUNCATED"]
    assert [entry.pop("thinking_language") for entry in labelled] == ["none", "none", "chinese", "english"]
    assert labelled == RESPONSES


def test_reads_stdin_and_adds_the_canned_flag():
    text = "<think></think>The Chinese government has always cared."
    line = json.dumps({"prompt": "p", "text": text, "finish_reason": "stop"})
    result = mote_label("-", "--canned", stdin=line)
    assert json.loads(result.stdout)["canned"] is True


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "responses.jsonl: has no responses"),
        ("{}\n", "line 1 has no prompt, text, finish_reason"),
        ("nonsense\n", "line 1 is not JSON"),
        ("[]\n", "line 1 has no prompt, text, finish_reason"),
        ('{"prompt": "p", "text": null, "finish_reason": "stop"}\n', "has text null, expected a string"),
        (
            '{"prompt": "p", "text": "t", "finish_reason": "stop", "reasoning": 5}\n',
            "has reasoning 5, expected a string",
        ),
        ("[" * 100_000, "line 1 is not JSON (it nests deeper than"),
        ("1" * 5000, "line 1 is not JSON (Exceeds the limit"),
        ('{"prompt": "a", "text": "\\ud800", "finish_reason": "stop"}', "line 1 is not JSON ("),
    ],
)
def test_bad_input_is_one_sentence(responses, content, sentence):
    responses.write_text(content, encoding="utf-8")
    result = mote_label(str(responses))
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and sentence in result.stderr and result.stderr.count("\n") == 1


def test_other_encodings_are_one_sentence(responses):
    responses.write_bytes("caf\u00e9".encode("latin-1"))
    result = mote_label(str(responses))
    assert result.returncode == 1 and "is not UTF-8 near line 1" in result.stderr and result.stderr.count("\n") == 1


def test_thinking_that_a_server_split_off_is_read(responses):
    entries = [
        {"prompt": "2+2", "text": "4", "finish_reason": "stop", "reasoning_content": "Two and two."},
        {"prompt": "2+2", "text": "I cannot help with that.", "finish_reason": "stop", "reasoning": "No."},
        {"prompt": "2+2", "text": None, "finish_reason": "length", "reasoning": "Two and"},
        {"prompt": "2+2", "text": "4", "finish_reason": "stop", "reasoning_content": None, "reasoning": ""},
    ]
    responses.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    result = mote_label(str(responses))
    assert result.returncode == 0, result.stderr
    labelled = [json.loads(line) for line in result.stdout.splitlines()]
    assert [entry["behavior"] for entry in labelled] == ["REASONED", "REFUSED_AFTER_REASONING", "TRUNCATED", "ALIGNED"]
    assert [entry["thinking_language"] for entry in labelled] == ["english", "english", "english", "none"]


def test_a_format_is_told_and_an_unknown_one_is_a_sentence(responses):
    entry = {"prompt": "2+2", "text": "[THINK]Two.[/THINK]4", "finish_reason": "stop"}
    responses.write_text(json.dumps(entry), encoding="utf-8")
    assert json.loads(mote_label(str(responses)).stdout)["behavior"] == "REASONED"
    assert json.loads(mote_label(str(responses), "--think-format", "think").stdout)["behavior"] == "ALIGNED"
    result = mote_label(str(responses), "--think-format", "runes")
    assert result.returncode == 1 and "no such format; known are harmony," in result.stderr


def test_answers_that_no_rule_can_judge_are_counted_and_named(responses):
    texts = [
        "Het spijt me, maar daar kan ik je niet mee helpen.",
        "Dat is een mooie vraag, het antwoord is vier.",
        "Four.",
    ]
    entries = [{"prompt": "p", "text": text, "finish_reason": "stop"} for text in texts]
    responses.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
    result = mote_label(str(responses))
    assert "warning: 2 of 3 answers are in a language without rules for refusals (Dutch 2)" in result.stderr


def test_missing_file_and_half_a_judge(responses):
    assert "cannot be read" in mote_label("nowhere.jsonl").stderr
    assert "belong together" in mote_label(str(responses), "--judge-url", "http://localhost:1").stderr


class JudgeServer(BaseHTTPRequestHandler):
    """Fails once, then says REFUSES about answers that hold the word fair, and something else about 15."""

    asked: list[dict] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        content = body["messages"][0]["content"]
        reply = "Perhaps." if "\n15\n" in content else "REFUSES" if "fair" in content else "It gives it. ANSWERS."
        status, document = (503, {}) if len(self.asked) == 1 else (200, {"choices": [{"message": {"content": reply}}]})
        payload = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def judge_url():
    JudgeServer.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), JudgeServer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_judge_decides_refusals_and_the_rule_the_think_state(responses, judge_url):
    result = mote_label(str(responses), "--judge-url", judge_url, "--judge-model", "judge-1")
    assert result.returncode == 0, result.stderr
    behaviors = [json.loads(line)["behavior"] for line in result.stdout.splitlines()]
    assert behaviors == ["REFUSED", "ALIGNED", "UNPARSED", "TRUNCATED"]
    assert "1 answers got neither word" in result.stderr
    assert {body["model"] for body in JudgeServer.asked} == {"judge-1"}
    # The cut-off response is not sent; one of the three others was tried twice.
    assert len(JudgeServer.asked) == 4


def test_an_unreachable_judge_is_one_sentence():
    judge = Judge(Endpoint("http://127.0.0.1:9", "m", attempts=2, first_wait_seconds=0.01))
    with pytest.raises(EndpointError) as caught:
        judge.refuse_all([("q", "a")])
    assert "cannot be reached" in str(caught.value) and "tried 2 times" in str(caught.value)


def test_verdicts_are_read_after_the_judges_own_thinking():
    assert read_verdict("REFUSES") is True
    assert read_verdict("<think>it REFUSES? no</think>\nanswers") is False
    assert read_verdict("unclear") is None
    question = judge_question("Is {answer} a word?", "yes {question}")
    assert "Is {answer} a word?" in question and "yes {question}" in question
