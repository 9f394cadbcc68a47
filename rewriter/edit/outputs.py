"""The numbers that experts' outputs are multiplied with: which an edit may have, what they leave undone, and in which words.

A suppressed expert has a strength (1 - strength of its output is kept, a drop in part), a stimulated one a gain.
"""

from collections.abc import Iterable, Mapping

from rewriter.checkpoint.kinds import Model
from rewriter.edit.patches import LayerEdit, Pair
from rewriter.edit.record import VariantRecord
from rewriter.edit.scale import is_power_of_two
from rewriter.errors import ExpertSetError, PlanError
from rewriter.expert_set import ExpertSet
from rewriter.families.family import RouterLayout
from rewriter.semantics import DROP, DROP_RENORM, PARTIAL, CheckpointSemantics

RESIDUAL_KEY = "by_traces"
"""Of an expert set's provenance: how far strengths or gains are from the paper's own edit, by traces; `sentences` say it."""


def output_numbers(
    layout: RouterLayout, suppress: ExpertSet | None, stimulate: ExpertSet | None
) -> tuple[dict[Pair, float], dict[Pair, float]]:
    """The strengths below 1 of suppressed experts and the gains other than 1 of stimulated ones, by (model layer, expert).

    Raises: ExpertSetError for a gain of a suppressed expert or a strength of a stimulated one.
    """
    if suppress is not None and suppress.gains(layout.moe_layers):
        raise ExpertSetError(
            f"expert set {suppress.behavior!r}: has experts with a gain, which only stimulated ones can have; expected a strength"
            " in a set to suppress"
        )
    if stimulate is not None and any(entry.strength is not None for entry in stimulate.experts):
        raise ExpertSetError(
            f"expert set {stimulate.behavior!r}: has experts with a strength, which only suppressed ones can have; expected a"
            " gain in a set to stimulate"
        )
    return (
        suppress.strengths(layout.moe_layers) if suppress else {},
        stimulate.gains(layout.moe_layers) if stimulate else {},
    )


def check_outputs(
    layout: RouterLayout,
    semantics: CheckpointSemantics | None,
    strengths: Mapping[Pair, float],
    gains: Mapping[Pair, float],
) -> None:
    """Refuse a part of what has no parts, and outputs that the family's row does not name.

    Raises: PlanError with what would work.
    """
    if strengths and semantics != DROP:
        (layer, expert), strength = next(iter(strengths.items()))
        raise PlanError(
            f"layer {layer} expert {expert} has a strength of {strength:g}, of which a {semantics} has no part: an expert is"
            " selected or it is not; use --semantics drop, which keeps 1 - strength of its output"
            + (", or a bias_shift in the set, by which it is selected less often" if layout.has_bias else "")
        )
    if (strengths or gains) and not layout.family.expert_outputs:
        raise PlanError(
            f"family {layout.family.name}: its row names no expert output tensors, so neither --gain nor --strength is available"
        )


def residual_notes(expert_set: ExpertSet) -> list[str]:
    """What an expert set says of how far it is from the paper's edit; nothing where it says nothing."""
    found = expert_set.provenance.get(RESIDUAL_KEY)
    sentences = found.get("sentences") if isinstance(found, Mapping) else None
    return [str(sentence) for sentence in sentences] if isinstance(sentences, list) else []


def without_residual(expert_set: ExpertSet) -> ExpertSet:
    """A set without what traces said of it, for one whose experts or numbers are other ones now."""
    kept = {key: value for key, value in expert_set.provenance.items() if key != RESIDUAL_KEY}
    return expert_set.model_copy(update={"provenance": kept})


def output_notes(
    checkpoint: Model,
    layers: Iterable[LayerEdit],
    strengths: Mapping[Pair, float],
    gains: Mapping[Pair, float],
    previous: VariantRecord | None,
) -> list[str]:
    """What a reader must know of outputs that are multiplied."""
    scaled = {(edit.layer, one.expert): one for edit in layers for one in edit.scaled}
    if not scaled:
        return []
    notes = []
    if strengths:
        notes.append(
            f"{PARTIAL}: the weights of the other selected experts stay as they are, so that a token's output lacks what is not"
            f" kept; {DROP_RENORM}, the paper's own, scales the others up instead. --traces says how much that is."
        )
    if gains:
        notes.append(
            "gain: one number stands for the largest weight of every token, and the others keep the weights that the paper"
            " lowers by renormalisation. --traces says how far that is from the paper's."
        )
    rounding = max(one.rounding for one in scaled.values())
    notes.append(
        "Scaled outputs are stored exactly."
        if rounding == 0
        else f"Scaled outputs are rounded to the types that they are stored in, by {rounding:.1e} of them at most (root mean"
        " square over an expert)."
    )
    if _has_power_of_two_scales(checkpoint) and any(not is_power_of_two(one.factor) for one in scaled.values()):
        notes.append(
            "config.json says that this model's scales are powers of two (scale_fmt ue8m0), and these are none any more: runtimes"
            " that compute with such scales round them, or the codes, again when they load the model."
        )
    before = {
        (one.layer, one.expert)
        for record in (previous.chain() if previous else ())
        for one in record.experts
        if one.factor
    }
    again = sorted(before & scaled.keys())
    if again:
        places = ", ".join(f"layer {layer} expert {expert}" for layer, expert in again)
        notes.append(f"The base has scaled the output of {places} already; what is written now multiplies that.")
    return notes


def _has_power_of_two_scales(checkpoint: Model) -> bool:
    """Whether the config says that scales, stored as float32, are powers of two (DeepSeek-V3.1 and later)."""
    quantization = checkpoint.config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("scale_fmt") == "ue8m0"
