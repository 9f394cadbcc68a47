"""What an evaluation costs, reckoned before anything is loaded."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.answers.arms import Answer
from eval.answers.journal import JOURNAL, Journal
from eval.answers.plan import NamedEdit, VariantFolder
from eval.costs import (
    RATE_KEY,
    Announcement,
    EvalCosts,
    MeasuredRate,
    PartCost,
    evaluation_costs,
    halved_by,
    num_passes,
    part_costs,
    sets_by_chance,
)
from eval.errors import JournalError
from eval.options import EvalRequest, RunOptions
from eval.session import Session
from ftri.costs import estimate
from rewriter.console import duration_text

MINIATURE = Path(__file__).resolve().parents[2] / "examples" / "tiny-r1"


def evaluation_of(output):
    """A run on the miniature, with three prompts."""
    return EvalRequest(
        prompts="what-happened:listed",
        limit=3,
        output=output,
        model=str(MINIATURE),
        suppress=str(MINIATURE / "refusal.json"),
    )


def request(tmp_path, **changes):
    options = RunOptions(**changes)
    return EvalRequest(
        prompts="what-happened:listed", output=tmp_path, model="R1", suppress="set.json", options=options
    )


def test_the_defaults_ask_for_tens_of_thousands_of_control_answers(tmp_path):
    parts = part_costs(request(tmp_path), num_prompts=756, num_variants=3, num_safety=650, num_questions=80)
    answers = {part.part: part.answers for part in parts}
    assert answers["base"] == answers["base again (A/A)"] == 756
    assert answers["3 variants"] == 3 * 756
    assert answers["random sets (99 x 3 matchings)"] == 99 * 3 * 250
    assert answers["sets of harm and XSTest"] == 1300 and answers["MT-Bench"] == 320
    assert {part.part for part in parts if part.at_most} == {
        "random sets (99 x 3 matchings)",
        "MT-Bench's judge, at its own server",
    }
    options = halved_by(request(tmp_path), parts, sum(answers.values()))
    assert options[0].startswith("--control-matching ") and any("--controls 49" in option for option in options)


def test_few_prompts_bound_what_random_sets_answer_and_servers_run_none(tmp_path):
    live = part_costs(request(tmp_path, sweep_k=(1, 2)), num_prompts=10, num_variants=1, num_safety=0, num_questions=0)
    assert {part.part: part.answers for part in live}["sweep over k"] == 20
    served = part_costs(
        EvalRequest(
            prompts="p", output=tmp_path, base_url="http://a", tuned_url="http://b", options=RunOptions(sweep_k=(1, 2))
        ),
        num_prompts=10,
        num_variants=1,
        num_safety=0,
        num_questions=0,
    )
    assert [part.part for part in served] == ["base", "base again (A/A)", "1 variant"]
    assert halved_by(request(tmp_path, controls=0), served, 30) == [
        "--max-tokens 512, which cuts long answers off (TRUNCATED)",
        "--limit with half as many prompts",
    ]


def test_a_bound_on_control_prompts_is_advised_only_where_it_bounds(tmp_path):
    for num_prompts, advised in ((756, True), (10, False)):
        parts = part_costs(request(tmp_path), num_prompts=num_prompts, num_variants=1, num_safety=0, num_questions=0)
        options = halved_by(request(tmp_path), parts, sum(part.answers for part in parts))
        assert any("--control-prompts" in option for option in options) == advised


def test_answers_that_end_with_their_label_are_said_to_be_reckoned_whole(tmp_path):
    for whole in (False, True):
        asked = replace(evaluation_of(tmp_path / "new"), options=RunOptions(whole_controls=whole))
        said = evaluation_costs(asked, lambda words: None).sentences()
        assert any("answers that end with their label, about" in line for line in said) != whole
        assert any(line.startswith("less than that, since answers that end") for line in said) != whole


def test_nothing_left_is_said_in_place_of_zeros():
    assert estimate(num_requests=0, num_prompt_tokens=0, max_tokens=8, measured_rate=5.0).sentences() == [
        "nothing is left to do"
    ]


def test_time_goes_by_what_is_expected_where_that_is_known():
    known = {"num_requests": 10, "num_prompt_tokens": 100, "max_tokens": 51}
    assert estimate(**known).seconds is None
    most = estimate(**known, given_rate=10.0, measured_rate=1.0)
    assert (most.most_tokens, most.seconds, most.rate_source) == (600, 60.0, "given")
    expected = estimate(**known, mean_completion_tokens=11.0, measured_rate=10.0)
    assert (expected.expected_tokens, expected.seconds) == (200, 20.0)
    assert expected.node_hours == pytest.approx(20 / 3600)
    assert "200 expected" in expected.sentences()[0]
    assert (duration_text(30), duration_text(600), duration_text(36_000)) == ("30 s", "10 min", "10.0 h")


def test_other_variants_read_the_neutral_text_too_and_the_base_once_for_all_of_them(tmp_path):
    def passes(*others):
        edit = NamedEdit("set", suppress=((1, 3),))
        session = Session("live", None, edit, [], {}, live=object(), others=others)
        return num_passes(request(tmp_path), session)

    assert passes() == 1 + 3
    assert passes(NamedEdit("a"), VariantFolder(tmp_path, "0" * 64)) == 1 + 3 + 1 + 2


def test_everything_that_a_run_reads_and_asks_for_is_counted(tmp_path):
    parts = part_costs(
        request(tmp_path), num_prompts=100, num_variants=1, num_safety=0, num_questions=80, num_finding=20,
        prompt_tokens=30.0, num_neutral=50, neutral_tokens=20.0, num_passes=4, max_judge_tokens=2048,
    )  # fmt: skip
    by_name = {part.part.split(" (")[0]: part for part in parts}
    assert (by_name["base, to find experts"].answers, by_name["base, to find experts"].forced_tokens) == (20, 600)
    divergence = by_name["divergence"]
    assert (divergence.answers, divergence.forced_tokens, divergence.max_tokens) == (50, 4 * 50 * (20 + 64), 64)
    judge = by_name["MT-Bench's judge, at its own server"]
    assert (judge.answers, judge.max_tokens, judge.elsewhere) == (320, 2048, True)
    assert "320 answers of at most 2,048 tokens" in judge.sentence(10)
    random_sets = by_name["random sets"]
    assert (random_sets.answers, random_sets.by_chance) == (99 * 3 * 100, 40 * 3 * 100)
    assert random_sets.forced_tokens == 100 * (30 + 1024)


def test_the_sets_expected_by_chance_are_those_of_the_sequential_test():
    """Beside simulated values of which the variant is one."""
    generator = np.random.default_rng(0)
    ran = []
    for _ in range(4000):
        values = generator.random(100)
        as_many = np.cumsum(values[1:] >= values[0])
        stop = int(np.argmax(as_many >= 10)) + 1 if as_many[-1] >= 10 else 99
        ran.append(stop)
    assert sets_by_chance(99, 10) == 40 and abs(np.mean(ran) - 32.5) < 1
    assert sets_by_chance(5, 10) == 5 and sets_by_chance(0, 10) == 0


def test_what_the_run_takes_is_said_once_when_the_first_part_is_answered():
    said, seen, reckoned, kept = [], [], [], []

    def reckon(**known):
        reckoned.append(known)
        total = estimate(num_requests=10, num_prompt_tokens=100, max_tokens=51, measured_rate=known["measured_rate"])
        return EvalCosts((PartCost("base", 10),), total, total)

    progress = Announcement(lambda *told: seen.append(told), reckon, said.append, kept.append)
    for number in range(1, 5):
        progress("base", number, 4, 30, number * 1.0)
    progress("variant", 1, 1, 30, 1.0)
    assert reckoned == [{"measured_rate": 30.0, "tokens_per_answer": 30.0}]
    assert said[0] == "measured on the first 4 answers: 30 tokens/s; the whole run then is"
    assert said[2].startswith("about 20 s on one node")
    assert len(seen) == 5 and len(said) == 3
    assert kept == [MeasuredRate(tokens_per_second=30.0, tokens_per_answer=30.0)]


def journal_of(folder, rate, num_answers=3):
    """A journal as a run of `folder` leaves it."""
    with Journal(folder / JOURNAL, {"model": "m"}) as journal:
        for number in range(num_answers):
            journal.add_answer(f"a{number}", "base", Answer(f"p{number}", 0, "t", "stop", False, [1], [2]))
        if rate is not None:
            journal.add_value(RATE_KEY, rate)
    return folder / JOURNAL


def test_a_rate_that_an_earlier_run_measured_is_taken_and_its_place_named(tmp_path):
    path = journal_of(tmp_path / "run", {"tokens_per_second": 50.0, "tokens_per_answer": 40.0})
    before = path.read_bytes()
    reckoned = evaluation_costs(evaluation_of(tmp_path / "run"), lambda words: None)
    assert reckoned.total.tokens_per_second == 50.0 and reckoned.num_kept == 3
    assert reckoned.total.expected_tokens is not None and reckoned.total.seconds == reckoned.total.expected_tokens / 50
    said = "\n".join(reckoned.sentences())
    assert f"measured on the first answers of the earlier run in {path}" in said and "3 answers are kept" in said
    assert path.read_bytes() == before
    given = evaluation_costs(evaluation_of(tmp_path / "run"), lambda words: None, 100.0)
    assert given.total.tokens_per_second == 100.0 and given.total.rate_source == "given"


def test_without_an_earlier_rate_it_is_said_how_to_get_one(tmp_path):
    journal_of(tmp_path / "run", None)
    for output in (tmp_path / "new", tmp_path / "run"):
        reckoned = evaluation_costs(evaluation_of(output), lambda words: None)
        assert reckoned.total.seconds is None
        assert any("give --tokens-per-second, or begin" in line for line in reckoned.sentences())
    assert not (tmp_path / "new").exists()


def test_a_damaged_rate_is_one_sentence(tmp_path):
    journal_of(tmp_path / "run", {"tokens_per_second": -1})
    with pytest.raises(
        JournalError, match=r"the value rate-of-first-answers is damaged .*choose another output folder"
    ):
        evaluation_costs(evaluation_of(tmp_path / "run"), lambda words: None)
