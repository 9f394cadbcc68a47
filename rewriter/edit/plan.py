"""Pure: checkpoint + expert sets + options -> the exact byte patches and config changes. Nothing is written here.

Legend: E routed experts.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rewriter import __version__
from rewriter.checkpoint.edited_json import parse_config
from rewriter.checkpoint.kinds import Model
from rewriter.edit.by_bias import edit_by_bias
from rewriter.edit.by_row import bias_free_notes, edit_without_bias
from rewriter.edit.outputs import check_outputs, output_notes, output_numbers, residual_notes
from rewriter.edit.patches import EditOptions, LayerEdit, Pair, TensorPatch
from rewriter.edit.record import (
    BLOCK_KEY,
    MEAN_ROW,
    MINUS_INF,
    SCALED_OUTPUT,
    SHIFTED_ROW,
    VARIANT_SCHEMA,
    ZERO_OUTPUT,
    ExpertRecord,
    SetRecord,
    TensorRecord,
    VariantRecord,
    find_record,
)
from rewriter.edit.tensors import (
    MINUS_INFINITY,
)
from rewriter.errors import ExpertSetError, PlanError
from rewriter.expert_set import ExpertSet
from rewriter.families.family import RouterLayout, language_config
from rewriter.semantics import CENTROID, DROP, REROUTE, STIMULATE, SUPPRESS, CheckpointSemantics

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


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
    shifts = suppress.bias_shifts(layout.moe_layers) if suppress else {}
    strengths, gains = output_numbers(layout, suppress, stimulate)
    if strengths and options.semantics is None:
        options = replace(options, semantics=DROP)  # of an output a part can be kept, of a place in the selection none
    _check_semantics(layout, options, bool(suppressed), bool(stimulated))
    _check_shifts(layout, options, shifts, stimulate)
    check_outputs(layout, options.semantics, strengths, gains)
    factors = {pair: 1 - strength for pair, strength in strengths.items()} | gains
    previous = find_record(checkpoint.config, checkpoint.source.name, checkpoint.config_place)
    if layout.has_bias:
        semantics: CheckpointSemantics = DROP if options.semantics == DROP else REROUTE
        layers, patches = edit_by_bias(
            checkpoint, suppressed, stimulated, semantics, options, shifts, factors, previous
        )
    else:
        semantics, layers, patches = edit_without_bias(checkpoint, suppressed, options, previous, factors)

    renormalizes, renormalization, config = _edit_config(checkpoint, options)
    notes = [remark for remark in (layout.family.notes, layout.vllm_remark) if remark]
    if any(edit.suppress_value == MINUS_INFINITY for edit in layers) and layout.family.minus_inf_warning:
        notes.append(layout.family.minus_inf_warning)
    notes += [str(chosen.provenance["layer_convention"]) for chosen in sets if "layer_convention" in chosen.provenance]
    notes += bias_free_notes(layout, semantics, options)
    if shifts and not layout.family.can_stimulate:
        notes.append(
            "This family's router bias is part of the logit, so a shifted expert also weighs less where it is selected."
        )
    notes += output_notes(checkpoint, layers, strengths, gains, previous)
    notes += [note for chosen in sets for note in residual_notes(chosen)]
    if previous is not None:
        notes.append("The base is itself a MoTE variant; its edits stay, and its mote block is kept as mote.base.")
    unusual: dict[str, Any] = {} if previous is None else {"base": previous}
    if not options.stamp:
        unusual["stamped"] = False
    if semantics == CENTROID and not layout.reroutes_by_default:
        unusual["approximate"] = True
    record = VariantRecord(
        schema_id=VARIANT_SCHEMA,
        tool_version=__version__,
        base_model=base_model,
        base_revision=base_revision,
        base_folder=base_folder,
        behavior=behavior_of(suppress, stimulate),
        semantics=semantics,
        suppress_bias=MINUS_INF if options.suppress_bias == MINUS_INFINITY else options.suppress_bias,
        renormalize=options.renormalize,
        renormalization=renormalization,
        layer_index="model",
        experts=[expert for edit in layers for expert in _expert_records(edit, semantics, layout, strengths, gains)],
        changed_files=sorted({patch.shard for patch in patches} | _settings_shards(checkpoint, options)),
        fingerprint=_fingerprint(patches),
        tensors=[_tensor_record(patch) for patch in patches],
        expert_sets=[
            SetRecord(behavior=chosen.behavior, model=_without_path(chosen.model), provenance=chosen.provenance)
            for chosen in sets
        ],
        **unusual,
    )
    config[BLOCK_KEY] = record.to_block()
    return Plan(record, tuple(layers), tuple(patches), config, checkpoint.config_place, renormalizes, tuple(notes))


def _settings_shards(checkpoint: Model, options: EditOptions) -> set[str]:
    """The shard that every edit changes, if there is one."""
    shard = checkpoint.settings_shard(options.stamp)
    return set() if shard is None else {shard}


def behavior_of(suppress: ExpertSet | None, stimulate: ExpertSet | None) -> str:
    """What the variant is named after: `refusal`, `stimulate-english`, or both joined."""
    parts = [suppress.behavior] if suppress else []
    parts += [f"stimulate-{stimulate.behavior}"] if stimulate else []
    return "-".join(parts)


def _without_path(model: str | None) -> str | None:
    """A set's model as a variant that is shared has it: a Hub id, or a folder's own name, never its path."""
    return model if model is None or HUB_ID.fullmatch(model) else Path(model).name


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


def _check_semantics(layout: RouterLayout, options: EditOptions, suppressing: bool, stimulating: bool) -> None:
    """Refuse what the family's routers cannot do, naming what they can."""
    family = layout.family
    if stimulating and not layout.has_bias:
        raise PlanError(
            f"family {family.name} has no router bias, so its checkpoints cannot stimulate an expert;"
            " --semantics drop-renorm, which a server with this package does, can"
        )
    if suppressing and options.semantics in (REROUTE, CENTROID) and not layout.has_bias and not family.router:
        raise PlanError(
            f"family {family.name}: this model has no router bias, and the family's row names no router weight, so its"
            " checkpoint cannot reroute; --semantics drop (the experts' output zeroed, their share kept) suppresses experts"
        )
    if suppressing and options.semantics == CENTROID and layout.has_bias:
        raise PlanError(f"family {family.name} has a router bias, expected a reroute by it instead of {CENTROID}")
    if stimulating and (not family.can_stimulate or layout.score_range is None):
        raise PlanError(
            f"family {family.name}: experts can only be suppressed, since its router bias"
            + (" enters the expert's weight as well" if not family.can_stimulate else " is added to an unbounded score")
        )
    if suppressing and (options.semantics == DROP or not layout.has_bias) and not family.expert_outputs:
        raise PlanError(f"family {family.name}: its row names no expert output tensors, so drop is not available")
    if options.suppress_bias == MINUS_INF and not family.minus_inf_safe:
        raise PlanError(
            f"family {family.name}: runtimes are known to fail on a router bias of -inf; use --suppress-bias margin"
        )


def _check_shifts(
    layout: RouterLayout, options: EditOptions, shifts: Mapping[Pair, float], stimulate: ExpertSet | None
) -> None:
    """Refuse finite shifts where there is no bias that they could be added to, or nothing that they could mean."""
    if stimulate is not None and stimulate.bias_shifts(layout.moe_layers):
        raise ExpertSetError(
            f"expert set {stimulate.behavior!r}: has experts with a bias_shift, which only suppressed ones can have; expected"
            " none in a set to stimulate"
        )
    if not shifts:
        return
    (layer, expert), shift = next(iter(shifts.items()))
    place = f"layer {layer} expert {expert} has a bias_shift of {shift:g}"
    if options.semantics == DROP:
        raise PlanError(
            f"{place}, which a drop has no place for; use --semantics reroute, or leave bias_shift out of the set"
        )
    if not layout.has_bias:
        raise PlanError(
            f"{place}, but family {layout.family.name}'s router has no bias: its logit is a product with the token's hidden"
            " state, and no row adds a constant to that; leave bias_shift out of the set"
        )


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


def _expert_records(
    edit: LayerEdit,
    semantics: CheckpointSemantics,
    layout: RouterLayout,
    strengths: Mapping[Pair, float],
    gains: Mapping[Pair, float],
) -> Iterator[ExpertRecord]:
    """What is recorded of the experts of one layer."""
    suppressed: Any = value_text(edit.suppress_value)
    if semantics == DROP:
        suppressed = ZERO_OUTPUT
    elif not layout.has_bias:
        suppressed = MEAN_ROW if edit.suppress_value is None else SHIFTED_ROW
    stimulated = value_text(edit.stimulate_value)
    shifted = {one.expert: one for one in edit.shifted}
    for expert in edit.suppressed:
        place: dict[str, Any] = {"layer": edit.layer, "expert": expert, "action": SUPPRESS}
        if expert in shifted:
            yield ExpertRecord(**place, value=shifted[expert].value, bias_shift=shifted[expert].shift)
        elif (edit.layer, expert) in strengths:
            yield ExpertRecord(**place, value=SCALED_OUTPUT, strength=strengths[edit.layer, expert])
        else:
            yield ExpertRecord(**place, value=suppressed)
    for expert in edit.stimulated:
        own = {"gain": gains[edit.layer, expert]} if (edit.layer, expert) in gains else {}
        yield ExpertRecord(layer=edit.layer, expert=expert, action=STIMULATE, value=stimulated, **own)


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
