"""The page's two servers: what streams, what is marked, and what is said where a server cannot or will not."""

import time
from pathlib import Path
from typing import Any

import pytest
from doubles import MOE_LAYERS
from engine_double import ROUTE_OF_TOKEN
from replies import ALIGNED, REASONED, REFUSAL, REFUSAL_EXPERT, reply
from streaming_double import Double, streaming
from tiny_models import described_tiny_r1

from eval.ask.ask import open_served
from eval.ask.desk import Asked
from eval.ask.options import AskRequest
from eval.ask.question import Question
from ftri.endpoint import EndpointError
from ftri.prompts.rendering import load_tokenizer
from rewriter.expert_set import ExpertSet

RENDERED = "<bos><user>{}<assistant>"
# One that the stand-in's variant answers.
PROMPT = next(
    text
    for year in range(1980, 2000)
    if reply(RENDERED.format(text := f"What happened in {year} in Beijing?"), [REFUSAL_EXPERT]) != REFUSAL
)
QUESTION = Question(PROMPT, max_tokens=200)
PAIRS = [REFUSAL_EXPERT, (3, 1)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config and tokenizer: the servers have the weights."""
    folder = described_tiny_r1(tmp_path_factory.mktemp("served") / "R1")
    experts = [{"layer": layer, "expert": expert} for layer, expert in PAIRS]
    document = {"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "REFUSED", "experts": experts}
    ExpertSet.model_validate(document).save(folder.parent / "set.json")
    return folder


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return load_tokenizer(model)


def request_of(base: Double, tuned: Double, model: Path | None, **options: Any) -> AskRequest:
    if model is not None:
        options = {"model": str(model), "suppress": str(model.parent / "set.json")} | options
    request = AskRequest(base_url=base.url, tuned_url=tuned.url, **options)
    request.check()
    return request


class Impatient(Asked):
    """A reader who stops after some text."""

    def tell(self, event: dict[str, Any]) -> None:
        super().tell(event)
        if self.told.qsize() == 8:
            self.stop()


def ask(request: AskRequest, question: Question = QUESTION, reader: type[Asked] = Asked) -> tuple[list[dict], Any]:
    """All events of a question, and the page."""
    said: list[str] = []
    sides, page = open_served(request, said.append)
    assert ([page.about["unmarked"]] if page.about["unmarked"] else []) == [one[len("note: ") :] for one in said]
    asked = reader(1, question)
    sides.answer(asked)
    asked.finish()
    return list(iter(asked.told.get, None)), page


def of(events: list[dict], kind: str, side: str) -> list[dict]:
    return [one for one in events if one["event"] == kind and one["side"] == side]


def said(events: list[dict], side: str) -> str:
    return "".join(one["text"] for one in of(events, "text", side))


@pytest.mark.parametrize(("routing", "token_ids"), [("vllm", True), ("vllm", False), ("sglang", False)])
def test_both_stream_and_are_marked_where_the_base_selects(
    model: Path, tokenizer: Any, routing: str, token_ids: bool
) -> None:
    settings = {"routing": routing, "token_ids": token_ids}
    with streaming(tokenizer, **settings) as base, streaming(tokenizer, name="v", tuned=True, **settings) as tuned:
        events, page = ask(request_of(base, tuned, model))
    assert page.about["unmarked"] is None and page.semantics == ()
    assert "base: base at http://127.0.0.1" in page.about["subject"] and "variant: v at" in page.about["subject"]
    assert said(events, "base") == REFUSAL and said(events, "variant") in (ALIGNED, REASONED)
    assert len(of(events, "text", "base")) > 10
    ends = {side: of(events, "end", side)[0] for side in ("base", "variant")}
    assert ends["base"]["label"] == "REFUSED" and ends["variant"]["label"] in ("ALIGNED", "REASONED")
    prompt = RENDERED.format(PROMPT)
    for side, text in (("prompt", prompt), *((one, said(events, one)) for one in ("base", "variant"))):
        (found,) = of(events, "marks", side)
        assert "".join(piece for piece, _ in found["pieces"]) == text
        rows = ROUTE_OF_TOKEN[tokenizer.encode(text, add_special_tokens=False)]
        expected = [[n for n, (layer, e) in enumerate(PAIRS) if e in row[MOE_LAYERS.index(layer)]] for row in rows]
        assert [one for _, one in found["pieces"]] == expected
        assert found["num_marked"] == sum(map(bool, expected)) > 0
    asked = next(one for one in base.bodies if one.get("stream"))
    assert asked["prompt"] == tokenizer.encode(prompt, add_special_tokens=False)
    assert (asked["temperature"], asked["max_tokens"], asked["top_p"], asked["seed"]) == (0.0, 200, 1.0, 0)
    assert all(one.get("stream") for one in tuned.bodies), "the base alone is asked for routing"


def test_an_answer_that_was_cut_has_no_mark_at_its_last_token(model: Path, tokenizer: Any) -> None:
    with streaming(tokenizer) as base, streaming(tokenizer, tuned=True) as tuned:
        events, _ = ask(request_of(base, tuned, model), Question(QUESTION.prompt, max_tokens=9))
    (found,) = of(events, "marks", "base")
    assert found["num_tokens"] == 9 and found["pieces"][-1][1] == []
    assert of(events, "end", "base")[0]["label"] == "TRUNCATED"


def test_a_server_that_returns_no_experts_is_told_of_with_what_would_help(model: Path, tokenizer: Any) -> None:
    with streaming(tokenizer, routing=None) as base, streaming(tokenizer, tuned=True) as tuned:
        events, page = ask(request_of(base, tuned, model))
    assert "returns no routed_experts; start it with --enable-return-routed-experts" in page.about["unmarked"]
    assert said(events, "base") == REFUSAL
    assert [one["event"] for one in events if one["event"] not in ("text", "end")] == ["unmarked"]


def test_without_a_set_or_a_template_nothing_can_be_marked(model: Path, tokenizer: Any) -> None:
    with streaming(tokenizer) as base, streaming(tokenizer, tuned=True) as tuned:
        events, page = ask(request_of(base, tuned, model, suppress=None))
        assert "give --suppress FILE" in page.about["unmarked"] and page.about["experts"] == []
        assert {one["event"] for one in events} == {"text", "end"}
        assert "return_token_ids" not in base.bodies[-1], "servers that refuse unknown fields need not know it"
        events, page = ask(request_of(base, tuned, model, api="chat"))
        assert "--api chat" in page.about["unmarked"]
        assert said(events, "base") == REFUSAL
        assert base.bodies[-1]["messages"] == [{"role": "user", "content": QUESTION.prompt}]
        events, _ = ask(request_of(base, tuned, None, api="chat"))
        assert said(events, "base") == REFUSAL and of(events, "end", "base")[0]["num_tokens"] is None
        assert base.bodies[-1]["stream"] is True


def test_a_reasoning_parser_is_refused(tokenizer: Any) -> None:
    with (
        streaming(tokenizer, parser=True) as base,
        streaming(tokenizer) as tuned,
        pytest.raises(EndpointError, match="splits reasoning from the answer"),
    ):
        ask(request_of(base, tuned, None, api="chat"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"breaks": "off"}, r"broke off its answer to /completions, expected \[DONE\]"),
        ({"breaks": "error"}, r"broke off its answer: out of memory \\x1b\[31m"),
        ({"status": 401}, r"refused a request without a key with 401: told to \\x1b\[31m fail"),
        ({"status": 503}, r"answered 503 to /completions: told to"),
    ],
)
def test_a_server_that_fails_is_one_sentence_and_the_other_is_left(
    model: Path, tokenizer: Any, settings: dict[str, Any], sentence: str
) -> None:
    with streaming(tokenizer, **settings) as base, streaming(tokenizer, tuned=True, slow=0.03) as tuned:
        with pytest.raises(EndpointError, match=sentence) as caught:
            ask(request_of(base, tuned, model, suppress=None))
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400
        until = time.monotonic() + 5
        while not tuned.num_left and time.monotonic() < until:
            time.sleep(0.01)
        assert tuned.num_left == 1


def test_stopping_ends_both_streams_and_keeps_what_there_is(model: Path, tokenizer: Any) -> None:
    with streaming(tokenizer, slow=0.02) as base, streaming(tokenizer, slow=0.02, tuned=True) as tuned:
        events, _ = ask(request_of(base, tuned, model), reader=Impatient)
    for side in ("base", "variant"):
        (end,) = of(events, "end", side)
        assert end["reason"] == "stopped" and end["num_tokens"] < 40
        (found,) = of(events, "marks", side)
        assert "".join(piece for piece, _ in found["pieces"]) == said(events, side)


def test_hostile_text_of_a_server_is_text(model: Path, tokenizer: Any) -> None:
    text = "<script>alert(1)</script>\x1b[31m\x07"
    with streaming(tokenizer, says=text) as base, streaming(tokenizer, says=text) as tuned:
        events, _ = ask(request_of(base, tuned, model))
    assert said(events, "base") == said(events, "variant") == text


def test_a_server_that_is_away_costs_no_page(model: Path, tokenizer: Any) -> None:
    with streaming(tokenizer) as base:
        away = Double(tokenizer, url="http://127.0.0.1:9")
        with pytest.raises(EndpointError, match=r"http://127.0.0.1:9 cannot be reached"):
            ask(request_of(base, away, model))
