"""The expert set: the JSON artifact in which the parts of MoTE, and its users, hand each other a list of experts."""

import json
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewriter.errors import ExpertSetError
from rewriter.json_text import JsonError, read_json
from rewriter.small_file import read_small_or_pipe
from rewriter.whole_file import write_whole

SCHEMA_ID = "mote.expert-set/1"
PRESET_PREFIX = "preset:"
LayerIndex = Literal["model", "moe"]


class ExpertEntry(BaseModel):
    """One routed expert; any further numbers about it (effect, p-value, ...) are kept as they are."""

    model_config = ConfigDict(extra="allow")

    layer: Annotated[int, Field(ge=0, strict=True, description="Layer, counted as `layer_index` says.")]
    expert: Annotated[int, Field(ge=0, strict=True, description="Routed expert within the layer, from 0.")]
    resonance: Annotated[float | None, Field(description="fTRI resonance, selections per prompt.")] = None
    bias_shift: Annotated[
        float | None,
        Field(
            lt=0,
            strict=True,
            allow_inf_nan=False,
            description="Of a suppressed expert: what is added to its router bias, finite; absent: never selected.",
        ),
    ] = None
    strength: Annotated[
        float | None,
        Field(
            gt=0,
            le=1,
            strict=True,
            allow_inf_nan=False,
            description="Of a suppressed expert that is dropped: 1 - strength of its output is kept; absent: none.",
        ),
    ] = None
    gain: Annotated[
        float | None,
        Field(
            gt=0,
            strict=True,
            allow_inf_nan=False,
            description="Of a stimulated expert: what its output is multiplied with; absent: 1.",
        ),
    ] = None


class ExpertSet(BaseModel):
    """A list of experts of one model, most distinctive first, and where it comes from."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    schema_id: Annotated[Literal["mote.expert-set/1"], Field(alias="schema")] = "mote.expert-set/1"
    model: Annotated[str | None, Field(description="Hub id, or a folder relative to this file.")] = None
    revision: Annotated[str | None, Field(description="Hub revision of the model.")] = None
    layer_index: Annotated[
        LayerIndex,
        Field(description='"model": position in the whole model; "moe": position among its MoE layers, from 0.'),
    ]
    behavior: Annotated[str, Field(min_length=1, description="What the experts are distinctive for.")]
    experts: Annotated[list[ExpertEntry], Field(description="Most distinctive first.")]
    provenance: Annotated[dict[str, Any], Field(description="Free: how the list was made.")] = {}

    @classmethod
    def load(cls, path: str | Path, *, model: str | None = None, layer_index: LayerIndex | None = None) -> Self:
        """Read an expert set from a JSON file, a preset (`preset:NAME`), or a bare list of [layer, expert] pairs.

        `layer_index` overrides what the file says; a bare list (as the paper's appendix prints them) needs it and
        `model`, since it says neither.

        Raises: ExpertSetError with the file and the first thing wrong in it.
        """
        text, name = _read(path)
        try:
            document = read_json(text)
        except JsonError as error:
            raise ExpertSetError(f"{name}: not JSON ({error})") from None
        if isinstance(document, list):
            document = _document_of_pairs(document, name, model, layer_index)
        if not isinstance(document, dict):
            raise ExpertSetError(
                f"{name}: holds a JSON {type(document).__name__}, expected an object of schema {SCHEMA_ID!r}"
                " or a list of [layer, expert] pairs"
            )
        if layer_index is not None:
            document = {**document, "layer_index": layer_index}
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            raise ExpertSetError(f"{name}: {_first_problem(error)}") from None

    def save(self, path: str | Path) -> None:
        """Write the expert set as JSON, replacing the file in one step.

        Raises:
            OutputError: the file cannot be written.
        """
        write_whole(path, self.to_json())

    def to_json(self) -> str:
        """The JSON text, one expert a line so that diffs read well."""
        document = self.model_dump(by_alias=True, exclude_none=True)
        document["schema"] = self.schema_id
        experts = document.pop("experts")
        provenance = document.pop("provenance")
        head = json.dumps({"schema": document.pop("schema"), **document}, indent=2, ensure_ascii=False).removesuffix(
            "\n}"
        )
        lines = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False)}" for entry in experts)
        listed = f"[\n{lines}\n  ]" if experts else "[]"
        tail = json.dumps({"provenance": provenance}, indent=2, ensure_ascii=False).removeprefix("{\n")
        return f'{head},\n  "experts": {listed},\n{tail}\n'

    def top(self, count: int | None) -> Self:
        """The set with its first `count` experts; None keeps all.

        Raises: ExpertSetError when the set holds fewer.
        """
        if count is None:
            return self
        if not 1 <= count <= len(self.experts):
            raise ExpertSetError(
                f"top {count} of the expert set {self.behavior!r} asked for, but it holds {len(self.experts)} experts;"
                f" give --top {len(self.experts)} at most, or find more with mote-ftri -k {count}"
            )
        return self.model_copy(update={"experts": self.experts[:count]})

    def model_pairs(self, moe_layers: Sequence[int]) -> list[tuple[int, int]]:
        """The experts as (model layer, expert), in the order of the file.

        `moe_layers` are the model layers that have routed experts, ascending.

        Raises: ExpertSetError when a layer is not one of them; says so when the other convention would fit.
        """
        if self.layer_index == "model":
            valid: Sequence[int] = moe_layers
            to_model = {layer: layer for layer in moe_layers}
        else:
            valid = range(len(moe_layers))
            to_model = dict(enumerate(moe_layers))
        unknown = [entry.layer for entry in self.experts if entry.layer not in to_model]
        if unknown:
            raise ExpertSetError(self._wrong_layer(unknown[0], valid, moe_layers))
        return [(to_model[entry.layer], entry.expert) for entry in self.experts]

    def bias_shifts(self, moe_layers: Sequence[int]) -> dict[tuple[int, int], float]:
        """The finite bias shifts of the experts that have one, by (model layer, expert); see `model_pairs`.

        Raises: ExpertSetError as `model_pairs`.
        """
        pairs = self.model_pairs(moe_layers)
        return {
            pair: entry.bias_shift
            for pair, entry in zip(pairs, self.experts, strict=True)
            if entry.bias_shift is not None
        }

    def strengths(self, moe_layers: Sequence[int]) -> dict[tuple[int, int], float]:
        """The strengths below 1 of the experts that have one, by (model layer, expert); see `model_pairs`.

        Raises: ExpertSetError as `model_pairs`.
        """
        return {
            pair: entry.strength
            for pair, entry in zip(self.model_pairs(moe_layers), self.experts, strict=True)
            if entry.strength is not None and entry.strength < 1
        }

    def gains(self, moe_layers: Sequence[int]) -> dict[tuple[int, int], float]:
        """The gains other than 1 of the experts that have one, by (model layer, expert); see `model_pairs`.

        Raises: ExpertSetError as `model_pairs`.
        """
        return {
            pair: entry.gain
            for pair, entry in zip(self.model_pairs(moe_layers), self.experts, strict=True)
            if entry.gain is not None and entry.gain != 1
        }

    def with_each(self, **numbers: float) -> Self:
        """The set with the same numbers (`strength`, `gain`) for each of its experts.

        Raises: ExpertSetError for a number that an entry cannot have.
        """
        try:
            experts = [ExpertEntry.model_validate(entry.model_dump() | numbers) for entry in self.experts]
        except ValidationError as error:
            raise ExpertSetError(f"expert set {self.behavior!r}: {_first_problem(error)}") from None
        return self.model_copy(update={"experts": experts})

    def _wrong_layer(self, layer: int, valid: Sequence[int], moe_layers: Sequence[int]) -> str:
        """The sentence for a layer outside the valid ones, with the other convention when all layers fit it."""
        other = "moe" if self.layer_index == "model" else "model"
        others = range(len(moe_layers)) if other == "moe" else moe_layers
        message = (
            f"expert set {self.behavior!r}: layer {layer} is not one of the model's MoE layers, which are"
            f" {describe_range(valid)} with layer_index {self.layer_index!r}"
        )
        if all(entry.layer in others for entry in self.experts):
            message += f"; all its layers would fit --layer-index {other} ({describe_range(others)})"
        elif self.model is not None:
            message += f"; the set is of {self.model}, give --model that"
        return message


def describe_range(numbers: Sequence[int]) -> str:
    """Ascending numbers as text: `3..60`, or `1, 3, 5` when they have gaps."""
    if not numbers:
        return "none"
    if len(numbers) > 2 and numbers[-1] - numbers[0] + 1 == len(numbers):
        return f"{numbers[0]}..{numbers[-1]}"
    return ", ".join(map(str, numbers))


def preset_names() -> list[str]:
    """The names of the expert sets that come with the package."""
    folder = resources.files("rewriter") / "presets"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def published_schema() -> dict[str, Any]:
    """The JSON Schema of `mote.expert-set/1`, as docs/expert-set.schema.json holds it."""
    return ExpertSet.model_json_schema(by_alias=True) | {"title": SCHEMA_ID}


def _read(path: str | Path) -> tuple[str, str]:
    """The text of a file or preset, and the name to call it by in messages."""
    name = str(path)
    if name.startswith(PRESET_PREFIX):
        preset = name.removeprefix(PRESET_PREFIX)
        if preset not in preset_names():
            raise ExpertSetError(f"no preset named {preset!r}; there are: {', '.join(preset_names())}")
        return (resources.files("rewriter") / "presets" / f"{preset}.json").read_text(encoding="utf-8"), name
    try:
        return read_small_or_pipe(path, error=ExpertSetError).decode(), name
    except OSError as error:
        raise ExpertSetError(
            f"{name}: cannot be read ({error.strerror}), expected an expert set; mote-ftri TRACES --behavior CLASS -o FILE"
            f" writes one, {PRESET_PREFIX}NAME is one that comes along ({', '.join(preset_names())})"
        ) from None
    except UnicodeDecodeError as error:
        raise ExpertSetError(f"{name}: not UTF-8 text (byte {error.start})") from None


def _document_of_pairs(
    pairs: list[Any], name: str, model: str | None, layer_index: LayerIndex | None
) -> dict[str, Any]:
    """A bare list of [layer, expert] pairs as an expert-set document."""
    if model is None or layer_index is None:
        raise ExpertSetError(
            f"{name}: a bare list of [layer, expert] pairs says neither the model nor how layers are counted;"
            " give --model and --layer-index model|moe"
        )
    for position, pair in enumerate(pairs):
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)):
            raise ExpertSetError(f"{name}: entry {position} is {json.dumps(pair)}, expected [layer, expert]")
    return {
        "model": model,
        "layer_index": layer_index,
        "behavior": Path(name).stem,
        "experts": [{"layer": layer, "expert": expert} for layer, expert in pairs],
        "provenance": {"source": "bare list of [layer, expert] pairs"},
    }


def _first_problem(error: ValidationError) -> str:
    """The first of pydantic's complaints in one clause with the place and the value found."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the document"
    if first["type"] == "missing":
        return f"{place} is missing"
    if first["type"] == "extra_forbidden":
        return f"{place} is not a key of schema {SCHEMA_ID!r}"
    shown = json.dumps(first["input"], ensure_ascii=False, default=str)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    return f"{place} is {shown}: {first['msg'][0].lower()}{first['msg'][1:]}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps(published_schema(), indent=2, ensure_ascii=False) + "\n")
