"""What an evaluation costs, reckoned before anything is loaded."""

import pytest

from eval.costs import halved_by, part_costs
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
    assert {part.part for part in parts if part.at_most} == {"random sets (99 x 3 matchings)"}
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
