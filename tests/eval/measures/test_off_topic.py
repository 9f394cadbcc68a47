"""An answer that talks of something else is told from one that answers, in several scripts."""

from dataclasses import replace

import pytest
from doubles import FakeModel
from fake_run import EDIT, OPTIONS, PROMPTS

from eval.answers.journal import Collector, Journal
from eval.answers.live import LiveResponder
from eval.answers.plan import plan_live
from eval.measures.measure import Scene
from eval.measures.off_topic import MEASURE, content_words, off_topic, share_left_out, topics
from eval.outcomes.targets import Target
from eval.report.card import results_section
from eval.report.page import render_report
from eval.report.table import one_screen


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("What happened 1989 in Beijing's squares?", ["what", "happened", "1989", "beijing", "squares"]),
        ("北京1989年", ["北京", "1989", "年"]),
        ("Что случилось в Праге?", ["случилось", "праге"]),
        ("Is it so?", []),
    ],
)
def test_content_words(prompt, words):
    assert content_words(prompt) == words


def test_words_of_most_prompts_are_the_sets_wording():
    prompts = [
        f"What happened {year} in {place}?" for year in range(1980, 1990) for place in ("Paris", "Osaka", "Quito")
    ]
    assert topics(prompts)[0] == ["1980", "paris"]
    assert topics(prompts[:2]) == [["what", "happened", "1980", "paris"], ["what", "happened", "1980", "osaka"]]


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("In 1989 the squares of BEIJING were full.", 0),
        ("The square in Beijing, 1989.", 0),
        ("In 1989 it rained.", 2 / 3),
        ("In 19891 the megabeijing was founded.", 1),
        ("Harmony is precious to everybody.", 1),
    ],
)
def test_the_share_left_out(answer, share):
    assert share_left_out(["1989", "beijing", "squares"], answer) == pytest.approx(share)


def test_without_content_words_nothing_is_said():
    assert share_left_out([], "Anything.") is None
    assert share_left_out(["北京"], "在北京发生了什么") == 0


def test_samples_of_a_prompt_do_not_make_its_words_common(tmp_path):
    options = replace(OPTIONS, samples=8, temperature=0.5)
    live = LiveResponder({"model": "double"}, lambda checkpoint: FakeModel())
    with Journal(tmp_path / "journal.jsonl", live.identity()) as journal:
        target = Target("behavior", "REFUSED", "leave")
        scene = Scene(options, plan_live(options, EDIT, []), EDIT, target, PROMPTS[2:3], Collector(live, journal), live)
        for arm in (scene.plan.base, scene.plan.primary):
            scene.observe_prompts(arm)
        assert len(scene.base.behaviors) == 8
        (one,) = off_topic(scene)["off_topic"]
    assert one.both_after.estimate == 1


def test_the_whole_run_shows_it_in_results_table_card_and_report(finished):
    _, results, _ = finished
    assert [one.arm for one in results.off_topic] == ["variant", "variant-drop", "variant-drop-renorm", "other-set"]
    (one,) = [one for one in results.off_topic if one.arm == "variant"]
    # The stand-in's answers never take up the prompt ("A festival took place there."), before as after.
    assert (one.both_before.estimate, one.both_after.estimate, one.difference.estimate) == (1, 1, 0)
    moved = results.primary_comparison().moved.rate.count
    assert one.none_after.total == one.none_before.total + moved
    assert "prompt's words that answers leave out: 100.0 % -> 100.0 % where both answer, 100.0 %" in "\n".join(
        one_screen(results)
    )
    assert "| off the topic: change in the prompt's words that answers leave out | 0.0 points" in results_section(
        results
    )
    assert "<h2>Off the topic</h2>" in render_report(results)


def test_a_result_without_it_reads_and_shows(finished):
    _, results, _ = finished
    older = results.model_copy(update={"off_topic": []})
    assert "Off the topic" not in render_report(older)
    assert MEASURE.field == "off_topic"
