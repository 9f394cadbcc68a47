"""The page's answers from a real vLLM engine on a random tiny R1: marks against the engine's own recording."""

from collections.abc import Iterator

import numpy as np
import pytest
from tiny_models import build_tiny_r1

from eval.answers.plan import NamedEdit
from eval.ask.desk import Asked
from eval.ask.live import LiveSides
from eval.ask.question import Question
from ftri.engine.engine import Engine, Sampling
from ftri.prompts.rendering import make_renderer
from rewriter.errors import InputError

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

PAIRS = tuple((layer, expert) for layer in (1, 2, 3) for expert in (3, 5, 9, 14))
# float32, so that the order of a sum never decides between two experts.
ARGUMENTS = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8}
PROMPT = "What happened in 1989 in Berlin?"


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveSides]:
    folder = build_tiny_r1(tmp_path_factory.mktemp("ask") / "base", moe_intermediate_size=512)
    engine = Engine(str(folder), record=True, live_edits=True, engine_arguments=ARGUMENTS)
    found = LiveSides(engine, make_renderer(folder).conversation, NamedEdit("set", suppress=PAIRS), None)
    yield found
    found.close()


class Impatient(Asked):
    """A reader who stops after some text."""

    def tell(self, event: dict) -> None:
        super().tell(event)
        if self.told.qsize() == 4:
            self.stop()


def ask(sides: LiveSides, question: Question, reader: type[Asked] = Asked) -> list[dict]:
    asked = reader(1, question)
    sides.answer(asked)
    asked.finish()
    return list(iter(asked.told.get, None))


def one(events: list[dict], kind: str, side: str) -> dict:
    (found,) = [event for event in events if event["event"] == kind and event["side"] == side]
    return found


def written(events: list[dict], side: str) -> str:
    return "".join(event["text"] for event in events if event["event"] == "text" and event["side"] == side)


@pytest.mark.parametrize("semantics", ["reroute", "drop", "drop-renorm"])
def test_marks_are_what_the_engine_records(sides: LiveSides, semantics: str) -> None:
    from ftri.engine.edits import RouterEdit

    question = Question(PROMPT, max_tokens=24, semantics=semantics)  # type: ignore[arg-type]
    events = ask(sides, question)
    engine, layers = sides.engine, list(sides.engine.layout.moe_layers)
    prompt = sides._prompt(question)
    edit = RouterEdit(semantics, suppress=PAIRS)
    alone = [next(engine.generate([prompt], Sampling(max_tokens=24), edit=one)) for one in (None, edit)]
    assert written(events, "base") == alone[0].text and written(events, "variant") == alone[1].text
    assert alone[0].text != alone[1].text
    reading = next(
        engine.generate(
            [prompt.__class__("r", "", "", [*prompt.token_ids, *alone[1].token_ids])], Sampling(max_tokens=1)
        )
    )
    num_prompt = len(prompt.token_ids)
    for side, experts, num_tokens in (
        ("prompt", alone[0].experts[:num_prompt], num_prompt),
        ("base", alone[0].experts[num_prompt:], len(alone[0].token_ids)),
        ("variant", reading.experts[num_prompt:], len(alone[1].token_ids)),
    ):
        found = one(events, "marks", side)
        by_token = [
            [n for n, (layer, expert) in enumerate(PAIRS) if expert in row[layers.index(layer)]] for row in experts
        ]
        counts = {n: sum(n in marked for marked in by_token) for n in range(len(PAIRS))}
        assert dict(found["counts"]) == {n: count for n, count in counts.items() if count}
        assert (found["num_tokens"], found["num_marked"]) == (num_tokens, sum(map(bool, by_token)))
        assert found["num_marked"] > 0


def test_the_base_reads_its_own_answer_as_it_wrote_it(sides: LiveSides) -> None:
    """What allows one to compare the two columns: a token selects the same experts read or written."""
    prompt = sides._prompt(Question(PROMPT, 24))
    wrote = next(sides.engine.generate([prompt], Sampling(max_tokens=24)))
    read = sides._read(prompt, wrote.token_ids)
    assert np.array_equal(read[: len(wrote.experts)], wrote.experts)
    assert len(read) == len(prompt.token_ids) + len(wrote.token_ids)


def test_a_stopped_answer_is_the_beginning_of_the_whole_one(sides: LiveSides) -> None:
    question = Question(PROMPT, max_tokens=100, semantics="reroute")
    whole, stopped = ask(sides, question), ask(sides, question, Impatient)
    for side in ("base", "variant"):
        assert one(stopped, "end", side)["reason"] == "stopped"
        assert 0 < len(written(stopped, side)) < len(written(whole, side))
        assert written(whole, side).startswith(written(stopped, side))
        assert one(stopped, "marks", side)["num_tokens"] == one(stopped, "end", side)["num_tokens"]
    assert ask(sides, question) == whole


def test_an_answer_fills_the_context_and_a_prompt_beyond_it_is_refused(sides: LiveSides) -> None:
    events = ask(sides, Question("a" * 200, max_tokens=256, semantics="reroute"))
    for side in ("base", "variant"):
        assert one(events, "end", side)["reason"] in ("length", "stop")
        assert "".join(text for text, _ in one(events, "marks", side)["pieces"]) == written(events, side)
    with pytest.raises(InputError, match="expected fewer than 256, which is all that the engine's context holds"):
        ask(sides, Question("a" * 256, max_tokens=4, semantics="reroute"))


def test_both_draw_alike_and_a_seed_gives_the_same_again(sides: LiveSides) -> None:
    question = Question(PROMPT, max_tokens=12, temperature=1.0, seed=3, semantics="reroute")
    other = Question(PROMPT, max_tokens=12, temperature=1.0, seed=4, semantics="reroute")
    first, again = ask(sides, question), ask(sides, question)
    assert written(first, "base") == written(again, "base") and written(first, "variant") == written(again, "variant")
    assert written(ask(sides, other), "base") != written(first, "base")
    same = LiveSides(sides.engine, sides.render, NamedEdit("none", suppress=()), None)
    events = ask(same, question)
    assert written(events, "base") == written(events, "variant"), "an edit of nothing draws what the base draws"
