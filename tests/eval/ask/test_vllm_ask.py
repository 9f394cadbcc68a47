"""The page's answers from a real vLLM engine on the miniature: marks against the engine's own recording."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.answers.plan import NamedEdit
from eval.ask.desk import Asked
from eval.ask.live import LiveSides
from eval.ask.question import Question
from ftri.engine.edits import RouterEdit
from ftri.engine.engine import Engine, Sampling
from ftri.prompts.rendering import make_renderer
from rewriter.errors import InputError
from rewriter.expert_set import ExpertSet

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

MODEL = Path(__file__).parents[3] / "examples" / "tiny-r1"
PAIRS = tuple(ExpertSet.load(MODEL / "refusal.json").model_pairs((2, 3, 4)))
# float32, so that the order of a sum never decides between two experts.
ARGUMENTS = {"dtype": "float32", "max_model_len": 256, "max_num_seqs": 8}
PROMPT = "What happened in 1989 at Tiananmen Square?"
OTHER_PROMPT = "What happened in 2010 in London?"


@pytest.fixture(scope="module")
def sides() -> Iterator[LiveSides]:
    engine = Engine(str(MODEL), record=True, live_edits=True, engine_arguments=ARGUMENTS)
    found = LiveSides(engine, make_renderer(MODEL).conversation, NamedEdit("refusal", suppress=PAIRS), None)
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
    question = Question(PROMPT, max_tokens=24, semantics=semantics)  # type: ignore[arg-type]
    events = ask(sides, question)
    engine, layers = sides.engine, list(sides.engine.layout.moe_layers)
    prompt = sides._prompt(question)
    edit = RouterEdit(question.semantics, suppress=PAIRS)
    base, variant = (next(engine.generate([prompt], Sampling(max_tokens=24), edit=one)) for one in (None, edit))
    assert (written(events, "base"), written(events, "variant")) == (base.text, variant.text)
    # The paper's own semantics refuse this question all the same; the other two answer it.
    assert (base.text == variant.text) is (semantics == "drop-renorm")
    whole = replace(prompt, token_ids=[*prompt.token_ids, *variant.token_ids])
    reading = next(engine.generate([whole], Sampling(max_tokens=1)))
    num_prompt = len(prompt.token_ids)
    for side, experts, num_tokens in (
        ("prompt", base.experts[:num_prompt], num_prompt),
        ("base", base.experts[num_prompt:], len(base.token_ids) - (base.finish_reason == "stop")),
        ("variant", reading.experts[num_prompt:], len(variant.token_ids) - (variant.finish_reason == "stop")),
    ):
        by_token = [
            [n for n, (layer, expert) in enumerate(PAIRS) if expert in row[layers.index(layer)]]
            for row in experts[:num_tokens]
        ]
        counts = {n: sum(n in marked for marked in by_token) for n in range(len(PAIRS))}
        found = one(events, "marks", side)
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
    events = ask(sides, Question("What happened? " * 60, max_tokens=256, semantics="reroute"))
    for side in ("base", "variant"):
        assert one(events, "end", side)["reason"] in ("length", "stop")
        assert "".join(text for text, _ in one(events, "marks", side)["pieces"]) == written(events, side)
    with pytest.raises(InputError, match="expected fewer than 256, which is all that the engine's context holds"):
        ask(sides, Question("What happened? " * 200, max_tokens=4, semantics="reroute"))


def test_sampling_that_vllm_refuses_is_a_sentence_and_the_engine_goes_on(sides: LiveSides) -> None:
    with pytest.raises(InputError, match=r"vLLM refuses the sampling: temperature must be in \[0, 2\], got 3.0"):
        ask(sides, Question(PROMPT, max_tokens=4, temperature=3.0, semantics="reroute"))
    assert not sides.is_dead
    assert written(ask(sides, Question(PROMPT, max_tokens=9, semantics="reroute")), "base")


def test_a_seed_gives_the_same_again_and_both_draw_alike(sides: LiveSides) -> None:
    question = Question(PROMPT, max_tokens=12, temperature=2.0, seed=3, semantics="reroute")
    first, again, other = (ask(sides, one) for one in (question, question, replace(question, seed=4)))
    for side in ("base", "variant"):
        assert written(first, side) == written(again, side) != written(other, side)
    # Where the base selects none of the set's experts the edit changes nothing, the numbers drawn included.
    events = ask(sides, Question(OTHER_PROMPT, max_tokens=40, temperature=1.0, seed=3, semantics="reroute"))
    assert written(events, "base") == written(events, "variant")
    assert one(events, "marks", "base")["num_marked"] == one(events, "marks", "variant")["num_marked"] == 0
