"""What is asked of the engine after an edit failed, and what tells the answers of two models apart."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from doubles import FakeModel

from eval.answers.arms import Answer, Arm, Request, Sampling, answer_key
from eval.answers.live import Generated, LiveResponder
from eval.answers.plan import NamedEdit, VariantFolder, plan_live
from eval.options import RunOptions
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


def test_a_variant_folder_is_its_content_and_not_its_path() -> None:
    def key(path: str, content: str) -> str:
        (arm,) = plan_live(RunOptions(), NamedEdit("e", ((2, 5),)), [VariantFolder(Path(path), content)]).others
        return answer_key({}, arm, REQUEST)

    assert key("out/refusal-off", "a" * 64) == key("moved/refusal-off", "a" * 64)
    assert key("out/refusal-off", "a" * 64) != key("out/refusal-off", "b" * 64)
