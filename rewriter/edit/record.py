"""What is written down of an edit: the `mote` block of a variant's config.json, and the recipe, which goes without weights.

The one place that knows the keys of either, and the only reader of both. A block holds the record of the last edit; the block
that its base had, where the base was a variant itself, is kept inside it (`base`), so that a chain of edits can be followed.

To record more, add a field with a default at the end of its class: a record is written with the fields that were given to it
and no others, so the bytes of what is written today stay as they are, and records without the field can still be read.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewriter.checkpoint.edited_json import BLOCK_KEY
from rewriter.errors import RecordError, first_problem, quoted
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.semantics import ACTIONS, SUPPRESS, Action, CheckpointSemantics

VARIANT_SCHEMA: Final = "mote.variant/1"
SERVED_SCHEMA: Final = "mote.served/1"  # see dial.py
RECIPE_SCHEMA: Final = "mote.recipe/1"
ZERO_OUTPUT: Final = "zero output"
"""The value of an expert whose output is zeroed instead of its router's bias changed."""
SCALED_OUTPUT: Final = "scaled output"
"""The value of a suppressed expert of whose output a part is kept."""
MEAN_ROW: Final = "mean row, zero output"
"""The value of an expert whose router row is the mean of the survivors' rows, and whose output is zeroed."""
SHIFTED_ROW: Final = "shifted row"
"""The value of an expert whose router row is that mean less a constant, so that it lies below every survivor."""
MINUS_INF: Final = "-inf"
"""The value of a bias of minus infinity, for which JSON has no number."""

# Of an expert, alike in expert sets and records; absent where there is none.
RARE_NUMBERS = ("bias_shift", "strength", "gain")

BiasWord = Literal["auto", "-inf", "margin"]
BiasChoice = BiasWord | float
BIAS_WORDS: tuple[BiasWord, ...] = get_args(BiasWord)
Named = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    """Read as it stands: no value is converted, and keys of a later version are kept."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False, populate_by_name=True)


class ExpertRecord(_Record):
    """One edited expert, by its model layer."""

    layer: Count
    expert: Count
    action: Action
    # What was written: a router bias (MINUS_INF or a number), a router row (MEAN_ROW or SHIFTED_ROW), or ZERO_OUTPUT or
    # SCALED_OUTPUT.
    value: Literal["-inf", "zero output", "scaled output", "mean row, zero output", "shifted row"] | float | None = None
    # What was added to a suppressed expert's bias, where it stays selectable; `value` is what came of it.
    bias_shift: Annotated[float, Field(lt=0)] | None = None
    strength: Annotated[float, Field(gt=0, lt=1)] | None = None  # 1 - strength of a dropped expert's output is kept
    gain: Annotated[float, Field(gt=0)] | None = None  # what a stimulated expert's output is multiplied with

    @property
    def edits_bias(self) -> bool:
        """Whether the edit is one of the router's bias; else of its row, or of the expert's output."""
        return self.value not in (ZERO_OUTPUT, SCALED_OUTPUT) and not self.edits_row

    @property
    def factor(self) -> float | None:
        """What the expert's output is multiplied with, where it is neither whole nor zero."""
        return self.gain if self.strength is None else 1 - self.strength

    @property
    def edits_row(self) -> bool:
        """Whether the edit is one of the router's row."""
        return self.value in (MEAN_ROW, SHIFTED_ROW)

    @property
    def rules_out_selection(self) -> bool:
        """Whether no input makes the router select the expert."""
        if self.action != SUPPRESS or self.bias_shift is not None:
            return False
        return self.edits_bias or self.value == SHIFTED_ROW

    @property
    def is_minus_inf(self) -> bool:
        """Whether the router's bias was set to minus infinity."""
        return self.value == MINUS_INF


class TensorRecord(_Record):
    """One edited range of a tensor: `size_bytes` from byte `start` of it, with its SHA-256 before and after the edit."""

    name: str
    shard: str | None = None  # a recipe does not say: the base that somebody has may be cut up differently
    start: Count
    size_bytes: Count
    sha256_before: Sha256
    sha256_after: Sha256


class SetRecord(_Record):
    """Where the experts came from: their set without the experts."""

    behavior: Named
    model: str | None = None
    provenance: dict[str, Any] = {}


class VariantRecord(_Record):
    """The `mote` block of a variant's config.json: what was done to which base, down to the hashes."""

    schema_id: Annotated[Literal["mote.variant/1"], Field(alias="schema")]
    tool_version: str
    base_model: str | None = None  # Hub id, where the base came from the Hub
    base_revision: str | None = None
    base_folder: str | None = None  # the folder's own name, never its path
    behavior: Named
    semantics: CheckpointSemantics
    suppress_bias: BiasChoice
    renormalize: bool = False  # whether renormalisation was asked for where the base was trained without
    renormalization: str = ""  # what became of it, in a sentence
    layer_index: Literal["model"] = "model"
    experts: list[ExpertRecord]
    changed_files: list[str]
    fingerprint: str
    tensors: list[TensorRecord]
    expert_sets: list[SetRecord] = []
    base: "VariantRecord | None" = None
    stamped: bool = True  # whether the headers of the changed files carry the fingerprint
    approximate: bool = False  # a reroute (centroid) where the router has so few experts that tokens still select them

    def to_block(self) -> dict[str, Any]:
        """As config.json holds it."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def edits_in_force(self) -> list[ExpertRecord]:
        """What the whole chain of edits has done to experts: the last word on each expert's bias, and every zeroed output."""
        last = {
            (one.layer, one.expert, one.edits_bias): one
            for record in reversed(list(self.chain()))
            for one in record.experts
        }
        return list(last.values())

    @property
    def is_partial(self) -> bool:
        """Whether a part of a suppressed expert's output is kept."""
        return any(one.strength is not None for one in self.experts)

    @property
    def shifts_bias(self) -> bool:
        """Whether a suppressed expert stays selectable, by a finite shift of its bias."""
        return any(one.bias_shift is not None for one in self.experts)

    def chain(self) -> Iterator["VariantRecord"]:
        """This record, then the base's, where that was a variant itself, and so on."""
        record: VariantRecord | None = self
        while record is not None:
            yield record
            record = record.base


class Recipe(_Record):
    """All that makes a variant out of a base that somebody else has: a record without what belongs to one folder."""

    model_config = ConfigDict(extra="ignore")

    schema_id: Annotated[Literal["mote.recipe/1"], Field(alias="schema")] = "mote.recipe/1"
    tool_version: str
    base_model: str | None = None
    base_revision: str | None = None
    behavior: Named
    semantics: CheckpointSemantics
    suppress_bias: BiasChoice = "auto"
    renormalize: bool = False
    experts: Annotated[list[ExpertRecord], Field(min_length=1)]
    tensors: Annotated[list[TensorRecord], Field(min_length=1)]
    expert_sets: list[SetRecord] = []

    @classmethod
    def of(cls, record: VariantRecord) -> Self:
        """The recipe of a variant.

        Raises:
            RecordError: the record names no experts or no tensors.
        """
        try:
            return cls.model_validate({**record.to_block(), "schema": RECIPE_SCHEMA})
        except ValidationError as error:
            raise RecordError(f"the `mote` block of config.json makes no recipe: {first_problem(error)}") from None

    @classmethod
    def read(cls, text: str, where: str) -> Self:
        """A recipe from its JSON text; `where` is how messages call the file.

        Raises:
            RecordError: the text is no recipe.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise RecordError(f"'{where}' is no recipe of schema {RECIPE_SCHEMA}: {first_problem(error)}") from None

    def to_json(self) -> str:
        """The JSON text."""
        absent = {
            number: {name for name in RARE_NUMBERS if getattr(one, name) is None}
            for number, one in enumerate(self.experts)
        }
        document = self.model_dump(by_alias=True, exclude={"tensors": {"__all__": {"shard"}}, "experts": absent})
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def expert_set_of(record: VariantRecord | Recipe, action: Action) -> ExpertSet | None:
    """The experts of one action as an expert set, or None if there are none."""
    chosen = [
        ExpertEntry(layer=one.layer, expert=one.expert, **{name: getattr(one, name) for name in RARE_NUMBERS})
        for one in record.experts
        if one.action == action
    ]
    if not chosen:
        return None
    # The sets are listed in the order of the actions; one with a single action has a single set.
    actions = [kind for kind in ACTIONS if any(one.action == kind for one in record.experts)]
    is_listed = len(record.expert_sets) == len(actions)
    known = record.expert_sets[actions.index(action)] if is_listed else SetRecord(behavior=record.behavior)
    return ExpertSet(
        model=record.base_model,
        revision=record.base_revision,
        layer_index="model",
        behavior=known.behavior,
        experts=chosen,
        provenance=dict(known.provenance),
    )


def without_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """A parsed config.json without its mote block."""
    return {key: value for key, value in config.items() if key != BLOCK_KEY}


def read_record(config: Mapping[str, Any], where: str, place: str = "config.json") -> VariantRecord:
    """The record in a variant's config; `where` is how messages call the folder, `place` the file with the config in it.

    Raises:
        RecordError: there is no mote block, or it is not one.
    """
    if BLOCK_KEY not in config:
        raise RecordError(f"{where}/{place}: has no mote block, expected a variant; mote-rewrite -o FOLDER makes one")
    block = config[BLOCK_KEY]
    found = block.get("schema") if isinstance(block, Mapping) else None
    if found == SERVED_SCHEMA:
        raise RecordError(
            f"{where}/{place}: is a served variant's, which changes no tensor, expected a variant that does; to"
            " share one, upload its config.json and README.md and say which base they belong to"
        )
    if found != VARIANT_SCHEMA:
        raise RecordError(f"{where}/{place}: its mote block has schema {quoted(found)}, expected {VARIANT_SCHEMA!r}")
    try:
        return VariantRecord.model_validate(block)
    except ValidationError as error:
        raise RecordError(f"{where}/{place}: {first_problem(error, ' of its mote block')}") from None


def find_record(config: Mapping[str, Any], where: str, place: str = "config.json") -> VariantRecord | None:
    """The record in a config, or None where it has no mote block: the model is no variant. See `read_record`.

    Raises:
        RecordError: there is a mote block that is not one.
    """
    return read_record(config, where, place) if BLOCK_KEY in config else None
