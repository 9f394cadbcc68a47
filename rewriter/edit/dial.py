"""What is written down of a served variant: named sets of experts that a running server applies, the weights being the base's.

No stock checkpoint can hold drop-renorm, nor a choice per request. A served variant is a folder whose weights are all the base's
and whose config.json names an architecture and a model_type of this project's, so that only a server with this package beside it
(ftri.worker) loads it, and every other runtime refuses it instead of running the base unnoticed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewriter import __version__
from rewriter.checkpoint.edited_json import config_text, parse_config
from rewriter.checkpoint.reader import CONFIG_NAME, Checkpoint, LocalFolder
from rewriter.edit.record import BLOCK_KEY, SERVED_SCHEMA, without_record
from rewriter.errors import CheckpointError, ExpertSetError, InputError, RecordError, first_problem, quoted
from rewriter.expert_set import ExpertSet
from rewriter.families.family import RouterLayout
from rewriter.families.lookup import SERVED_PREFIX, router_layout
from rewriter.semantics import Semantics
from rewriter.small_file import read_small

ARCHITECTURE_PREFIX: Final = "Mote"
MODEL_TYPE_PREFIX: Final = SERVED_PREFIX
BASE_NAME: Final = "none"
"""What a request calls the base."""
NAME_PATTERN: Final = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"

Number = Annotated[int, Field(ge=0)]
Pair = tuple[Number, Number]


class _Record(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, populate_by_name=True)


class ServedSet(_Record):
    """One edit that a server knows by a name: (model layer, expert) pairs and what happens to them."""

    semantics: Semantics
    suppress: tuple[Pair, ...] = ()
    stimulate: tuple[Pair, ...] = ()


class ServedRecord(_Record):
    """The `mote` block of a served variant's config.json."""

    schema_id: Annotated[Literal["mote.served/1"], Field(alias="schema")]
    tool_version: str
    base_model: str | None = None  # Hub id, where the base came from the Hub
    base_revision: str | None = None
    base_folder: str | None = None  # the folder's own name, never its path
    base_config_sha256: str
    architecture: str  # the base's
    model_type: str  # the base's
    sets: dict[Annotated[str, Field(pattern=NAME_PATTERN)], ServedSet]
    default: str | None = None  # the set of every request that chooses none; None: the base
    has_dial: bool  # whether requests choose; else every request gets the default
    base: dict[str, Any] | None = None  # the base's own mote block, where it is a variant itself

    def to_block(self) -> dict[str, Any]:
        """As config.json holds it."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")

    def lines(self) -> list[str]:
        """The sets for people."""
        shown = [
            f"  {name}: {one.semantics}, {len(one.suppress)} suppressed, {len(one.stimulate)} stimulated"
            for name, one in self.sets.items()
        ]
        return [*shown, f"  every other request: {self.default or 'the base'}", "  weights: the base's, none changed"]


def read_served(config: Mapping[str, Any], where: str) -> ServedRecord:
    """The record in a served variant's parsed config.json; `where` is how messages call the folder.

    Raises:
        RecordError: there is none, or it is damaged or of another model.
    """
    block = config.get(BLOCK_KEY)
    found = block.get("schema") if isinstance(block, Mapping) else None
    if found != SERVED_SCHEMA:
        raise RecordError(f"{where}/config.json: its mote block has schema {quoted(found)}, expected {SERVED_SCHEMA!r}")
    try:
        # By way of JSON, whose lists are the record's tuples, so that no value is converted.
        record = ServedRecord.model_validate_json(json.dumps(block), strict=True)
    except ValidationError as error:
        raise RecordError(f"{where}/config.json: {first_problem(error, ' of its mote block')}") from None
    base = base_config(config)
    if base.get("architectures") != [record.architecture] or base.get("model_type") != record.model_type:
        raise RecordError(
            f"{where}/config.json: is of {base.get('architectures')} and model_type {base.get('model_type')!r}, expected"
            f" {[record.architecture]} and {record.model_type!r} as its mote block says"
        )
    digest = config_digest(base)
    if digest != record.base_config_sha256:
        raise RecordError(
            f"{where}/config.json: its hash without the mote block is {digest[:16]}..., expected"
            f" {record.base_config_sha256[:16]}...: the block is of another model, or the config was changed"
        )
    if record.default is not None and record.default not in record.sets:
        raise RecordError(f"{where}/config.json: the default set {record.default!r} is not among its sets")
    if record.default is None and not record.has_dial:
        raise RecordError(f"{where}/config.json: its mote block has neither a default nor a dial, expected one")
    try:
        check_sets(record.sets, router_layout(base))
    except ExpertSetError as error:
        raise RecordError(f"{where}/config.json: {error}") from None
    return record


def is_served(config: Mapping[str, Any]) -> bool:
    """Whether a parsed config.json is one of a served variant, be it one that can be read or not."""
    return str(config.get("model_type", "")).startswith(MODEL_TYPE_PREFIX)


def base_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A served variant's parsed config.json as its base's was, without any mote block."""
    base = without_record(config)
    names = config.get("architectures")
    base["architectures"] = [
        name.removeprefix(ARCHITECTURE_PREFIX)
        for name in (names if isinstance(names, list) else ())
        if isinstance(name, str)
    ]
    base["model_type"] = str(config.get("model_type", "")).removeprefix(MODEL_TYPE_PREFIX)
    return base


@dataclass(frozen=True)
class BaseOfServed(LocalFolder):
    """A served variant's folder read as its base: the weights are the base's, and so is the config that this gives."""

    def size_bytes(self, file_name: str) -> int | None:
        """See ByteSource."""
        return len(self._config) if file_name == CONFIG_NAME else super().size_bytes(file_name)

    def read(self, file_name: str, offset: int, size: int) -> bytes:
        """See ByteSource."""
        if file_name == CONFIG_NAME:
            return self._config[offset : offset + size]
        return super().read(file_name, offset, size)

    @property
    def _config(self) -> bytes:
        config = parse_config(read_small(self.path / CONFIG_NAME, error=CheckpointError).decode())
        previous = config[BLOCK_KEY].get("base")
        return config_text(base_config(config) | ({} if previous is None else {BLOCK_KEY: previous})).encode()


def open_base(folder: Path) -> Checkpoint:
    """The base of a served variant, from the variant's own folder."""
    return Checkpoint(BaseOfServed(folder))


def open_served(folder: Path) -> ServedRecord | None:
    """The record of a served variant's folder; None for any other folder.

    Raises:
        RecordError: for a record that is damaged or of another model.
    """
    config = Checkpoint.open(folder).config
    return read_served(config, folder.name) if is_served(config) else None


def open_described(folder: Path) -> Checkpoint:
    """A model folder by whose config the model's routers are known: a served variant's as its base.

    Raises:
        RecordError: as open_served.
    """
    return Checkpoint.open(folder) if open_served(folder) is None else open_base(folder)


def config_digest(base: Mapping[str, Any]) -> str:
    """SHA-256 of a config without a mote block, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()


def served_config(
    checkpoint: Checkpoint,
    sets: Mapping[str, ServedSet],
    default: str | None,
    *,
    has_dial: bool,
    base_model: str | None = None,
    base_revision: str | None = None,
    base_folder: str | None = None,
) -> tuple[ServedRecord, dict[str, Any]]:
    """The record of a served variant of a checkpoint, and the variant's config.json.

    Raises:
        InputError: for a name that cannot be one.
        ExpertSetError: for experts that the model lacks or that contradict each other.
        CheckpointError: for a base that names no architecture, is a served variant itself, or brings its config class along.
    """
    config = parse_config(checkpoint.config_text)
    if is_served(config):
        raise CheckpointError(f"{checkpoint.source.name}/config.json: is a served variant, expected its base")
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1:
        raise CheckpointError(
            f"{checkpoint.source.name}/config.json: architectures is {architectures!r}, expected one name"
        )
    family = checkpoint.layout.family
    if family.config_by_remote_code and config["model_type"] in family.model_types:
        raise CheckpointError(
            f"{checkpoint.source.name}/config.json: model_type {config['model_type']!r} (family {family.name}) has its config"
            " class in the checkpoint's own code, expected one that vLLM knows, since a served variant's model_type stands for"
            " that; --semantics reroute and drop make checkpoints of it"
        )
    check_sets(sets, checkpoint.layout)
    previous = config.pop(BLOCK_KEY, None)
    try:
        record = ServedRecord(
            schema_id=SERVED_SCHEMA,
            tool_version=__version__,
            base_model=base_model,
            base_revision=base_revision,
            base_folder=base_folder,
            base_config_sha256=config_digest(config),
            architecture=architectures[0],
            model_type=config["model_type"],
            sets=dict(sets),
            default=default,
            has_dial=has_dial,
            base=previous,
        )
    except ValidationError as error:
        raise InputError(f"--dial: {first_problem(error)}") from None
    config["architectures"] = [ARCHITECTURE_PREFIX + record.architecture]
    config["model_type"] = MODEL_TYPE_PREFIX + record.model_type
    config[BLOCK_KEY] = record.to_block()
    return record, config


def check_sets(sets: Mapping[str, ServedSet], layout: RouterLayout) -> None:
    """Refuse sets with nothing in them, experts that the model lacks or that stand twice, and too many stimulated ones.

    Raises:
        ExpertSetError: with the set's name.
    """
    if not sets:
        raise ExpertSetError("no set is named, expected at least one")
    for name, one in sets.items():
        if name == BASE_NAME:
            raise ExpertSetError(f"a set is named {BASE_NAME!r}, which is the base, expected another name")
        pairs = [*one.suppress, *one.stimulate]
        if not pairs:
            raise ExpertSetError(f"set {name!r} holds no experts, expected at least one")
        for layer, expert in pairs:
            if layer not in layout.moe_layers or expert >= layout.num_experts:
                raise ExpertSetError(
                    f"set {name!r} names layer {layer} expert {expert}, expected a MoE layer of {layout.moe_layers[0]}.."
                    f"{layout.moe_layers[-1]} and an expert of 0..{layout.num_experts - 1}"
                )
        if len(set(pairs)) < len(pairs):
            raise ExpertSetError(f"set {name!r} names an expert twice, expected once")
        for layer in {layer for layer, _ in one.stimulate}:
            count = sum(at == layer for at, _ in one.stimulate)
            if count > layout.top_k:
                raise ExpertSetError(
                    f"set {name!r} stimulates {count} experts of layer {layer}, expected at most the {layout.top_k} that a"
                    " token selects"
                )


def served_set(
    semantics: Semantics, layout: RouterLayout, suppress: ExpertSet | None, stimulate: ExpertSet | None
) -> ServedSet:
    """Expert sets as one that a server knows, by the model's own layer numbers.

    Raises:
        ExpertSetError: for layers that the model lacks.
    """
    for chosen in (suppress, stimulate):
        if chosen is not None and chosen.bias_shifts(layout.moe_layers):
            raise ExpertSetError(
                f"expert set {chosen.behavior!r}: has experts with a bias_shift, which only a checkpoint holds; a served variant"
                " takes the set without it, and a strength with each request"
            )
        if chosen is not None and any(entry.strength is not None or entry.gain is not None for entry in chosen.experts):
            raise ExpertSetError(
                f"expert set {chosen.behavior!r}: has experts with a strength or a gain, which only a checkpoint holds; a served"
                " variant takes the set without it, and a strength with each request"
            )
    pairs = [tuple(chosen.model_pairs(layout.moe_layers)) if chosen else () for chosen in (suppress, stimulate)]
    return ServedSet(semantics=semantics, suppress=pairs[0], stimulate=pairs[1])
