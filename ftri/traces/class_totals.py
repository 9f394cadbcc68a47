"""Totals of selections for whole classes, as recorders leave them that keep no responses: an artifact of `mote-ftri import`.

Schema `mote.class-totals/1`; `mote-ftri FILE --behavior CLASS` ranks by it (ftri/analysis/class_counts.py).
Letters of shapes: E routed experts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rewriter.checkpoint.gguf.imatrix import SelectionCounts
from rewriter.errors import InputError, first_problem
from rewriter.json_text import JsonError, read_json
from rewriter.small_file import read_small
from rewriter.whole_file import write_whole

# Counts are summed as doubles, which are exact up to here.
MAX_COUNT = 1 << 53
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
LayerNumber = Annotated[str, Field(pattern=r"^(0|[1-9]\d{0,5})$")]


@dataclass(frozen=True)
class ClassTotals:
    """The selections of each class, by model layer, and where they come from.

    `recorder` is who counted, for people; `sources` one entry a file with its class and SHA-256; `notes` what the files could
    not tell.
    """

    recorder: str
    classes: dict[str, SelectionCounts]
    sources: list[dict[str, Any]]
    model: str | None = None
    revision: str | None = None
    notes: list[str] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write the artifact, replacing the file in one step.

        Raises:
            OutputError: the file cannot be written.
        """
        classes = {
            name: _Class(
                num_tokens={str(layer): number for layer, number in counted.num_tokens.items()},
                selections={str(layer): [int(value) for value in row] for layer, row in counted.counts.items()},
            )
            for name, counted in self.classes.items()
        }
        document = _Document(
            schema="mote.class-totals/1",
            recorder=self.recorder,
            model=self.model,
            revision=self.revision,
            top_k=next(iter(self.classes.values())).top_k,
            sources=self.sources,
            notes=self.notes,
            classes=classes,
        )
        write_whole(path, document.model_dump_json(by_alias=True, indent=1) + "\n")


class _Class(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    num_tokens: dict[LayerNumber, Annotated[int, Field(gt=0, le=MAX_COUNT)]] = Field(min_length=1)
    selections: dict[LayerNumber, Annotated[list[Count], Field(min_length=1)]] = Field(min_length=1)


class _Document(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    schema_: Literal["mote.class-totals/1"] = Field(alias="schema")
    recorder: str
    model: str | None
    revision: str | None
    top_k: int = Field(ge=1)
    sources: list[dict[str, Any]]
    notes: list[str]
    classes: dict[str, _Class] = Field(min_length=1)

    @model_validator(mode="after")
    def _adds_up(self) -> _Document:
        for name, one in self.classes.items():
            if one.num_tokens.keys() != one.selections.keys():
                raise ValueError(f"class {name}: num_tokens and selections name different layers")
            for layer, row in one.selections.items():
                expected = self.top_k * one.num_tokens[layer]
                if sum(row) != expected:
                    raise ValueError(
                        f"class {name}, layer {layer}: {sum(row)} selections, expected {expected}:"
                        f" {self.top_k} for each of {one.num_tokens[layer]} tokens"
                    )
        return self


def load_class_totals(path: Path) -> ClassTotals:
    """Read what `mote-ftri import CLASS=FILE ...` wrote.

    Raises:
        InputError: the file is none, or its numbers contradict each other.
    """
    try:
        document = _Document.model_validate(read_json(read_small(path)))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (JsonError, ValidationError) as error:
        problem = first_problem(error) if isinstance(error, ValidationError) else f"is not JSON ({error})"
        raise InputError(
            f"{path}: {problem}; expected a trace folder, or the class totals that mote-ftri import CLASS=FILE writes"
        ) from None
    classes = {
        name: SelectionCounts(
            path.name,
            {int(layer): np.array(row, np.float64) for layer, row in one.selections.items()},
            {int(layer): number for layer, number in one.num_tokens.items()},
            None,
        )
        for name, one in document.classes.items()
    }
    return ClassTotals(document.recorder, classes, document.sources, document.model, document.revision, document.notes)


def describe_source(name: str, path: Path, **facts: Any) -> dict[str, Any]:
    """The entry of `sources` for a file of the class `name`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"class": name, "file": path.name, "sha256": digest, **facts}
