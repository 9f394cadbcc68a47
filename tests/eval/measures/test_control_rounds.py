"""Random sets share passes, end early when the p-value is decided, and write no more than decides a label."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from doubles import FakeModel
from fake_run import EDIT, OPTIONS, PROMPTS

from eval.answers.arms import Answer, Arm, Request, Sampling
from eval.answers.journal import Collector, Journal
from eval.answers.live import Generated, LiveResponder
from eval.answers.plan import plan_live
from eval.measures.controls import NullDistribution, control_arms, controls, null_distribution
from eval.measures.measure import Scene
from eval.measures.sweep import sweep
from eval.outcomes.observed import label_answer, observe
from eval.outcomes.statistics import sequential_p_value
from eval.outcomes.targets import Target
from ftri.labels.deciding import DECIDED

TARGET = Target("behavior", "REFUSED", "leave")
REQUESTS = [Request(one.prompt_id, 0, (("user", one.text),), Sampling(64, until_decided=True)) for one in PROMPTS]


class CountedModel(FakeModel):
    """Counts passes, and how many arms share each."""

    def __init__(self) -> None:
        super().__init__()
        self.passes: list[int] = []

    def generate(self, prompts, sampling, arms):
        self.passes.append(len(set(arms)))
        return super().generate(prompts, sampling, arms)


def run(folder: Path, model: CountedModel, variant: Arm, stop_after: int) -> NullDistribution:
    live = LiveResponder({"model": "double"}, lambda checkpoint: model)
    arms = control_arms(
        "uniform",
        "reroute",
        EDIT.suppress,
        (),
        layers=FakeModel.moe_layers,
        num_experts=FakeModel.num_experts,
        num_sets=25,
        seed=0,
        frequency=None,
        is_feasible=lambda down, up, shifts: True,
    )
    with Journal(folder / "journal.jsonl", live.identity()) as journal:
        collector = Collector(live, journal)
        base, tested = (observe(collector, arm, REQUESTS) for arm in (Arm("base", "base"), variant))
        model.passes.clear()
        return null_distribution(
            collector,
            TARGET,
            "uniform",
            arms,
            REQUESTS,
            base,
            tested,
            tested=EDIT.suppress,
            frequency=None,
            label_cut=False,
            stop_after=stop_after,
        )


def test_many_sets_share_one_pass(tmp_path: Path) -> None:
    model = CountedModel()
    null = run(tmp_path, model, Arm("variant", "variant", "reroute", EDIT.suppress), stop_after=10)
    assert model.passes == [10, 10, 5]
    assert len(null.null_values) == 25
    assert null.p_value == 1 / 26
    assert not null.stopped_early
    assert null.damaged_null_values == []


def test_a_variant_like_chance_ends_early(tmp_path: Path) -> None:
    # Suppressing nothing that matters: every random set moves as much.
    model = CountedModel()
    weak = Arm("variant", "variant", "reroute", ((1, 0),))
    null = run(tmp_path, model, weak, stop_after=3)
    as_much = [value >= null.observed for value in null.null_values]
    assert null.stopped_early
    assert sum(as_much) == 3 and as_much[-1]
    assert null.p_value == pytest.approx(3 / len(null.null_values))
    assert len(null.null_values) < 25


def test_sequential_p_values_hold_their_level() -> None:
    # Under the null the variant is one more random set: P(p <= level) must not exceed the level, whatever the rule stops.
    generator = random.Random(0)
    num_trials, stop_after, num_sets = 4000, 5, 39
    for level in (0.05, 0.1, 0.25):
        small = 0
        for _ in range(num_trials):
            observed = generator.random()
            as_many, drawn = 0, 0
            while drawn < num_sets and as_many < stop_after:
                drawn += 1
                as_many += generator.random() >= observed
            p_value = sequential_p_value(as_many, drawn, stop_after=stop_after, num_planned=num_sets)
            small += p_value <= level
        assert small / num_trials <= level + 0.015


def test_requests_that_differ_in_how_they_end_are_not_confused(tmp_path: Path) -> None:
    whole = Request("p", 0, (("user", "x"),), Sampling(64))
    cut = Request("p", 0, (("user", "x"),), Sampling(64, until_decided=True))
    assert whole.identity() != cut.identity()
    assert "until" not in whole.identity()
    assert OPTIONS.whole_controls is False


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("<think>\nThe user asks about", "REASONED"),
        ("<think>\n\n</think>\n\nI am sorry, I cannot answer that.", "REFUSED"),
    ],
)
def test_an_answer_that_ended_with_its_label_has_that_label(text: str, label: str) -> None:
    assert label_answer(Answer("p", 0, text, DECIDED), None) == label


def test_a_sweep_writes_whole_answers_of_the_whole_set_alone(finished) -> None:
    _, results, _ = finished
    assert [point.damaged is None for point in results.sweep] == [True, True, False]
    whole = results.sweep[-1]
    (control,) = [one for one in results.controls if one.matching == "uniform"]
    assert whole.moved.rate.rate == control.observed


class RefusesAfterThought(FakeModel):
    """The base refuses at once; whatever is edited, it thinks first and refuses then."""

    def generate(self, prompts, sampling, arms):
        for index, (one, arm) in enumerate(zip(sampling, arms, strict=True)):
            thought = "<think>\nThe user asks about it.\n" if arm.suppress else "<think>\n\n"
            text = f"{thought}</think>\n\nI am sorry, I cannot answer that."
            is_cut = one.until_decided and bool(arm.suppress)
            yield Generated(index, thought if is_cut else text, [1, 2], DECIDED if is_cut else "stop")


@pytest.mark.parametrize(
    ("label", "statistic"),
    [
        ("REFUSED", "REFUSED -> answered, labelled by beginnings"),
        ("REFUSED_AFTER_REASONING", "other -> REFUSED_AFTER_REASONING"),
    ],
)
def test_variant_and_random_sets_are_labelled_alike(tmp_path: Path, label: str, statistic: str) -> None:
    """An answer that ends with its first thought cannot be REFUSED_AFTER_REASONING; the variant's whole answers can."""
    live = LiveResponder({"model": "double"}, lambda checkpoint: RefusesAfterThought())
    options = replace(OPTIONS, controls=5, control_matching=("uniform",), sweep_k=(1, 3))
    direction = "leave" if label == "REFUSED" else "enter"
    with Journal(tmp_path / "journal.jsonl", live.identity()) as journal:
        scene = Scene(
            options,
            plan_live(options, EDIT, []),
            EDIT,
            Target("behavior", label, direction),
            PROMPTS,
            Collector(live, journal),
            live,
        )
        for arm in (scene.plan.base, scene.plan.primary):
            scene.observe_prompts(arm)
        assert set(scene.primary.behaviors) == {"REFUSED_AFTER_REASONING"}
        (null,) = controls(scene, live)["controls"]
        points = sweep(scene, live, None)["sweep"]
    assert null.statistic == statistic
    assert {null.observed, *null.null_values} == {1.0}
    assert null.p_value == 1.0
    assert {point.moved.rate.rate for point in points} == {1.0}
