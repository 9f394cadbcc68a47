"""Runs MT-Bench: both arms answer two turns, a judge behind any OpenAI-compatible server rates them, and every
judgement is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from pydantic import BaseModel, Field

from eval.answers.arms import Arm, Request, Sampling, digest
from eval.answers.journal import Collector
from eval.answers.plan import sampling_of
from eval.display.words import interval_words
from eval.errors import JudgeError
from eval.measures.measure import Found, Measure, Part, Scene, Shown
from eval.measures.mt_bench_files import (
    HIGHEST_RATING,
    LOWEST_RATING,
    TEMPERATURES,
    Question,
    judge_messages,
    load_judge_prompts,
    load_questions,
    read_rating,
    visible_answer,
)
from eval.measures.paper import MT_BENCH
from eval.options import EvalRequest
from eval.outcomes.statistics import Interval, mean_interval
from ftri.endpoint import Endpoint, EndpointError
from ftri.endpoints import Connection, ask_all, message_text

# How often a judge is asked again when its answer holds no rating, and what share without one still makes a result.
NUM_ASKS = 3
MAX_UNRATED_SHARE = 0.2


class CategoryScore(BaseModel):
    """MT-Bench scores (1..10, mean over both turns) of one category; intervals are over questions."""

    category: str
    num_questions: int
    before: Interval
    after: Interval
    difference: Interval
    paper: tuple[float, float] | None = Field(
        None, description="The paper's (suppressed, original), for reference only."
    )


class MtBench(BaseModel):
    """MT-Bench by a judge, before and after."""

    judge: str
    arm: str
    question_source: dict[str, str | None]
    judge_prompt_source: dict[str, str | None]
    num_questions: int
    categories: list[CategoryScore]
    overall: CategoryScore
    turns: dict[str, tuple[float | None, float | None]]
    unrated: list[str]


@dataclass(frozen=True)
class MtBenchOptions:
    """Which questions, which judge prompts and which judge."""

    questions: str
    judge_prompts: str
    judge: Endpoint
    references: str | None = None
    max_judge_tokens: int = 2048


class Judgement(BaseModel):
    """A judge's answer as the journal keeps it."""

    item: str
    model: str
    rating: float = Field(ge=LOWEST_RATING, le=HIGHEST_RATING)
    text: str


@dataclass(frozen=True)
class Judged:
    """One thing to judge: a turn of a question answered by one arm."""

    question_id: str
    turn: int
    arm: str
    messages: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"question {self.question_id} turn {self.turn + 1} of {self.arm}"


def measure_mt_bench(
    collector: Collector, base: Arm, variant: Arm, sampling: Sampling, options: MtBenchOptions
) -> tuple[MtBench, list[str]]:
    """MT-Bench before and after, and warnings about what stayed unrated.

    Raises:
        InputError: a file is not what it should be.
        EndpointError: the judge or a model's server failed; everything answered until then is kept.
        JudgeError: too many of the judge's answers hold no rating.
    """
    questions, question_table = load_questions(options.questions, options.references)
    prompts, prompt_table = load_judge_prompts(options.judge_prompts)
    todo: list[Judged] = []
    for arm in (base, variant):
        answers = answer_two_turns(collector, arm, questions, sampling)
        for question in questions:
            for turn in (0, 1):
                messages = judge_messages(prompts, question, answers[question.question_id], bool(turn))
                todo.append(Judged(question.question_id, turn, arm.name, messages))
    judge_name, ratings, unrated = judge_all(collector, todo, options)
    warnings = []
    if unrated:
        shown = ", ".join(item.name for item in unrated[:3]) + (
            f" and {len(unrated) - 3} more" if len(unrated) > 3 else ""
        )
        sentence = (
            f"the judge {judge_name} at {options.judge.shown} gave no rating such as [[7]]"
            f" in {len(unrated)} of {len(todo)} judgements"
            f" ({shown})"
        )
        if len(unrated) > MAX_UNRATED_SHARE * len(todo):
            raise JudgeError(f"{sentence}; its answers are kept in {collector.journal.path}")
        warnings.append(f"MT-Bench: {sentence}; these are left out.")
    before, after = ratings.get(base.name, {}), ratings.get(variant.name, {})
    by_category, overall = score(questions, before, after)
    result = MtBench(
        judge=judge_name,
        arm=variant.name,
        question_source={
            "spec": options.questions,
            "sha256": question_table.sha256,
            "revision": question_table.revision,
        },
        judge_prompt_source={
            "spec": options.judge_prompts,
            "sha256": prompt_table.sha256,
            "revision": prompt_table.revision,
        },
        num_questions=len(questions),
        categories=by_category,
        overall=overall,
        turns=turn_means(before, after),
        unrated=[item.name for item in unrated],
    )
    return result, warnings


def answer_two_turns(
    collector: Collector, arm: Arm, questions: Sequence[Question], sampling: Sampling
) -> dict[str, tuple[str, str]]:
    """Both visible answers to every question; the second turn sees the first answer without its think block, as
    R1's template has it."""

    def request(question: Question, turn: int, messages: tuple[tuple[str, str], ...]) -> Request:
        identifier = f"mt-bench/{question.question_id}/{turn + 1}"
        freedom = replace(sampling, temperature=TEMPERATURES.get(question.category, 0.0))
        return Request(identifier, 0, messages, freedom.with_seed_for(0, identifier, 0))

    told = collector.think_format
    first = [request(question, 0, (("user", question.turns[0]),)) for question in questions]
    opening = [visible_answer(a.text, a.starts_inside_think, told) for a in collector.answers(arm, first)]
    second = [
        request(question, 1, (("user", question.turns[0]), ("assistant", answer), ("user", question.turns[1])))
        for question, answer in zip(questions, opening, strict=True)
    ]
    closing = [visible_answer(a.text, a.starts_inside_think, told) for a in collector.answers(arm, second)]
    return {q.question_id: pair for q, pair in zip(questions, zip(opening, closing, strict=True), strict=True)}


def judge_all(
    collector: Collector, todo: Sequence[Judged], options: MtBenchOptions
) -> tuple[str, dict[str, dict[tuple[str, int], float]], list[Judged]]:
    """(judge's model name, arm -> (question id, turn) -> rating, what stayed unrated). Raises: EndpointError."""
    judge = options.judge
    ratings: dict[str, dict[tuple[str, int], float]] = {}
    unrated: list[Judged] = []
    models: set[str] = set()

    async def rate(connection: Connection, position: int, item: Judged) -> None:
        models.add(connection.model)
        key = digest(["judgement", judge.base, connection.model, options.max_judge_tokens, item.messages])[:32]
        if key not in collector.journal:
            judgement = await _ask(connection, item, options.max_judge_tokens, collector)
            if judgement is None:
                unrated.append(item)
                return
            collector.journal.add_value(key, judgement)
        kept = collector.journal.checked(key, Judgement)
        ratings.setdefault(item.arm, {})[item.question_id, item.turn] = kept.rating

    try:
        ask_all(judge, todo, rate)
    except EndpointError as error:
        done = sum(map(len, ratings.values()))
        raise EndpointError(
            f"judge: {error}; {done} of {len(todo)} judgements are kept, run the same command again to go on from there"
        ) from None
    return ", ".join(sorted(models)), ratings, sorted(unrated, key=todo.index)


async def _ask(connection: Connection, item: Judged, max_tokens: int, collector: Collector) -> Mapping[str, Any] | None:
    """One judgement with its rating; None when the judge never gives one (what it said instead is kept)."""
    body = {
        "messages": [{"role": role, "content": content} for role, content in item.messages],
        "temperature": 0.0,
        "max_tokens": max_tokens,
    }
    texts = []
    for _ in range(NUM_ASKS):
        texts.append(message_text(await connection.chat(body), connection.endpoint))
        rating = read_rating(texts[-1])
        if rating is not None:
            return {"item": item.name, "model": connection.model, "rating": rating, "text": texts[-1]}
    collector.journal.add_value(
        digest(["nonsense", connection.endpoint.base, connection.model, item.name, item.messages, texts])[:32],
        {"item": item.name, "rating": None, "texts": texts},
    )
    return None


def score(
    questions: Sequence[Question], before: Mapping[tuple[str, int], float], after: Mapping[tuple[str, int], float]
) -> tuple[list[CategoryScore], CategoryScore]:
    """(scores by category, overall); ratings are by (question id, turn 0 or 1), and a question counts with the
    turns that both arms have."""
    categories = sorted({question.category for question in questions})
    by_category = [
        _score(category, [q for q in questions if q.category == category], before, after, MT_BENCH.get(category))
        for category in categories
    ]
    return by_category, _score("all", questions, before, after, None)


def _score(
    name: str,
    questions: Sequence[Question],
    before: Mapping[tuple[str, int], float],
    after: Mapping[tuple[str, int], float],
    paper: tuple[float, float] | None,
) -> CategoryScore:
    then, now = [], []
    for question in questions:
        turns = [
            turn for turn in (0, 1) if (question.question_id, turn) in before and (question.question_id, turn) in after
        ]
        if turns:
            then.append(sum(before[question.question_id, turn] for turn in turns) / len(turns))
            now.append(sum(after[question.question_id, turn] for turn in turns) / len(turns))
    differences = [late - early for early, late in zip(then, now, strict=True)]
    return CategoryScore(
        category=name,
        num_questions=len(then),
        before=mean_interval(then),
        after=mean_interval(now),
        difference=mean_interval(differences),
        paper=paper,
    )


def turn_means(before: Mapping[tuple[str, int], float], after: Mapping[tuple[str, int], float]) -> dict[str, Any]:
    """Mean rating of each turn over the questions that both arms have a rating of: turn -> (before, after)."""

    def mean(ratings: Mapping[tuple[str, int], float], turn: int) -> float | None:
        chosen = [ratings[key] for key in before.keys() & after.keys() if key[1] == turn]
        return sum(chosen) / len(chosen) if chosen else None

    return {f"turn {turn + 1}": (mean(before, turn), mean(after, turn)) for turn in (0, 1)}


def load(request: EvalRequest) -> MtBenchOptions | None:
    """What was asked for, with every file read once, so that a wrong one is found before hours of answers."""
    if request.mt_bench is None:
        return None
    assert request.judge_url is not None and request.judge_prompts is not None
    load_questions(request.mt_bench, request.references)
    load_judge_prompts(request.judge_prompts)
    judge = Endpoint(
        request.judge_url,
        request.judge_model,
        request.judge_key,
        concurrency=request.concurrency,
        attempts=request.attempts,
        timeout_seconds=request.timeout,
    )
    return MtBenchOptions(request.mt_bench, request.judge_prompts, judge, request.references)


def parts(options: MtBenchOptions | None, scene: Scene) -> Iterable[Part]:
    """Both arms, and the judge."""
    return [] if options is None else [Part("MT-Bench", partial(mt_bench, scene, options))]


def mt_bench(scene: Scene, options: MtBenchOptions) -> Found:
    """Scores before and after."""
    scene.say("MT-Bench")
    plan = scene.plan
    result, warnings = measure_mt_bench(scene.collector, plan.base, plan.primary, sampling_of(scene.options), options)
    return {"mt_bench": result, "warnings": warnings}


def lines(found: MtBench, shown: Shown) -> list[str]:
    """The overall scores."""
    return [
        f"MT-Bench by {found.judge}: {interval_words(found.overall.before)} -> {interval_words(found.overall.after)}"
    ]


def card(found: MtBench, shown: Shown) -> list[tuple[str, str]]:
    """The overall scores."""
    overall = found.overall
    return [
        (
            f"MT-Bench ({overall.num_questions} questions, judge {found.judge}), before, after",
            f"{interval_words(overall.before)}, {interval_words(overall.after)}",
        )
    ]


REPORT = """\
<h2>MT-Bench</h2>
<table>
<tr><th>category</th><th>questions</th><th>base</th><th>variant</th><th>difference</th><th>paper, suppressed / original <br>(for reference only)</th></tr>
{% for row in found.categories + [found.overall] %}
<tr><td>{{ row.category }}</td><td class="n">{{ row.num_questions }}</td><td class="n">{{ words.interval_words(row.before) }}</td><td class="n">{{ words.interval_words(row.after) }}</td><td class="n">{{ words.interval_words(row.difference) }}</td><td class="n">{% if row.paper %}{{ "%.2f / %.2f" | format(row.paper[0], row.paper[1]) }}{% endif %}</td></tr>
{% endfor %}
</table>
<p class="muted">Judge {{ found.judge }}; mean of both turns, 95 % bootstrap intervals over questions.{% if found.unrated %} Unrated: {{ found.unrated | join(", ") }}.{% endif %}</p>
"""  # noqa: E501
MEASURE = Measure(field="mt_bench", load=load, parts=parts, lines=lines, card=card, report=REPORT, place=60)
