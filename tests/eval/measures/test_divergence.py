"""How far other variants are from the base: one reading by each, one load a checkpoint, and nothing twice."""

from doubles import FakeModel
from fake_run import EDIT, OPTIONS, PROMPTS

from eval.answers.journal import Collector, Journal
from eval.answers.live import LiveResponder
from eval.answers.plan import NamedEdit, VariantFolder, plan_live
from eval.measures import divergence
from eval.measures.measure import Scene
from eval.outcomes.targets import Target
from ftri.prompts.sets import PromptRecord, PromptSet

NEUTRAL = PromptSet([PromptRecord(f"n/{n}", f"Tell me about the number {n}.", {}) for n in range(8)], {"spec": "n"})


def run(folder, others):
    """(what was found, the checkpoints in the order of their loads, how often each read the text) of one run."""
    loads, readings = [], []

    class Counted(FakeModel):
        def __init__(self, checkpoint):
            super().__init__()
            self.checkpoint = checkpoint

        def score(self, arm, sequences, num_listed, *, routing):
            readings.append((self.checkpoint, arm.name))
            return super().score(arm, sequences, num_listed, routing=routing)

    def load(checkpoint):
        loads.append(checkpoint)
        return Counted(checkpoint)

    live = LiveResponder({"model": "double"}, load)
    found = {"divergences": [], "comparisons": []}
    with Journal(folder / "journal.jsonl", live.identity()) as journal:
        plan = plan_live(OPTIONS, EDIT, others)
        target = Target("behavior", "REFUSED", "leave")
        scene = Scene(
            options=OPTIONS,
            plan=plan,
            edit=EDIT,
            target=target,
            prompts=PROMPTS,
            collector=Collector(live, journal),
            live=live,
        )
        scene.observe_prompts(plan.base)
        for part in divergence.parts(NEUTRAL, scene):
            for name, values in part.work().items():
                found[name] = [*found.get(name, []), *values]
    return found, loads, readings


def test_each_variant_reads_the_text_once_and_each_checkpoint_is_loaded_once(tmp_path):
    others = [
        NamedEdit("set", suppress=((1, 1),)),
        VariantFolder(tmp_path / "one", "1" * 64),
        VariantFolder(tmp_path / "two", "2" * 64),
    ]
    found, loads, readings = run(tmp_path, others)
    paths = [str(tmp_path / "one"), str(tmp_path / "two")]
    assert [one.arm for one in found["divergences"]] == ["set", "one", "two"]
    assert [one.after for one in found["comparisons"]] == ["one", "two"]
    assert loads == [None, *paths]
    assert readings == [(None, "base"), (None, "set"), (paths[0], "one"), (paths[1], "two")]
    # The stand-in's checkpoints answer as its base.
    assert [one.answer_tokens.estimate > 0 for one in found["divergences"]] == [True, False, False]
    again, loads, readings = run(tmp_path, others)
    assert again["divergences"] == found["divergences"] and loads == [] and readings == []


def test_the_base_reads_before_a_checkpoint_takes_its_place(tmp_path):
    _, loads, readings = run(tmp_path, [VariantFolder(tmp_path / "one", "1" * 64)])
    assert loads == [None, str(tmp_path / "one")]
    assert readings == [(None, "base"), (str(tmp_path / "one"), "one")]


def test_without_other_variants_nothing_is_read(tmp_path):
    assert run(tmp_path, [])[2] == []
