"""Which responses are compared with which: the classes of `--behavior`, and the rule or file that labels responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ftri.labels.behavior import label_parsed, language_of_thinking
from ftri.labels.coverage import coverage_warning, uncovered_language
from ftri.labels.names import PAPER_CLASSES, THINKING_CLASSES, Behavior, ThinkingLanguage
from ftri.labels.think_formats import ThinkFormat, parse_response, starts_inside_think
from ftri.prompts.tables import column_names, load_table
from rewriter.errors import InputError, quoted

if TYPE_CHECKING:
    from ftri.traces.reader import TraceRecord

THINKING_PREFIX = "thinking:"
VERSUS = "-vs-"
UNION = "+"
LABEL_COLUMNS = ("label", "behavior", "class")
# What the labels leave out of the comparison: responses that no rule could place.
UNLABELLED = "UNLABELLED"

MAX_LABEL_LETTERS = 100
MAX_CLASSES_SHOWN = 10

ResponseKey = tuple[str, int]
Labeller = Callable[["TraceRecord"], str]


def _as_text(cell: object) -> object:
    """A cell as text; an empty one as none, another kind as it is, which is then refused."""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return cell
    return str(cell).strip() or None


def _shown(label: str) -> str:
    """A class's name, which the report, the card and the terminal will show."""
    if not label.isprintable():
        raise ValueError("characters that cannot be shown")
    return label


@dataclass(frozen=True)
class Contrast:
    """One class against the others: labels of the class, labels of the others, and what to call it."""

    name: str
    target: tuple[str, ...]
    others: tuple[str, ...]
    rule: str

    def group(self, label: str) -> int | None:
        """0 for the class, 1, 2, ... for the other classes in order, None for a response that takes no part."""
        if label in self.target:
            return 0
        return self.others.index(label) + 1 if label in self.others else None


def parse_contrast(behavior: str, file_classes: Iterable[str] | None = None) -> Contrast:
    """The contrast that `--behavior` names.

    `refused` is one of the paper's classes against its other two; `thinking:english` a thinking language against the
    others; `A-vs-B` exactly two, each of which may be a sum `A+B`. With `file_classes`, the classes are those instead.

    Raises:
        InputError: a class that does not exist, or the same one on both sides.
    """
    known: tuple[str, ...]
    default: tuple[str, ...] | None
    if file_classes is not None:
        known, default, rule = tuple(sorted(set(file_classes))), None, "label file"
    elif behavior.lower().startswith(THINKING_PREFIX):
        known, default, rule = (*THINKING_CLASSES, ThinkingLanguage.NONE.value), THINKING_CLASSES, "thinking language"
    else:
        known, default, rule = tuple(label.value for label in Behavior), PAPER_CLASSES, "behaviour"
    sides: list[tuple[str, ...]]
    if file_classes is not None and behavior in known:
        sides = [(behavior,)]
    else:
        sides = [_classes(side, known, behavior) for side in behavior.split(VERSUS)]
    if len(sides) > 2:
        raise InputError(f"--behavior {behavior}: expected one class or A{VERSUS}B, found {len(sides)} sides")
    target = sides[0]
    others = sides[1] if len(sides) == 2 else tuple(name for name in default or known if name not in target)
    shared = set(target) & set(others)
    if shared:
        raise InputError(f"--behavior {behavior}: {', '.join(sorted(shared))} stands on both sides")
    name = UNION.join(target) + (VERSUS + UNION.join(others) if len(sides) == 2 else "")
    return Contrast(name, target, others, rule)


def _classes(side: str, known: tuple[str, ...], behavior: str) -> tuple[str, ...]:
    by_lower = {name.lower(): name for name in known}
    names = []
    for part in side.split(UNION):
        wanted = part.strip()
        if wanted.lower().startswith(THINKING_PREFIX):
            wanted = wanted[len(THINKING_PREFIX) :]
        found = (
            wanted if wanted in known else by_lower.get(wanted.lower().replace("-", "_"), by_lower.get(wanted.lower()))
        )
        if found is None:
            raise InputError(f"--behavior {behavior}: no class {wanted!r}; the classes are {_list(known)}")
        names.append(found)
    return tuple(dict.fromkeys(names))


def _list(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:MAX_CLASSES_SHOWN]) + (", ..." if len(classes) > MAX_CLASSES_SHOWN else "")


@dataclass
class RuleLabeller:
    """Labels by the built-in rules: behaviour or thinking language. `uncovered` fills with the answers that none can judge.

    `think_format` is the row that splits a response; without one its text tells it.
    """

    contrast: Contrast
    label_cut: bool = False
    think_format: ThinkFormat | None = None
    uncovered: dict[ResponseKey, str] = field(default_factory=dict)
    num_seen: int = 0

    def __call__(self, record: TraceRecord) -> str:
        """The label of one response."""
        inside = starts_inside_think(record.rendered_prompt, self.think_format)
        parsed = parse_response(record.text, inside, self.think_format)
        self.num_seen += 1
        if self.contrast.rule == "thinking language":
            return language_of_thinking(parsed.thinking if parsed else None)
        language = uncovered_language(parsed.answer if parsed else None)
        if language is not None:
            self.uncovered[record.key] = language
        return label_parsed(parsed, record.finish_reason, inside, self.label_cut).value

    def warning(self) -> str | None:
        """What to say about the answers that no rule could judge."""
        return coverage_warning(Counter(self.uncovered.values()), self.num_seen)


class LabelRow(BaseModel):
    """A row of a label file; tables of numbers give ids and classes as numbers."""

    model_config = ConfigDict(frozen=True)

    prompt_id: Annotated[str, BeforeValidator(_as_text)]
    label: Annotated[
        Annotated[str, Field(max_length=MAX_LABEL_LETTERS)], BeforeValidator(_as_text), AfterValidator(_shown)
    ]
    sample: Annotated[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")] | None, BeforeValidator(_as_text)] = None

    @property
    def key(self) -> ResponseKey | str:
        """Which responses the row labels: one, or all of a prompt."""
        return self.prompt_id if self.sample is None else (self.prompt_id, int(self.sample))


def read_labels(spec: str) -> dict[ResponseKey | str, str]:
    """Labels by prompt id, or by (prompt id, sample) where the file has a `sample` column.

    Raises:
        InputError: no id or label column, an empty label, or two labels for one response.
    """
    table = load_table(spec)
    first = table.rows[0]
    column = next((name for name in LABEL_COLUMNS if name in first), None)
    if "prompt_id" not in first or column is None:
        raise InputError(
            f"{table.name}: expected the columns prompt_id and one of {', '.join(LABEL_COLUMNS)},"
            f" found {column_names(first)}"
        )
    labels: dict[ResponseKey | str, str] = {}
    for number, cells in enumerate(table.rows, start=1):
        try:
            row = LabelRow.model_validate(
                {"prompt_id": cells.get("prompt_id"), "label": cells.get(column), "sample": cells.get("sample")}
            )
        except ValidationError as error:
            raise InputError(f"{table.name}: row {number} {_row_problem(error, column)}") from None
        known = labels.setdefault(row.key, row.label)
        if known != row.label:
            raise InputError(
                f"{table.name}: row {number} labels {row.prompt_id[:80]!r} {row.label}, an earlier row {known}"
            )
    return labels


def _row_problem(error: ValidationError, column: str) -> str:
    problem = error.errors(include_url=False)[0]
    name, found = str(problem["loc"][0]), problem["input"]
    if found is None or (isinstance(found, str) and not found.strip()):
        return f"has no {column if name == 'label' else name}"
    if name == "sample":
        return f"has the sample {quoted(found).replace(chr(34), chr(39))}, expected a number from 0"
    return f"has the {column if name == 'label' else name} {quoted(found)}, expected a short text on one line"


def file_labeller(labels: Mapping[ResponseKey | str, str]) -> Labeller:
    """The labeller for a label file; a response that the file does not name is left out."""
    return lambda record: labels.get(record.key, labels.get(record.prompt_id, UNLABELLED))


def check_labels_known(labels: Mapping[ResponseKey | str, str], keys: set[ResponseKey], name: str) -> None:
    """See to it that the labels are of these responses.

    Raises:
        InputError: a label belongs to no response of the traces.
    """
    prompt_ids = {prompt_id for prompt_id, _ in keys}
    unknown = [key for key in labels if (key not in keys if isinstance(key, tuple) else key not in prompt_ids)]
    if unknown:
        first = unknown[0]
        shown = (
            f"sample {first[1]} of prompt {first[0][:80]!r}" if isinstance(first, tuple) else f"prompt {first[:80]!r}"
        )
        raise InputError(f"{name}: labels {len(unknown)} responses that the traces do not hold, the first is {shown}")
