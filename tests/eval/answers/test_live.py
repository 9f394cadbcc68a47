"""What is asked of the engine after an edit failed, and what tells the answers of two models apart."""

from pathlib import Path

import pytest
from doubles import FakeModel

from eval.answers.arms import Arm, Request, Sampling, answer_key
from eval.answers.live import LiveResponder
from eval.answers.plan import NamedEdit, VariantFolder, plan_live
from eval.options import RunOptions
from rewriter.errors import PlanError

BASE = Arm("base", "base")
VARIANT = Arm("variant", "variant", "reroute", ((2, 5),))
REQUEST = Request("p", 0, (("user", "hello"),), Sampling(8))


class Refusing(FakeModel):
    """Takes an edit back before it fails at the next one, as an engine does."""

    def edit(self, arm: Arm) -> None:
        self.arm = BASE
        if arm is VARIANT and not hasattr(self, "refused"):
            self.refused = True
            raise PlanError("layer 2 would run out of experts")
        self.arm = arm


def test_an_edit_that_failed_is_not_taken_for_one_in_force() -> None:
    other = Arm("other", "other", "drop", ((1, 1),))
    model = Refusing()
    live = LiveResponder({}, lambda checkpoint: model)
    live.model_for(other)
    with pytest.raises(PlanError):
        live.model_for(VARIANT)
    # Nothing is in force now; without a new edit the base would be measured under this arm's name.
    live.model_for(other)
    assert model.arm is other
    live.model_for(VARIANT)
    assert model.arm is VARIANT
    live.model_for(BASE)
    assert not model.arm.suppress


def test_a_variant_folder_is_its_content_and_not_its_path() -> None:
    def key(path: str, content: str) -> str:
        (arm,) = plan_live(RunOptions(), NamedEdit("e", ((2, 5),)), [VariantFolder(Path(path), content)]).others
        return answer_key({}, arm, REQUEST)

    assert key("out/refusal-off", "a" * 64) == key("moved/refusal-off", "a" * 64)
    assert key("out/refusal-off", "a" * 64) != key("out/refusal-off", "b" * 64)
