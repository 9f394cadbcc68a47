"""What an evaluation costs, reckoned before anything is loaded."""

import numpy as np
import pytest

from eval.costs import Announcement, EvalCosts, PartCost, halved_by, part_costs, sets_by_chance
from eval.options import EvalRequest, RunOptions
from ftri.costs import estimate
from rewriter.console import duration_text


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
    assert [part.part for part in served] == ["base", "base again (A/A)", "1 variants"]
    assert halved_by(request(tmp_path, controls=0), served, 30) == [
        "--max-tokens 512, which cuts long answers off (TRUNCATED)",
        "--limit with half as many prompts",
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
    said, seen, reckoned = [], [], []

    def reckon(**known):
        reckoned.append(known)
        total = estimate(num_requests=10, num_prompt_tokens=100, max_tokens=51, measured_rate=known["measured_rate"])
        return EvalCosts((PartCost("base", 10),), total, total)

    progress = Announcement(lambda *told: seen.append(told), reckon, said.append)
    for number in range(1, 5):
        progress("base", number, 4, 30, number * 1.0)
    progress("variant", 1, 1, 30, 1.0)
    assert reckoned == [{"measured_rate": 30.0, "tokens_per_answer": 30.0}]
    assert said[0] == "measured on the first 4 answers: 30 tokens/s; the whole run then is"
    assert said[2].startswith("about 20 s on one node")
    assert len(seen) == 5 and len(said) == 3
