"""Pure: checkpoint + expert sets + options -> the exact byte patches and config changes. Nothing is written here.

Legend: E routed experts.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from rewriter import __version__
from rewriter.checkpoint.edited_json import parse_config
from rewriter.checkpoint.kinds import Model
from rewriter.checkpoint.source import TensorEntry
from rewriter.edit.feasibility import check_feasible
from rewriter.edit.record import (
    BLOCK_KEY,
    MINUS_INF,
    VARIANT_SCHEMA,
    ZERO_OUTPUT,
    BiasChoice,
    ExpertRecord,
    SetRecord,
    TensorRecord,
    VariantRecord,
    find_record,
)
from rewriter.edit.tensors import (
    MINUS_INFINITY,
    Margins,
    decode_bias,
    edit_bias,
    margins,
)
from rewriter.edit.zero import Fill, find_weight, zero_weight
from rewriter.errors import CheckpointError, ExpertSetError, PlanError
from rewriter.expert_set import ExpertSet
from rewriter.families.family import RouterLayout, language_config
from rewriter.semantics import DROP, REROUTE, STIMULATE, SUPPRESS, CheckpointSemantics

Pair = tuple[int, int]  # (model layer, expert)


@dataclass(frozen=True)
class EditOptions:
    """What the user may choose about an edit."""

    semantics: CheckpointSemantics = REROUTE
    suppress_bias: BiasChoice = "auto"
    renormalize: bool = False  # turn renormalisation on where the base was trained without
    stamp: bool = True  # mark the headers of edited shards; without, only values change and no length does


@dataclass(frozen=True)
class TensorPatch:
    """New bytes for a range of one tensor: `data`, or the byte `fill` throughout where `data` is None."""

    tensor: str
    shard: str
    start: int  # first byte, counted from the start of the tensor
    size_bytes: int
    data: bytes | None
    sha256_before: str
    sha256_after: str
    fill: int = 0


@dataclass(frozen=True)
class LayerEdit:
    """What happens to the routed experts of one model layer."""

    layer: int
    suppressed: tuple[int, ...]
    stimulated: tuple[int, ...]
    suppress_value: float | None = None  # the bias given; None where the output is zeroed instead, or nothing is
    stimulate_value: float | None = None


@dataclass(frozen=True)
class Plan:
    """All that makes a variant out of a base."""

    record: VariantRecord  # as the variant's config.json carries it
    layers: tuple[LayerEdit, ...]
    patches: tuple[TensorPatch, ...]
    config: dict[str, Any]  # the variant's config.json
    config_place: str  # the file that the config stands in
    renormalizes: bool | None  # what the variant's config says; None where the family has no flag
    notes: tuple[str, ...] = field(default=())

    @property
    def changed_shards(self) -> tuple[str, ...]:
        """The shards that differ from the base's: those with a planned tensor, and the one with the record; sorted."""
        return tuple(self.record.changed_files)

    @property
    def patched_bytes(self) -> int:
        """Bytes of tensors that are written anew."""
        return sum(patch.size_bytes for patch in self.patches)


def make_plan(
    checkpoint: Model,
    suppress: ExpertSet | None,
    stimulate: ExpertSet | None,
    options: EditOptions,
    *,
    base_model: str | None = None,
    base_revision: str | None = None,
    base_folder: str | None = None,
) -> Plan:
    """Work out an edit completely.

    Raises: ExpertSetError for sets that do not fit the model or contradict each other; PlanError for an edit that the model's
    router cannot bear; CheckpointError for a checkpoint that is not what its config says.
    """
    sets = [chosen for chosen in (suppress, stimulate) if chosen is not None]
    if not sets:
        raise ExpertSetError("nothing to do: give experts to suppress or to stimulate")
    layout = checkpoint.layout
    suppressed = _pairs(suppress, layout) if suppress else []
    stimulated = _pairs(stimulate, layout) if stimulate else []
    both = sorted(set(suppressed) & set(stimulated))
    if both:
        raise ExpertSetError(
            f"layer {both[0][0]} expert {both[0][1]} is to be both suppressed and stimulated; choose one"
        )
    _check_semantics(layout, options, bool(suppressed), bool(stimulated))

    layers, patches = [], []
    for layer in sorted({layer for layer, _ in suppressed + stimulated}):
        chosen = _of_layer(suppressed, layer)
        favoured = _of_layer(stimulated, layer)
        if options.semantics == DROP:
            patches += _drop(checkpoint, layout, layer, chosen)
            if not favoured:
                layers.append(LayerEdit(layer, chosen, ()))
                continue
        edit, patch = _edit_layer_bias(checkpoint, layer, chosen, favoured, options)
        layers.append(edit)
        patches.append(patch)

    renormalizes, renormalization, config = _edit_config(checkpoint, options)
    notes = [remark for remark in (layout.family.notes, layout.vllm_remark) if remark]
    if any(edit.suppress_value == MINUS_INFINITY for edit in layers) and layout.family.minus_inf_warning:
        notes.append(layout.family.minus_inf_warning)
    notes += [str(chosen.provenance["layer_convention"]) for chosen in sets if "layer_convention" in chosen.provenance]
    previous = find_record(checkpoint.config, checkpoint.source.name, checkpoint.config_place)
    if previous is not None:
        notes.append("The base is itself a MoTE variant; its edits stay, and its mote block is kept as mote.base.")
    unusual: dict[str, Any] = {} if previous is None else {"base": previous}
    if not options.stamp:
        unusual["stamped"] = False
    record = VariantRecord(
        schema_id=VARIANT_SCHEMA,
        tool_version=__version__,
        base_model=base_model,
        base_revision=base_revision,
        base_folder=base_folder,
        behavior=_behavior(suppress, stimulate),
        semantics=options.semantics,
        suppress_bias=MINUS_INF if options.suppress_bias == MINUS_INFINITY else options.suppress_bias,
        renormalize=options.renormalize,
        renormalization=renormalization,
        layer_index="model",
        experts=[expert for edit in layers for expert in _expert_records(edit, options)],
        changed_files=sorted({patch.shard for patch in patches} | _settings_shards(checkpoint, options)),
        fingerprint=_fingerprint(patches),
        tensors=[_tensor_record(patch) for patch in patches],
        expert_sets=[
            SetRecord(behavior=chosen.behavior, model=chosen.model, provenance=chosen.provenance) for chosen in sets
        ],
        **unusual,
    )
    config[BLOCK_KEY] = record.to_block()
    return Plan(record, tuple(layers), tuple(patches), config, checkpoint.config_place, renormalizes, tuple(notes))


def _settings_shards(checkpoint: Model, options: EditOptions) -> set[str]:
    """The shard that every edit changes, if there is one."""
    shard = checkpoint.settings_shard(options.stamp)
    return set() if shard is None else {shard}


def value_text(value: float | None) -> Literal["-inf"] | float | None:
    """A bias value for JSON, which has no infinity."""
    return MINUS_INF if value == MINUS_INFINITY else value


def _pairs(expert_set: ExpertSet, layout: RouterLayout) -> list[Pair]:
    """The set's experts as (model layer, expert), checked against the model."""
    if not expert_set.experts:
        raise ExpertSetError(f"expert set {expert_set.behavior!r}: holds no experts, expected at least one")
    pairs = expert_set.model_pairs(layout.moe_layers)
    for layer, expert in pairs:
        if expert >= layout.num_experts:
            raise ExpertSetError(
                f"expert set {expert_set.behavior!r}: layer {layer} has no expert {expert}, the routed experts are"
                f" 0..{layout.num_experts - 1}"
            )
    for (layer, expert), count in Counter(pairs).items():
        if count > 1:
            raise ExpertSetError(
                f"expert set {expert_set.behavior!r}: layer {layer} expert {expert} stands {count} times, expected once"
            )
    return pairs


def _of_layer(pairs: Iterable[Pair], layer: int) -> tuple[int, ...]:
    return tuple(sorted(expert for at, expert in pairs if at == layer))


def _behavior(suppress: ExpertSet | None, stimulate: ExpertSet | None) -> str:
    """What the variant is named after: `refusal`, `stimulate-english`, or both joined."""
    parts = [suppress.behavior] if suppress else []
    parts += [f"stimulate-{stimulate.behavior}"] if stimulate else []
    return "-".join(parts)


def _check_semantics(layout: RouterLayout, options: EditOptions, suppressing: bool, stimulating: bool) -> None:
    """Refuse what the family's routers cannot do, naming what they can."""
    family = layout.family
    if not layout.has_bias and (stimulating or (suppressing and options.semantics == REROUTE)):
        what = STIMULATE if stimulating else REROUTE
        raise PlanError(
            f"family {family.name} has no router bias, so its checkpoints cannot {what};"
            " --semantics drop (the experts' output zeroed, their share kept) suppresses experts of this family"
        )
    if stimulating and (not family.can_stimulate or layout.score_range is None):
        raise PlanError(
            f"family {family.name}: experts can only be suppressed, since its router bias"
            + (" enters the expert's weight as well" if not family.can_stimulate else " is added to an unbounded score")
        )
    if suppressing and options.semantics == DROP and not family.expert_outputs:
        raise PlanError(f"family {family.name}: its row names no expert output tensors, so drop is not available")
    if options.suppress_bias == MINUS_INF and not family.minus_inf_safe:
        raise PlanError(
            f"family {family.name}: runtimes are known to fail on a router bias of -inf; use --suppress-bias margin"
        )


def _edit_layer_bias(
    checkpoint: Model, layer: int, suppressed: tuple[int, ...], stimulated: tuple[int, ...], options: EditOptions
) -> tuple[LayerEdit, TensorPatch]:
    """The patch of one layer's selection bias."""
    layout = checkpoint.layout
    entry, before = _read_bias(checkpoint, layer)
    bias = decode_bias(before, entry.dtype)
    if options.semantics == DROP:  # suppression zeroes outputs, the bias serves stimulation only
        suppressed_here: tuple[int, ...] = ()
    else:
        suppressed_here = suppressed
    dead_before = set(np.flatnonzero(np.isneginf(bias)).tolist())
    revived = dead_before & set(stimulated)
    value = _suppress_value(layer, bias, suppressed_here, stimulated, options, layout) if suppressed_here else None
    favour = _margins(layer, bias, suppressed_here, stimulated, layout).stimulate if stimulated else None
    edited = edit_bias(
        bias,
        dict.fromkeys(suppressed_here, value) if value is not None else {},
        dict.fromkeys(stimulated, favour) if favour is not None else {},
    )
    if not np.isfinite(edited[list(stimulated)].astype(np.float64)).all():
        raise PlanError(f"layer {layer}: the stimulate margin {favour:g} does not fit the bias's type {entry.dtype}")
    if suppressed_here and value != MINUS_INFINITY and not np.isfinite(edited[suppressed_here[0]].astype(np.float64)):
        raise PlanError(
            f"layer {layer}: a suppress bias of {value:g} does not fit the bias's type {entry.dtype}, expected a number that"
            " does, or -inf"
        )
    check_feasible(
        layer,
        layout,
        dead=(dead_before - revived) | set(suppressed_here),
        stimulated=stimulated,
        edited=edited.astype(np.float64).ravel().tolist(),
    )
    edit = LayerEdit(
        layer,
        suppressed,
        stimulated,
        suppress_value=float(edited[suppressed_here[0]]) if suppressed_here else None,
        stimulate_value=float(edited[stimulated[0]]) if stimulated else None,
    )
    return edit, _patch(entry, before, edited.tobytes())


def _read_bias(checkpoint: Model, layer: int) -> tuple[TensorEntry, bytes]:
    """The selection bias of a layer, its type and shape checked."""
    layout, names = checkpoint.layout, checkpoint.layout.bias_names(layer)
    entry = checkpoint.find(names)
    where = checkpoint.source.name
    if entry is None:
        raise CheckpointError(
            f"{where}: has no tensor {' or '.join(names)}, expected the selection bias of layer {layer}"
        )
    num_choices = layout.num_experts + layout.num_other_choices
    if entry.dtype not in checkpoint.bias_dtypes:
        raise CheckpointError(
            f"{where}/{entry.shard}: {entry.name} is {entry.dtype}, expected one of {', '.join(checkpoint.bias_dtypes)}"
        )
    if entry.shape not in ((num_choices,), (1, num_choices)):
        raise CheckpointError(
            f"{where}/{entry.shard}: {entry.name} has shape {list(entry.shape)}, expected [{num_choices}]"
        )
    data = checkpoint.read(entry)
    values = decode_bias(data, entry.dtype)
    unfit = np.isnan(values) | np.isposinf(values)
    if unfit.any():
        expert = int(np.flatnonzero(unfit)[0])
        raise CheckpointError(
            f"{where}/{entry.shard}: {entry.name} is {values[expert]} for expert {expert}, expected a finite number"
        )
    return entry, data


def _suppress_value(
    layer: int,
    bias: Any,
    suppressed: tuple[int, ...],
    stimulated: tuple[int, ...],
    options: EditOptions,
    layout: RouterLayout,
) -> float:
    """The bias that a layer's suppressed experts get."""
    choice = options.suppress_bias
    if choice == MINUS_INF or (choice == "auto" and layout.family.takes_minus_inf):
        return MINUS_INFINITY
    finite = _margins(layer, bias, suppressed, stimulated, layout)
    if choice in ("auto", "margin"):
        return finite.suppress
    value = float(choice)
    if not value < finite.suppress_bound:
        raise PlanError(
            f"layer {layer}: a suppress bias of {value:g} could still be selected, expected less than"
            f" {finite.suppress_bound:g} (the margin is {finite.suppress:g})"
        )
    return value


def _margins(
    layer: int, bias: Any, suppressed: tuple[int, ...], stimulated: tuple[int, ...], layout: RouterLayout
) -> Margins:
    """The finite margins of one layer, or why there are none."""
    if layout.score_range is None:
        raise PlanError(
            f"layer {layer}: family {layout.family.name} adds its bias to an unbounded score, so no finite margin is"
            " certain; use --suppress-bias=-inf"
        )
    try:
        return margins(bias, {*suppressed, *stimulated}, layout.score_range)
    except ValueError as error:
        raise PlanError(f"layer {layer}: {error}, so no margin can be computed; edit fewer experts") from None


def _drop(checkpoint: Model, layout: RouterLayout, layer: int, experts: tuple[int, ...]) -> list[TensorPatch]:
    """The patches that zero the experts' outputs."""
    patches = []
    for expert in experts:
        alternatives = layout.expert_output_names(layer, expert)
        found = [[find_weight(checkpoint, name) for name in names] for names in alternatives]
        chosen = next((number for number, weights in enumerate(found) if all(weights)), None)
        if chosen is None:
            expected = " or ".join(" and ".join(names) for names in alternatives)
            raise CheckpointError(
                f"{checkpoint.source.name}: has no tensor {expected}, expected the output of expert {expert}"
            )
        for template, weight in zip(layout.family.expert_outputs[chosen], found[chosen], strict=True):
            assert weight is not None
            row = None if "{expert}" in template else expert
            patches += [_filled(checkpoint, fill) for fill in zero_weight(checkpoint, weight, row, layout.num_experts)]
    return patches


def _filled(checkpoint: Model, fill: Fill) -> TensorPatch:
    """The patch that fills a range of a tensor with one byte."""
    before = checkpoint.read(fill.entry.part(fill.start, fill.size_bytes))
    after = bytes([fill.byte]) * fill.size_bytes
    hashes = _sha256(before), _sha256(after)
    return TensorPatch(fill.entry.name, fill.entry.shard, fill.start, fill.size_bytes, None, *hashes, fill=fill.byte)


def _patch(entry: TensorEntry, before: bytes, after: bytes) -> TensorPatch:
    assert len(after) == entry.size_bytes
    return TensorPatch(entry.name, entry.shard, 0, entry.size_bytes, after, _sha256(before), _sha256(after))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _edit_config(checkpoint: Model, options: EditOptions) -> tuple[bool | None, str, dict[str, Any]]:
    """A copy of the config with the renormalisation flag as it must be, and a sentence that says so."""
    config = parse_config(checkpoint.config_text)
    family, layout = checkpoint.layout.family, checkpoint.layout
    if family.renormalize is None:
        return None, f"family {family.name} has no renormalisation flag; nothing to set", config
    text = language_config(config, family)
    assert isinstance(text, dict)  # both ways of reading it come from json.loads
    if layout.renormalize:
        known = family.renormalize in text
        text[family.renormalize] = True
        sentence = f"{family.renormalize} is true in the base and {'stays' if known else 'is written out as'} true"
        return True, sentence, config
    if options.renormalize:
        if checkpoint.settings_need_stamp and not options.stamp:
            raise PlanError(
                f"{family.renormalize} stands in the header of {checkpoint.config_place}, which --no-stamp leaves alone, so"
                " --renormalize cannot be given with it"
            )
        text[family.renormalize] = True
        sentence = f"{family.renormalize} was false in the base and is turned on as asked, which changes every token"
        return True, sentence, config
    return False, f"{family.renormalize} is false in the base and stays so: turning it on changes every token", config


def _expert_records(edit: LayerEdit, options: EditOptions) -> Iterable[ExpertRecord]:
    """What is recorded of the experts of one layer."""
    suppressed = ZERO_OUTPUT if options.semantics == DROP else value_text(edit.suppress_value)
    stimulated = value_text(edit.stimulate_value)
    for expert in edit.suppressed:
        yield ExpertRecord(layer=edit.layer, expert=expert, action=SUPPRESS, value=suppressed)
    for expert in edit.stimulated:
        yield ExpertRecord(layer=edit.layer, expert=expert, action=STIMULATE, value=stimulated)


def _tensor_record(patch: TensorPatch) -> TensorRecord:
    """What is recorded of a patch: all but its bytes."""
    return TensorRecord(
        name=patch.tensor,
        shard=patch.shard,
        start=patch.start,
        size_bytes=patch.size_bytes,
        sha256_before=patch.sha256_before,
        sha256_after=patch.sha256_after,
    )


def _fingerprint(patches: Iterable[TensorPatch]) -> str:
    """A hash of what the edit does to the tensors; it differs between variants of one base."""
    lines = [f"{patch.tensor} {patch.start} {patch.sha256_after}" for patch in patches]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()
