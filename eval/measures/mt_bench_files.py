"""MT-Bench's questions, judge prompts and ratings: reading the published files, filling the prompts. No network here.

Files as FastChat publishes them: question.jsonl (question_id, category, turns, reference), reference answers (question_id,
choices), and judge_prompts.jsonl, of which the `single-v1` rows are used: two turns, each plain or with reference answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from ftri.labels.think_formats import ThinkFormat, parse_response
from ftri.prompts.tables import Table, load_table
from rewriter.errors import InputError, first_problem

Row = TypeVar("Row", bound=BaseModel)
# FastChat's own choice: categories whose answers are checked against a reference, and how freely each category is answered.
REFERENCE_CATEGORIES = frozenset({"math", "reasoning", "coding"})
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
# (second turn?, with reference?) -> row of judge_prompts.jsonl.
JUDGE_PROMPTS = {
    (False, False): "single-v1",
    (False, True): "single-math-v1",
    (True, False): "single-v1-multi-turn",
    (True, True): "single-math-v1-multi-turn",
}
LOWEST_RATING, HIGHEST_RATING = 1.0, 10.0
# "[[7]]" as asked for, else "[7]" or "Rating: 7", which judges write instead.
RATINGS = (
    re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?\]\]"),
    re.compile(r"\[\s*(\d+(?:\.\d+)?)\s*\]"),
    re.compile(r"\brating\W{1,6}(\d+(?:\.\d+)?)\b(?!\s*(?:to|-)\s*\d)", re.IGNORECASE),
)


@dataclass(frozen=True)
class Question:
    """One question of two turns, with reference answers where the set has them."""

    question_id: str
    category: str
    turns: tuple[str, str]
    references: tuple[str, ...]


@dataclass(frozen=True)
class JudgePrompt:
    """One published judge prompt."""

    name: str
    system: str
    template: str


Text = Annotated[str, Field(min_length=1)]
Identifier = str | int


class QuestionRow(BaseModel):
    """A row of question.jsonl, or of a Hub set, whose columns are called prompt and prompt_id."""

    model_config = ConfigDict(strict=True)

    question_id: Annotated[Identifier, Field(validation_alias=AliasChoices("question_id", "prompt_id"))]
    category: Text
    turns: Annotated[list[Text], Field(validation_alias=AliasChoices("turns", "prompt"), min_length=2, max_length=2)]
    reference: list[str] | str | None = None


class ReferenceChoice(BaseModel):
    """One reference answer, turn by turn."""

    model_config = ConfigDict(strict=True)

    turns: list[str]


class ReferenceRow(BaseModel):
    """A row of a file of reference answers."""

    model_config = ConfigDict(strict=True)

    question_id: Identifier
    choices: Annotated[list[ReferenceChoice], Field(min_length=1)]


class JudgePromptRow(BaseModel):
    """A row of judge_prompts.jsonl."""

    model_config = ConfigDict(strict=True)

    name: str
    system_prompt: str = ""
    prompt_template: Text


def load_questions(spec: str, references: str | None = None) -> tuple[list[Question], Table]:
    """Read questions from a file or a Hub dataset (`turns` or `prompt` columns), with references from a second file where given.

    Raises: InputError when a question has not two turns, no category or no id of its own, or a reference file lacks its fields.
    """
    table = load_table(spec)
    given = _load_references(references) if references else {}
    questions: list[Question] = []
    for number, document in enumerate(table.rows, start=1):
        row = _row(QuestionRow, document, table, number)
        if any(str(row.question_id) == one.question_id for one in questions):
            found = str(row.question_id)[:80]
            raise InputError(f"{table.name}: row {number} repeats the question id {found!r}; ids must be unique")
        own = [row.reference] if isinstance(row.reference, str) else row.reference or []
        chosen = given.get(str(row.question_id), tuple(own))
        turns = (row.turns[0], row.turns[1])
        questions.append(Question(str(row.question_id), row.category, turns, tuple(filter(None, chosen))))
    return questions, table


def _load_references(spec: str) -> dict[str, tuple[str, ...]]:
    table = load_table(spec)
    rows = [_row(ReferenceRow, document, table, number) for number, document in enumerate(table.rows, start=1)]
    return {str(row.question_id): tuple(row.choices[0].turns) for row in rows}


def load_judge_prompts(spec: str) -> tuple[dict[str, JudgePrompt], Table]:
    """Read the four `single-v1` prompts. Raises: InputError that names the ones that are missing."""
    table = load_table(spec)
    prompts = {}
    for number, document in enumerate(table.rows, start=1):
        if document.get("name") in JUDGE_PROMPTS.values():
            row = _row(JudgePromptRow, document, table, number)
            prompts[row.name] = JudgePrompt(row.name, row.system_prompt, row.prompt_template)
    lacking = [name for name in JUDGE_PROMPTS.values() if name not in prompts]
    if lacking:
        raise InputError(
            f"{table.name}: has no judge prompt named {', '.join(lacking)}, as FastChat's judge_prompts.jsonl has"
        )
    return prompts, table


def _row(kind: type[Row], document: Mapping[str, Any], table: Table, number: int) -> Row:
    """A row of a published file, checked."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        raise InputError(f"{table.name}: row {number}: {first_problem(error)}") from None


def visible_answer(text: str, starts_inside_think: bool, think_format: ThinkFormat | None = None) -> str:
    """What a user and a judge see of a raw answer: the part after the think block; all of it when there is no block or no end."""
    parsed = parse_response(text, starts_inside_think, think_format)
    if parsed is None or parsed.answer is None:
        return text.strip()
    return parsed.answer


def judge_messages(
    prompts: Mapping[str, JudgePrompt], question: Question, answers: Sequence[str], second_turn: bool
) -> tuple[tuple[str, str], ...]:
    """The messages to the judge about one turn, from the published prompt that fits the question."""
    with_reference = question.category in REFERENCE_CATEGORIES and len(question.references) > int(second_turn)
    prompt = prompts[JUDGE_PROMPTS[second_turn, with_reference]]
    values = {
        "question": question.turns[0],
        "answer": answers[0],
        "question_1": question.turns[0],
        "answer_1": answers[0],
    }
    if second_turn:
        values |= {"question_2": question.turns[1], "answer_2": answers[1]}
    for number, reference in enumerate(question.references, start=1):
        values[f"ref_answer_{number}"] = reference
    system = (("system", prompt.system),) if prompt.system else ()
    return (*system, ("user", fill(prompt, values)))


def fill(prompt: JudgePrompt, values: Mapping[str, str]) -> str:
    """Put values into a template's `{name}` places; braces inside the values are left as they are. Raises: InputError."""

    def put(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise InputError(
                f"judge prompt {prompt.name!r} has a place {{{match[1][:40]}}} for which there is no value"
            )
        return values[match[1]]

    return re.sub(r"\{(\w+)\}", put, prompt.template)


def read_rating(judgement: str) -> float | None:
    """The rating in a judge's answer, 1..10; None when it holds none."""
    for pattern in RATINGS:
        found = pattern.findall(judgement)
        if found:
            # The last one: judges repeat the instruction's example before their own.
            rating = float(found[-1])
            return rating if LOWEST_RATING <= rating <= HIGHEST_RATING else None
    return None
