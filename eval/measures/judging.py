"""Runs MT-Bench: both arms answer two turns, a judge behind any OpenAI-compatible server rates them, and every
judgement is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eval.answers.arms import Arm, Request, Sampling, digest
from eval.answers.collect import Collector
from eval.errors import JudgeError
from eval.measures.mt_bench import (
    TEMPERATURES,
    Question,
    judge_messages,
    load_judge_prompts,
    load_questions,
    read_rating,
    score,
    turn_means,
    visible_answer,
)
from eval.results import MtBench
from ftri.endpoints import Connection, Endpoint, EndpointError, ask_all, message_text

# How often a judge is asked again when its answer holds no rating, and what share without one still makes a result.
NUM_ASKS = 3
MAX_UNRATED_SHARE = 0.2


@dataclass(frozen=True)
class MtBenchOptions:
    """Which questions, which judge prompts and which judge."""

    questions: str
    judge_prompts: str
    judge: Endpoint
    references: str | None = None
    max_judge_tokens: int = 2048


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

    first = [request(question, 0, (("user", question.turns[0]),)) for question in questions]
    opening = [visible_answer(a.text, a.starts_inside_think) for a in collector.answers(arm, first)]
    second = [
        request(question, 1, (("user", question.turns[0]), ("assistant", answer), ("user", question.turns[1])))
        for question, answer in zip(questions, opening, strict=True)
    ]
    closing = [visible_answer(a.text, a.starts_inside_think) for a in collector.answers(arm, second)]
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
        rating = collector.journal.value(key)["rating"]
        ratings.setdefault(item.arm, {})[item.question_id, item.turn] = float(rating)

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
