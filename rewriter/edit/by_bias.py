"""The edit of routers that have a bias: which value each expert's bias gets, checked against what the router can bear."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rewriter.checkpoint.kinds import Model
from rewriter.checkpoint.source import TensorEntry
from rewriter.edit.by_output import drop_outputs, scale_outputs
from rewriter.edit.feasibility import check_feasible
from rewriter.edit.patches import (
    EditOptions,
    LayerEdit,
    Pair,
    ShiftedBias,
    TensorPatch,
    numbers_of_layer,
    of_layer,
    whole_patch,
)
from rewriter.edit.record import MINUS_INF, VariantRecord
from rewriter.edit.tensors import MINUS_INFINITY, Margins, decode_bias, edit_bias, margins, shift_bias
from rewriter.errors import CheckpointError, PlanError
from rewriter.families.family import RouterLayout
from rewriter.semantics import DROP, STIMULATE, CheckpointSemantics


def edit_by_bias(
    checkpoint: Model,
    suppressed: list[Pair],
    stimulated: list[Pair],
    semantics: CheckpointSemantics,
    options: EditOptions,
    shifts: Mapping[Pair, float],
    factors: Mapping[Pair, float],
    previous: VariantRecord | None,
) -> tuple[list[LayerEdit], list[TensorPatch]]:
    """The edit of routers with a bias; a drop needs it for stimulation only.

    shifts: what is added to the bias of suppressed experts that stay selectable. factors: what the outputs of experts are
    multiplied with, of those dropped in part and of stimulated ones with a gain. previous: the record of the base, where that is
    a variant itself, whose suppressed experts must stay out.
    """
    layers: list[LayerEdit] = []
    patches: list[TensorPatch] = []
    for layer in sorted({layer for layer, _ in suppressed + stimulated}):
        chosen, favoured = of_layer(suppressed, layer), of_layer(stimulated, layer)
        own_factors = numbers_of_layer(factors, layer)
        scaled, scaling = scale_outputs(checkpoint, checkpoint.layout, layer, own_factors)
        if semantics == DROP:
            whole = tuple(expert for expert in chosen if expert not in own_factors)
            patches += drop_outputs(checkpoint, checkpoint.layout, layer, whole)
        if semantics == DROP and not favoured:
            layers.append(LayerEdit(layer, chosen, (), scaled=scaled))
        else:
            shifted = numbers_of_layer(shifts, layer)
            edit, patch = _edit_layer_bias(checkpoint, layer, chosen, favoured, options, shifted, previous)
            layers.append(replace(edit, scaled=scaled))
            patches.append(patch)
        patches += scaling
    return layers, patches


def _edit_layer_bias(
    checkpoint: Model,
    layer: int,
    suppressed: tuple[int, ...],
    stimulated: tuple[int, ...],
    options: EditOptions,
    shifts: Mapping[int, float],
    previous: VariantRecord | None,
) -> tuple[LayerEdit, TensorPatch]:
    """The patch of one layer's selection bias."""
    layout = checkpoint.layout
    entry, before = _read_bias(checkpoint, layer)
    try:
        # First, since whatever a whole reroute decides must hold against the shifted ones as they will be.
        bias = shift_bias(decode_bias(before, entry.dtype), shifts)
    except ValueError as error:
        raise PlanError(f"layer {layer}: {error}") from None
    if options.semantics == DROP:  # suppression zeroes outputs, the bias serves stimulation only
        suppressed_here: tuple[int, ...] = ()
    else:
        suppressed_here = tuple(expert for expert in suppressed if expert not in shifts)
    # Those of a base that is a variant may be kept out by a finite bias.
    kept_out, raised = _edited_before(previous, layer)
    dead_before = set(np.flatnonzero(np.isneginf(bias)).tolist()) | (kept_out - shifts.keys())
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
    touched = dead_before | raised | {*suppressed_here, *stimulated}
    _check_kept_out(layer, edited, dead_before - {*suppressed_here, *stimulated}, touched, layout)
    edit = LayerEdit(
        layer,
        suppressed,
        stimulated,
        suppress_value=float(edited[suppressed_here[0]]) if suppressed_here else None,
        stimulate_value=float(edited[stimulated[0]]) if stimulated else None,
        shifted=tuple(ShiftedBias(expert, shift, float(edited[expert])) for expert, shift in shifts.items()),
    )
    return edit, whole_patch(entry, before, edited.tobytes())


def _edited_before(previous: VariantRecord | None, layer: int) -> tuple[set[int], set[int]]:
    """The experts of a layer that the base's own edits keep out by the router's bias, and those that they stimulate."""
    edits = [one for one in previous.edits_in_force() if one.layer == layer and one.edits_bias] if previous else []
    return (
        {one.expert for one in edits if one.rules_out_selection},
        {one.expert for one in edits if one.action == STIMULATE},
    )


def _check_kept_out(layer: int, edited: Any, kept_out: set[int], touched: set[int], layout: RouterLayout) -> None:
    """Refuse an edit whose lower biases bring experts that the base keeps out by a finite one within reach of a selection.

    touched: the experts that any edit suppresses or stimulates; the others are those to lie below.
    """
    finite = sorted(expert for expert in kept_out if np.isfinite(float(edited[expert])))
    if not finite:
        return
    bound = _margins(layer, edited, tuple(touched), (), layout).suppress_bound
    for expert in finite:
        if not float(edited[expert]) < bound:
            raise PlanError(
                f"layer {layer}: the base keeps expert {expert} out by a bias of {float(edited[expert]):g}, but beside the biases"
                f" of this edit it could be selected, expected less than {bound:g}; edit the base's own base with one set of all"
                " experts"
            )


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
