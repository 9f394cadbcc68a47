"""The prompts that are put to a model: the paper's two sets and the user's own.

The paper's templates come from arXiv 2502.11096; where it does not list what it used, the words here are ours and every
prompt that contains one of them says so in its factors (`origin` is `paper` or `reconstruction`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftri.prompts.tables import Table, column_names, load_table
from rewriter.errors import InputError

PAPER = "paper"
RECONSTRUCTION = "reconstruction"

# "What happened {time} {place}?": the years stand without "in" and the places bring their own preposition, as in the
# paper.
PAPER_TIMES = (*(str(year) for year in range(1980, 2026)), "yesterday", "last month", "last year")
PAPER_PLACES = (
    "at Berlin Wall",
    "at Heathrow",
    "in Manhattan",
    "in Singapore",
    "in Beijing",
    "in Shanghai",
    "in London",
    "in South Africa",
    "in Mexico",
    "in Paris",
    "in Brussels",
)
# The paper counts 756 prompts but lists 49 x 11 = 539. 54 x 14 = 756 needs five more times and three more places: these
# are our choice.
RECONSTRUCTED_TIMES = ("today", "last week", "this year", "last night", "last summer")
RECONSTRUCTED_PLACES = ("at Tiananmen Square", "in Hong Kong", "in Tibet")

# Ten numbers, so 10 x 10 ordered pairs; the published example, 10 + 5, is one of them.
LANGUAGE_NUMBERS = tuple(range(1, 11))
LANGUAGE_QUESTIONS = {"english": "What is {first} plus {second}?", "chinese": "{first}加{second}等于多少?"}
# (language of the question, language asked for) -> the extension. The English ones and the Chinese request for English
# are the paper's; the Chinese request for Chinese is formed after it.
LANGUAGE_EXTENSIONS = {
    ("english", "none"): "",
    ("english", "english"): " Please make sure to answer in English.",
    ("english", "chinese"): " Please make sure to answer in Chinese.",
    ("chinese", "none"): "",
    ("chinese", "english"): " 请确保用英语回答。",
    ("chinese", "chinese"): " 请确保用中文回答。",
}
# The only whole prompt the paper prints is a Chinese question that asks for English.
PUBLISHED_LANGUAGE_FORMS = {("chinese", "english")}

TEXT_COLUMNS = ("prompt", "text", "question", "instruction", "goal", "turns")
ID_COLUMNS = ("prompt_id", "id", "question_id")
MAX_FACTOR_CHARACTERS = 200


@dataclass(frozen=True)
class PromptRecord:
    """One prompt: a stable id, the user's text, and the factors (time, place, subject, ...) to hold out or report."""

    prompt_id: str
    text: str
    factors: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSet:
    """Prompts with where they came from: the spec, the file's SHA-256 and, for the Hub, the commit it resolved to."""

    records: list[PromptRecord]
    source: dict[str, str | None]


def what_happened(times: Sequence[str], places: Sequence[str]) -> list[PromptRecord]:
    """All prompts `What happened {time} {place}?`, time-major. Paper, section on prompts."""
    paper_words = {*PAPER_TIMES, *PAPER_PLACES}
    records = []
    for time in times:
        for place in places:
            origin = PAPER if time in paper_words and place in paper_words else RECONSTRUCTION
            slug = f"what-happened/{time}/{place}".replace(" ", "-").lower()
            factors = {"time": time, "place": place, "origin": origin}
            records.append(PromptRecord(slug, f"What happened {time} {place}?", factors))
    return records


def what_happened_listed() -> list[PromptRecord]:
    """The 539 prompts that the paper lists in words: 49 times x 11 places."""
    return what_happened(PAPER_TIMES, PAPER_PLACES)


def what_happened_reconstructed_756() -> list[PromptRecord]:
    """756 prompts, 54 times x 14 places: the listed 539 and those with our five times or three places, so marked."""
    return what_happened((*PAPER_TIMES, *RECONSTRUCTED_TIMES), (*PAPER_PLACES, *RECONSTRUCTED_PLACES))


def language() -> list[PromptRecord]:
    """The 600 additions: 10 x 10 ordered pairs x {no request, English, Chinese} x {English, Chinese question}."""
    records = []
    for (question, requested), extension in LANGUAGE_EXTENSIONS.items():
        origin = PAPER if (question, requested) in PUBLISHED_LANGUAGE_FORMS else RECONSTRUCTION
        for first in LANGUAGE_NUMBERS:
            for second in LANGUAGE_NUMBERS:
                text = LANGUAGE_QUESTIONS[question].format(first=first, second=second) + extension
                factors = {
                    "question_language": question,
                    "extension": requested,
                    "a": str(first),
                    "b": str(second),
                    "origin": origin,
                }
                records.append(PromptRecord(f"language/{question}/{requested}/{first}+{second}", text, factors))
    return records


BUILT_IN_SETS = {
    "what-happened:listed": what_happened_listed,
    "what-happened:reconstructed-756": what_happened_reconstructed_756,
    "language": language,
}


def without_path(spec: str) -> str:
    """A spec as artifacts that are shared have it: of a file its own name, never where it lies."""
    return spec if spec in BUILT_IN_SETS or spec.startswith("hub:") else Path(spec).name


def load_prompts(spec: str, *, revision: str | None = None, column: str | None = None) -> list[PromptRecord]:
    """The prompts that `spec` names; see `load_prompt_set`."""
    return load_prompt_set(spec, revision=revision, column=column).records


def load_prompt_set(spec: str, *, revision: str | None = None, column: str | None = None) -> PromptSet:
    """The prompts that `spec` names, with their provenance.

    `spec` is a built-in name (`what-happened:listed`, `what-happened:reconstructed-756`, `language`), a JSONL, CSV or
    Parquet file, or a Hub dataset `hub:ORG/NAME[@REVISION][/FILE][:COLUMN]`. In a table the text comes from `column`,
    else from the first of `TEXT_COLUMNS` that is there; an id column is used when there is one; the other short scalars
    become factors.

    Raises:
        InputError: an unknown name, an unreadable or empty table, a missing column, an empty text, or an id used twice.
        HubError: the dataset cannot be reached or has no such revision or file.
    """
    if spec in BUILT_IN_SETS:
        return PromptSet(BUILT_IN_SETS[spec](), {"spec": spec, "revision": None, "sha256": None})
    if not spec.startswith("hub:") and not Path(spec).exists():
        known = ", ".join(BUILT_IN_SETS)
        raise InputError(
            f"no prompts named {spec!r}: expected a built-in set ({known}), "
            "a .jsonl, .csv or .parquet file, or hub:ORG/NAME"
        )
    table = load_table(spec, revision=revision)
    return PromptSet(
        records_from_table(table, column or table.column),
        {"spec": spec, "revision": table.revision, "file": table.name, "sha256": table.sha256},
    )


def records_from_table(table: Table, column: str | None = None) -> list[PromptRecord]:
    """Prompt records from a table's rows.

    Raises:
        InputError: a missing column, an empty text, or an id used twice.
    """
    first_row = table.rows[0]
    text_column = column or next((name for name in TEXT_COLUMNS if name in first_row), None)
    if text_column is None or text_column not in first_row:
        wanted = repr(column) if column else "one of " + ", ".join(TEXT_COLUMNS)
        raise InputError(
            f"{table.name}: no column {wanted} for the prompt's text; the columns are {column_names(first_row)}"
        )
    id_column = next((name for name in ID_COLUMNS if name in first_row and name != text_column), None)
    stem = Path(table.name).stem
    records: list[PromptRecord] = []
    seen: set[str] = set()
    for number, row in enumerate(table.rows, start=1):
        text = _text(row.get(text_column))
        if not text:
            raise InputError(f"{table.name}: row {number} has no text in column {text_column!r}")
        prompt_id = str(row[id_column]) if id_column and row.get(id_column) is not None else f"{stem}/{number:05d}"
        if prompt_id in seen:
            raise InputError(f"{table.name}: row {number} repeats the prompt id {prompt_id[:80]!r}; ids must be unique")
        seen.add(prompt_id)
        records.append(PromptRecord(prompt_id, text, _factors(row, {text_column, id_column})))
    return records


def _text(cell: Any) -> str:
    # Multi-turn sets (MT-Bench) keep a list of turns: the first is the prompt.
    if isinstance(cell, list | tuple):
        cell = cell[0] if cell else None
    return cell.strip() if isinstance(cell, str) else ""


def _factors(row: Mapping[str, Any], used: set[str | None]) -> dict[str, str]:
    factors: dict[str, str] = {}
    for name, value in row.items():
        if name in used:
            continue
        if name == "factors" and isinstance(value, Mapping):
            factors.update({str(key): str(cell) for key, cell in value.items() if cell is not None})
        elif isinstance(value, str | int | bool) and len(str(value)) <= MAX_FACTOR_CHARACTERS:
            factors[name] = str(value)
    return factors
