"""What is asked of the engine after an edit failed, and what tells the answers of two models apart."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from doubles import FakeModel

from eval.answers.arms import Answer, Arm, Request, Sampling, answer_key
from eval.answers.engine import Decision
from eval.answers.live import Generated, LiveResponder
from eval.answers.plan import NamedEdit, VariantFolder, plan_live
from eval.options import RunOptions
from eval.outcomes.observed import label_answer
from ftri.labels.think_formats import think_format
from ftri.prompts.rendering import Rendered
from rewriter.errors import PlanError

BASE = Arm("base", "base")
VARIANT = Arm("variant", "variant", "reroute", ((2, 5),))
REQUEST = Request("p", 0, (("user", "hello"),), Sampling(8))


class Refusing(FakeModel):
    """Fails at the requests of one arm, and tells whose requests it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Arm] = []

    def generate(
        self, prompts: Sequence[Rendered], sampling: Sequence[Sampling], arms: Sequence[Arm]
    ) -> Iterator[Generated]:
        self.asked += arms
        if VARIANT in arms:
            raise PlanError("layer 2 would run out of experts")
        yield from super().generate(prompts, sampling, arms)


class Opening(FakeModel):
    """Its template opens Mistral's think block."""

    def render(self, messages: Sequence[tuple[str, str]]) -> Rendered:
        return Rendered(f"{super().render(messages).text}[THINK]", [1])


def test_an_edit_that_failed_is_never_in_force() -> None:
    other = Arm("other", "other", "drop", ((1, 1),))
    model = Refusing()
    live = LiveResponder({}, lambda checkpoint: model)
    answers: dict[int, Answer] = {}
    with pytest.raises(PlanError):
        live.answer([VARIANT], [REQUEST], answers.__setitem__)
    assert answers == {}
    # Every request carries its own arm: nothing of the failed one is left behind, in one batch or the next.
    live.answer([other, BASE], [REQUEST, REQUEST], answers.__setitem__)
    assert model.asked == [VARIANT, other, BASE]
    assert answers.keys() == {0, 1}


def test_an_answer_ends_and_begins_by_the_marks_of_the_models_format() -> None:
    prompt = Rendered("<user>How?<assistant>[THINK]", [1])
    mistral, gemma = think_format("mistral"), think_format("gemma4")
    refusal = "I'm sorry, but I can't help with that. Ask something else."
    # Inside the block it may be a thought.
    assert not Decision([prompt], mistral)(0, refusal) and Decision([prompt], gemma)(0, refusal)
    kept: list[Answer] = []
    for told in (mistral, gemma):
        live = LiveResponder({}, lambda checkpoint: Opening(), told)
        live.answer([BASE], [REQUEST], lambda position, answer: kept.append(answer))
    assert [answer.starts_inside_think for answer in kept] == [True, False]
    answer = Answer("p", 0, "The manual says </mm:think> here.[/THINK]I can't help with that.", "stop")
    assert [label_answer(answer, told) for told in (None, mistral)] == ["REASONED", "REFUSED_AFTER_REASONING"]


def test_a_variant_folder_is_its_content_and_not_its_path() -> None:
    def key(path: str, content: str) -> str:
        (arm,) = plan_live(RunOptions(), NamedEdit("e", ((2, 5),)), [VariantFolder(Path(path), content)]).others
        return answer_key({}, arm, REQUEST)

    assert key("out/refusal-off", "a" * 64) == key("moved/refusal-off", "a" * 64)
    assert key("out/refusal-off", "a" * 64) != key("out/refusal-off", "b" * 64)
