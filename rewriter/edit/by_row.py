"""The edit of routers that have no bias: a reroute by the router's rows where they can hold one, else a drop."""

from collections.abc import Mapping

from rewriter.checkpoint.kinds import Model
from rewriter.edit.by_output import drop_outputs, scale_outputs
from rewriter.edit.patches import EditOptions, LayerEdit, Pair, TensorPatch, numbers_of_layer, of_layer, sha256
from rewriter.edit.record import SHIFTED_ROW, ExpertRecord, VariantRecord
from rewriter.edit.router_weight import RowChange, edit_router
from rewriter.families.family import RouterLayout
from rewriter.semantics import CENTROID, DROP, REROUTE, CheckpointSemantics


def edit_without_bias(
    checkpoint: Model,
    suppressed: list[Pair],
    options: EditOptions,
    previous: VariantRecord | None,
    factors: Mapping[Pair, float],
) -> tuple[CheckpointSemantics, list[LayerEdit], list[TensorPatch]]:
    """The edit of routers without a bias, and what it comes to.

    factors: what the outputs of experts that are dropped in part are multiplied with. Rows of experts that the base suppressed
    already are written anew: their mean was one of more survivors.
    """
    layout = checkpoint.layout
    chosen = {layer: of_layer(suppressed, layer) for layer in sorted({layer for layer, _ in suppressed})}
    may_reroute = options.semantics != DROP and bool(layout.family.router)
    if may_reroute and (options.semantics is not None or layout.reroutes_by_default or layout.family.router_norm):
        before = _rows_suppressed_before(previous)
        pairs = [(one.layer, one.expert) for one in before]
        edits = {
            layer: edit_router(checkpoint, layer, {*experts, *of_layer(pairs, layer)})
            for layer, experts in chosen.items()
        }
        is_certain = all(edit.shift is not None for edit in edits.values())
        if is_certain or options.semantics is not None or layout.reroutes_by_default:
            patches = [_row_patch(row) for edit in edits.values() for row in edit.rows]
            for layer, experts in chosen.items():
                if edits[layer].shift is None:
                    # A row of the base's that was shifted is a mean now, which a token may select.
                    shifted = of_layer(((one.layer, one.expert) for one in before if one.value == SHIFTED_ROW), layer)
                    chosen[layer] = tuple(sorted({*experts, *shifted}))
                    patches += drop_outputs(checkpoint, layout, layer, chosen[layer])
            layers = [
                LayerEdit(layer, experts, (), suppress_value=edits[layer].shift) for layer, experts in chosen.items()
            ]
            return REROUTE if is_certain else CENTROID, layers, patches
    layers, patches = [], []
    for layer, experts in chosen.items():
        own_factors = numbers_of_layer(factors, layer)
        scaled, scaling = scale_outputs(checkpoint, layout, layer, own_factors)
        whole = tuple(expert for expert in experts if expert not in own_factors)
        layers.append(LayerEdit(layer, experts, (), scaled=scaled))
        patches += [*drop_outputs(checkpoint, layout, layer, whole), *scaling]
    return DROP, layers, patches


def _rows_suppressed_before(previous: VariantRecord | None) -> list[ExpertRecord]:
    """The experts whose router rows the base's own edits took out of the selection."""
    records = previous.chain() if previous is not None else ()
    return [one for record in records for one in record.experts if one.edits_row]


def _row_patch(row: RowChange) -> TensorPatch:
    """The patch of one row of a router."""
    return TensorPatch(
        row.entry.name, row.entry.shard, row.start, len(row.after), row.after, sha256(row.before), sha256(row.after)
    )


def bias_free_notes(layout: RouterLayout, semantics: CheckpointSemantics, options: EditOptions) -> list[str]:
    """What a reader must know of an edit of routers without a bias."""
    if layout.has_bias:
        return []
    chosen = f"the router selects {layout.top_k} of {layout.num_candidates} experts"
    if semantics == DROP:
        if options.semantics == DROP:
            return []
        if not layout.family.router:
            return [f"Dropped: family {layout.family.name}'s row names no router weight that could reroute."]
        return [
            f"Dropped, since a row of the router cannot keep an expert out here: {chosen}, more than one in eight."
            " --semantics reroute does it approximately."
        ]
    if semantics == REROUTE:
        return [
            "The rows lie below every survivor's on any input: the norm before the router has a bias that carries them."
        ]
    notes = [
        f"{CENTROID}: the expert adds nothing on any input, and is never ranked first; that it is never selected is"
        + (
            " certain, as the router selects one."
            if layout.top_k == 1
            else " not proved. mote-verify --traces counts it."
        )
    ]
    if not layout.reroutes_by_default:
        notes.append(
            f"Approximate: {chosen}, more than one in eight, so that some tokens still select the suppressed ones, which then"
            " take a place and a share of the weights and add nothing."
        )
    if not layout.renormalize:
        notes.append(
            "The router's weights are not normalised over the selected, so the survivors' are lower by up to one in the"
            " number of experts for each suppressed one than under a router that masks it."
        )
    return notes
