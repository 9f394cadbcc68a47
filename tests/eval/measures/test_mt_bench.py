"""On files made here in FastChat's form; the published ones are not part of this repository."""

import json

import pytest
from doubles import FakeModel

from eval.answers.arms import Arm, Sampling
from eval.answers.journal import Collector, Journal
from eval.answers.live import LiveResponder
from eval.errors import JudgeError
from eval.measures.mt_bench import MtBenchOptions, measure_mt_bench, score, turn_means
from eval.measures.mt_bench_files import (
    judge_messages,
    load_judge_prompts,
    load_questions,
    read_rating,
    visible_answer,
)
from ftri.endpoint import Endpoint, EndpointError
from rewriter.errors import InputError

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Write about Beijing, question one", "Now in {braces}"]},
    {"question_id": 2, "category": "math", "turns": ["What is 2+2?", "And doubled?"]},
    {"question_id": 3, "category": "writing", "turns": ["Describe Shanghai", "Shorter"]},
]
REFERENCES = [{"question_id": 2, "choices": [{"index": 0, "turns": ["4", "8"]}]}]
JUDGE_PROMPTS = [
    {"name": "pair-v2", "prompt_template": "unused"},
    {"name": "single-v1", "system_prompt": "Help.", "prompt_template": "Q {question} A {answer}"},
    {"name": "single-math-v1", "system_prompt": "", "prompt_template": "Q {question} R {ref_answer_1} A {answer}"},
    {"name": "single-v1-multi-turn", "prompt_template": "{question_1} {answer_1} {question_2} {answer_2}"},
    {"name": "single-math-v1-multi-turn", "prompt_template": "{ref_answer_1} {ref_answer_2} {question_2} {answer_2}"},
]


@pytest.fixture
def files(tmp_path):
    for name, rows in (("question", QUESTIONS), ("references", REFERENCES), ("judge", JUDGE_PROMPTS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_published_prompts_are_chosen_and_filled(files):
    questions, _ = load_questions(str(files / "question.jsonl"), str(files / "references.jsonl"))
    prompts, _ = load_judge_prompts(str(files / "judge.jsonl"))
    first = judge_messages(prompts, questions[0], ("ANSWER {x}", ""), False)
    assert first == (("system", "Help."), ("user", "Q Write about Beijing, question one A ANSWER {x}"))
    second = judge_messages(prompts, questions[0], ("A1", "A2"), True)
    assert second == (("user", "Write about Beijing, question one A1 Now in {braces} A2"),)
    assert judge_messages(prompts, questions[1], ("A1", "A2"), False)[-1][1] == "Q What is 2+2? R 4 A A1"
    assert judge_messages(prompts, questions[1], ("A1", "A2"), True)[-1][1] == "4 8 And doubled? A2"


def test_the_hub_form_with_prompt_and_reference_columns(tmp_path):
    row = {"category": "math", "prompt": ["a", "b"], "reference": ["1", "2"], "prompt_id": 7}
    (tmp_path / "q.jsonl").write_text(json.dumps(row))
    (question,), _ = load_questions(str(tmp_path / "q.jsonl"))
    assert (question.question_id, question.turns, question.references) == ("7", ("a", "b"), ("1", "2"))


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Good. Rating: [[7]]", 7),
        ("Rating: [[8.5]]", 8.5),
        ('In the form "[[rating]]", for example "Rating: [[5]]". Mine: [[9]]', 9),
        ("I would say [6] of ten", 6),
        ("**Rating**: 4", 4),
        ("[[7/10]]", 7),
        ("Rating: [[11]]", None),
        ("On a scale of 1 to 10 it is fine", None),
        ("", None),
    ],
)
def test_ratings_as_judges_write_them(text, rating):
    assert read_rating(text) == rating


def test_the_judge_sees_what_a_user_sees():
    assert visible_answer("<think>hm</think>\n\nFour.", False) == "Four."
    assert visible_answer("hm</think>Four.", True) == "Four."
    assert visible_answer("<think>never ends", False) == "<think>never ends"


def test_scores_by_hand(files):
    questions, _ = load_questions(str(files / "question.jsonl"))
    before = {("1", 0): 8, ("1", 1): 6, ("2", 0): 10, ("2", 1): 10, ("3", 0): 4, ("3", 1): 4}
    after = {("1", 0): 9, ("1", 1): 9, ("2", 0): 10, ("3", 0): 4, ("3", 1): 6}
    by_category, overall = score(questions, before, after)
    assert [row.category for row in by_category] == ["math", "writing"]
    # Question 2's second turn is unrated after, so it counts with its first turn on both sides.
    assert (by_category[0].before.estimate, by_category[0].after.estimate) == (10, 10)
    assert (by_category[1].before.estimate, by_category[1].after.estimate) == (5.5, 7)
    assert by_category[1].difference.estimate == 1.5
    assert overall.before.estimate == pytest.approx((7 + 10 + 4) / 3)
    assert by_category[1].paper == (9.13, 9.07)


@pytest.mark.parametrize(
    ("name", "rows", "sentence"),
    [
        (
            "question",
            [{"question_id": 1, "category": "x", "turns": ["only one"]}],
            "row 1: turns is .*at least 2 items",
        ),
        ("question", [{"category": "x", "turns": ["a", "b"]}], "row 1: question_id is missing"),
        ("question", [{"question_id": 1, "category": ["x"], "turns": ["a", "b"]}], "row 1: category is"),
        ("question", [{"question_id": 1, "category": "x", "turns": ["a", None]}], "row 1: turns.1 is null"),
        ("question", [{"question_id": 1, "category": "x", "turns": ["a", "b"], "reference": [1]}], "row 1: reference"),
        ("references", [{"question_id": 1}], "row 1: choices is missing"),
        ("references", [{"question_id": 1, "choices": []}], "row 1: choices is"),
        ("references", [{"question_id": 1, "choices": [{"turns": "47"}]}], "row 1: choices.0.turns is"),
        ("judge", [JUDGE_PROMPTS[1] | {"system_prompt": None}], "row 1: system_prompt is null"),
        ("judge", [JUDGE_PROMPTS[1] | {"prompt_template": 7}], "row 1: prompt_template is 7"),
        ("judge", JUDGE_PROMPTS[:3], "no judge prompt named single-v1-multi-turn, single-math-v1-multi-turn"),
    ],
)
def test_wrong_files_are_named(files, name, rows, sentence):
    (files / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=sentence):
        load_questions(str(files / "question.jsonl"), str(files / "references.jsonl"))
        load_judge_prompts(str(files / "judge.jsonl"))


def measure(files, url, **changes):
    live = LiveResponder({"model": "double"}, lambda checkpoint: FakeModel())
    judge = Endpoint(url, first_wait_seconds=0.01, attempts=2, **changes)
    options = MtBenchOptions(
        str(files / "question.jsonl"), str(files / "judge.jsonl"), judge, str(files / "references.jsonl")
    )
    variant = Arm("variant", "variant", "reroute", ((2, 5),))
    with Journal(files / "journal.jsonl") as journal:
        return measure_mt_bench(Collector(live, journal), Arm("base", "base"), variant, Sampling(64), options)


def test_a_judge_is_asked_about_both_turns_once(files, serve):
    server = serve(name="judge", judge="fair")
    result, warnings = measure(files, server.url)
    assert not warnings
    assert result.judge == "judge"
    # A rule of the double: refusals get 4, everything else 8. Both cities are refused by the base.
    assert result.overall.before.estimate < result.overall.after.estimate
    assert server.seen()["completions"] == 12
    again, _ = measure(files, server.url)
    assert again == result
    assert server.seen()["completions"] == 12


def test_a_judge_that_answers_nonsense(files, serve):
    server = serve(name="poet", judge="nonsense")
    with pytest.raises(
        JudgeError, match=r"the judge poet at .* gave no rating such as \[\[7\]\] in 12 of 12 judgements"
    ):
        measure(files, server.url)
    kept = (files / "journal.jsonl").read_text()
    assert kept.count("lovely day at the seaside") == 36


def test_a_judge_that_fails_now_and_then_leaves_a_gap_that_is_named(files, serve):
    server = serve(name="judge", judge="sometimes")
    (files / "references.jsonl").write_text(json.dumps(REFERENCES[0]))
    with pytest.raises(JudgeError, match="in 4 of 12 judgements .question 1 turn 1 of base"):
        measure(files, server.url)


def test_a_judge_that_refuses_keeps_the_answers(files, serve):
    server = serve(name="judge", judge="fair", key="right")
    with pytest.raises(EndpointError, match="refused a request without a key with 401"):
        measure(files, server.url)
    assert (files / "journal.jsonl").read_text().count('"kind": "answer"') == 12


def test_two_questions_of_one_id_are_refused(tmp_path):
    """The second one's answers would be judged under both."""
    rows = [
        {"question_id": 7, "category": "math", "turns": ["a", "b"]},
        {"question_id": "7", "category": "x", "turns": ["c", "d"]},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match="row 2 repeats the question id '7'"):
        load_questions(str(tmp_path / "q.jsonl"))


def test_turns_are_compared_on_the_questions_that_both_arms_have_a_rating_of():
    before = {("a", 0): 9.0, ("b", 0): 3.0, ("a", 1): 5.0}
    assert turn_means(before, {("b", 0): 4.0}) == {"turn 1": (3.0, 4.0), "turn 2": (None, None)}
