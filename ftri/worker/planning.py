"""Edits of a running engine's routers: what they mean, and what of them a request carries to the workers.

Four semantics (ftri.worker carries them out):

- reroute: the selection bias that `mote-rewrite` would write; the next-best expert steps in. Where the routers have no bias,
  as no checkpoint can: the expert is left out of the choice.
- reroute (centroid): what a checkpoint without router biases holds in its place. The expert's logit is the mean of the
  others', and its output is dropped where it is selected all the same.
- drop: a suppressed expert keeps its place in the selection and its share, its output is dropped, as in a checkpoint
  with that expert's output zeroed.
- drop-renorm: the paper's own (arXiv 2502.11096). A suppressed expert's weight becomes 0 and the others selected are
  renormalised; a stimulated expert is added to the selection with the largest weight.

Stimulation goes by the bias, as in a checkpoint, under reroute and drop (natural weight), and is the paper's own under
drop-renorm.

A reroute's suppressed expert may have a finite bias shift in place of all of it (docs/dose.md): the bias of a *reroute with a
finite shift*, to the bit that the checkpoint gets.

An expert's output may be multiplied in place of its weight's being 0, or beside its stimulation, as a checkpoint does it
(rewriter/edit/outputs.py): `factors` are what a suppressed expert keeps under drop and drop-renorm, and the gain of one that is
stimulated by its bias.

A strength below 1 does a part of it. drop and drop-renorm: a suppressed expert keeps 1 - strength of its weight; a
stimulated one comes in with strength times the largest weight, or moves that far towards it. reroute: the bias moves by
strength times the width within which it decides anything, the spread of the layer's biases and the range of the score, or by
strength times the shift where the expert has one.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import isfinite
from typing import Any

import numpy as np

from ftri.worker.request import RequestEdit
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.feasibility import check_feasible
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.edit.record import BiasChoice
from rewriter.edit.router_weight import check_survivors
from rewriter.edit.tensors import decode_bias
from rewriter.errors import ExpertSetError, InputError, PlanError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.families.family import RouterLayout
from rewriter.semantics import BIAS_FREE_SEMANTICS, CENTROID, DROP, DROP_RENORM, REROUTE, SEMANTICS, Semantics

Pair = tuple[int, int]  # (model layer, expert)
Entry = tuple[int, int, float]  # (model layer, expert, value)


@dataclass(frozen=True)
class RouterEdit:
    """Experts to suppress and to stimulate, as (model layer, expert), how, and how strongly (0 to 1).

    `suppress_bias` is mote-rewrite's --suppress-bias: "auto", "-inf", "margin" or a number; only reroute looks at it.
    `bias_shifts`, for reroute alone, are (model layer, expert, shift) of suppressed experts that stay selectable. `factors` are
    (model layer, expert, factor) of experts whose output is multiplied: below 1 what a suppressed one keeps of it under drop and
    drop-renorm, and the gain of one that is stimulated by its bias (reroute and drop).
    """

    semantics: Semantics = REROUTE
    suppress: Sequence[Pair] = field(default_factory=tuple)
    stimulate: Sequence[Pair] = field(default_factory=tuple)
    suppress_bias: BiasChoice = "auto"
    strength: float = 1.0
    bias_shifts: Sequence[Entry] = field(default_factory=tuple)
    factors: Sequence[Entry] = field(default_factory=tuple)


@dataclass(frozen=True)
class PlannedEdit:
    """An edit worked out for a model, as its requests carry it."""

    request: RequestEdit

    @cached_property
    def key(self) -> str:
        """A name of what the edit does: equal edits have equal keys, and cached keys and values are shared by it alone."""
        return hashlib.sha256(json.dumps(self.request.as_plain()).encode()).hexdigest()[:32]

    def as_argument(self) -> dict[str, Any]:
        """What ftri.worker.steps.read_live_edit reads."""
        return {"key": self.key, "edit": self.request.as_plain()}


def plan_edit(edit: RouterEdit, checkpoint: Checkpoint, layout: RouterLayout) -> PlannedEdit | None:
    """Work out an edit for a model; a bias is the one that mote-rewrite would write into the checkpoint. None where the
    strength is 0, which is the base.

    Raises:
        InputError: for unknown semantics or a strength outside 0..1.
        ExpertSetError: for experts the model lacks or that contradict each other.
        PlanError: where the router could not bear the edit.
    """
    known = SEMANTICS if layout.has_bias else BIAS_FREE_SEMANTICS
    if edit.semantics not in known:
        raise InputError(
            f"semantics {edit.semantics!r} is not known for family {layout.family.name}, expected one of {', '.join(known)}"
        )
    if not 0 <= edit.strength <= 1:
        raise InputError(f"strength is {edit.strength}, expected a number of 0 to 1")
    check_pairs(edit, layout)
    check_shifts(edit, layout)
    check_factors(edit)
    if edit.strength == 0:
        return None
    factor = factor_entries(edit)
    if edit.semantics == DROP_RENORM:
        stimulated = sorted(edit.stimulate)
        request = RequestEdit(factor=factor, stimulate=stimulated, renormalize=True, strength=edit.strength)
    elif edit.semantics == CENTROID:
        request = RequestEdit(factor=factor, centroid=centroid_entries(edit, layout))
    elif edit.semantics == DROP:
        request = RequestEdit(factor=factor, bias=bias_entries(edit, (), edit.stimulate, checkpoint, layout))
    else:
        biases = bias_entries(edit, edit.suppress, edit.stimulate, checkpoint, layout)
        request = RequestEdit(bias=biases, factor=factor)
    return PlannedEdit(request)


def factor_entries(edit: RouterEdit) -> list[Entry]:
    """What the weights of experts are multiplied with: 0 or their own factor, or a part of the way there from 1."""
    whole = {(layer, expert): factor for layer, expert, factor in edit.factors}
    if edit.semantics != REROUTE:
        whole = {(layer, expert): 0.0 for layer, expert in edit.suppress} | whole
    # So that no rounding keeps a part of a whole drop.
    return [(*pair, 1 - edit.strength * (1 - factor)) for pair, factor in sorted(whole.items())]


def bias_entries(
    edit: RouterEdit, suppress: Sequence[Pair], stimulate: Sequence[Pair], checkpoint: Checkpoint, layout: RouterLayout
) -> list[Entry]:
    """The selection biases of the experts that go by them: what mote-rewrite would write, or a part of the way there."""
    if not (suppress or stimulate):
        return []
    if not layout.has_bias:
        return masked_entries(edit, suppress, stimulate, layout)
    # Also of a partial edit, so that what the whole could not be is refused.
    planned = dict(planned_biases(checkpoint, suppress, stimulate, edit.suppress_bias, edit.bias_shifts))
    if edit.strength == 1:
        return [(layer, expert, planned[layer][expert]) for layer, expert in sorted([*suppress, *stimulate])]
    if layout.score_range is None:
        raise PlanError(
            f"family {layout.family.name} adds its bias to an unbounded score, so no part of a reroute is defined,"
            " expected a strength of 1"
        )
    entries = []
    shifts = {(layer, expert): shift for layer, expert, shift in edit.bias_shifts}
    for pairs, sign in ((suppress, -1), (stimulate, 1)):
        for layer, expert in sorted(pairs):
            whole = shifts.get((layer, expert), sign * shift_width(checkpoint, layout, layer))
            value = float(base_bias(checkpoint, layout, layer)[expert])
            entries.append((layer, expert, value + edit.strength * whole))
    return sorted(entries)


def masked_entries(
    edit: RouterEdit, suppress: Sequence[Pair], stimulate: Sequence[Pair], layout: RouterLayout
) -> list[Entry]:
    """What is added to the scores of routers that have no bias: scores lie in 0..1, so -1 is the whole way."""
    if stimulate:
        raise PlanError(
            f"family {layout.family.name} has no router bias, so nothing is stimulated by it, expected"
            " semantics drop-renorm, whose stimulation is the paper's own"
        )
    for layer, experts in by_layer(suppress).items():
        check_feasible(layer, layout, dead=experts, stimulated=(), edited=[0.0] * layout.num_experts)
    if edit.strength != 1 and layout.family.own_routing_function:
        raise PlanError(
            f"family {layout.family.name} selects by a function of its own, of which no part of a reroute is defined, expected a"
            " strength of 1, or semantics drop or drop-renorm"
        )
    value = float("-inf") if edit.strength == 1 else -edit.strength
    return [(layer, expert, value) for layer, expert in sorted(suppress)]


def centroid_entries(edit: RouterEdit, layout: RouterLayout) -> list[Pair]:
    """The experts whose logits become the mean of the others', checked as for a checkpoint."""
    if edit.stimulate:
        raise PlanError(f"{CENTROID} stimulates nothing, expected semantics drop-renorm")
    if edit.strength != 1:
        raise InputError(f"strength is {edit.strength}, expected 1 for {CENTROID}, of which there is no part")
    for layer, experts in by_layer(edit.suppress).items():
        check_survivors(layer, layout, experts)
    return sorted(edit.suppress)


def base_bias(checkpoint: Checkpoint, layout: RouterLayout, layer: int) -> np.ndarray:
    """The checkpoint's own selection bias of a layer, [E] float64."""
    entry = checkpoint.find(layout.bias_names(layer))
    assert entry is not None, "planned before"
    return decode_bias(checkpoint.read(entry), entry.dtype).astype(np.float64)


def shift_width(checkpoint: Checkpoint, layout: RouterLayout, layer: int) -> float:
    """The width within which a bias of a layer decides anything: the spread of its biases and the range of the score."""
    assert layout.score_range is not None
    bias = base_bias(checkpoint, layout, layer)
    finite = bias[np.isfinite(bias)]
    return float(finite.max() - finite.min()) + layout.score_range


def check_pairs(edit: RouterEdit, layout: RouterLayout) -> None:
    """Refuse an edit that names nothing, what the model lacks, or the same expert twice.

    Raises:
        ExpertSetError: the edit does so.
    """
    pairs = [*edit.suppress, *edit.stimulate]
    if not pairs:
        raise ExpertSetError("nothing to do: the edit names no expert to suppress or to stimulate")
    for layer, expert in pairs:
        if layer not in layout.moe_layers or not 0 <= expert < layout.num_experts:
            raise ExpertSetError(
                f"the edit names layer {layer} expert {expert}, expected a MoE layer of "
                f"{layout.moe_layers[0]}..{layout.moe_layers[-1]} and an expert of 0..{layout.num_experts - 1}"
            )
        if pairs.count((layer, expert)) > 1:
            raise ExpertSetError(f"the edit names layer {layer} expert {expert} more than once, expected once")
    for layer, experts in by_layer(edit.stimulate).items():
        if len(experts) > layout.top_k:
            raise ExpertSetError(
                f"layer {layer}: {len(experts)} experts are stimulated, expected at most the {layout.top_k} a token "
                "selects"
            )


def check_shifts(edit: RouterEdit, layout: RouterLayout) -> None:
    """Refuse bias shifts of experts that are not suppressed, that are not finite numbers below 0, or that nothing takes.

    Raises:
        InputError: the edit has such.
        PlanError: the model's routers have no bias of their own that a shift could be added to.
    """
    suppressed = set(map(tuple, edit.suppress))
    for layer, expert, shift in edit.bias_shifts:
        place = f"layer {layer} expert {expert} has a bias shift of {shift:g}"
        if (layer, expert) not in suppressed:
            raise InputError(f"{place}, but is not suppressed by the edit, expected it among the suppressed")
        if not (isfinite(shift) and shift < 0):
            raise InputError(f"{place}, expected a finite number below 0")
        if edit.semantics != REROUTE:
            raise InputError(
                f"{place}, expected none with semantics {edit.semantics}, which has a strength in its place"
            )
        if not layout.has_bias or not layout.family.can_stimulate:
            why = "a router bias that is part of the logit" if layout.has_bias else "no router bias"
            raise PlanError(
                f"{place}, but family {layout.family.name} has {why}, which no live edit shifts, expected none"
            )


def check_factors(edit: RouterEdit) -> None:
    """Refuse factors of experts that the edit does not name, that are no finite numbers above 0, or that nothing takes.

    Raises:
        InputError: the edit has such.
    """
    suppressed, stimulated = set(map(tuple, edit.suppress)), set(map(tuple, edit.stimulate))
    for layer, expert, factor in edit.factors:
        place = f"layer {layer} expert {expert} has a factor of {factor:g}"
        if not (isfinite(factor) and factor > 0):
            raise InputError(f"{place}, expected a finite number above 0")
        if (layer, expert) in suppressed:
            if edit.semantics not in (DROP, DROP_RENORM) or factor >= 1:
                raise InputError(
                    f"{place} and is suppressed under {edit.semantics}, expected a factor below 1 under drop or drop-renorm"
                )
        elif (layer, expert) not in stimulated:
            raise InputError(f"{place}, but is not among the edit's experts, expected one of them")
        elif edit.semantics not in (REROUTE, DROP):
            raise InputError(
                f"{place} and is stimulated under {edit.semantics}, which gives it the largest weight, expected no factor"
            )


def by_layer(pairs: Iterable[Pair]) -> dict[int, list[int]]:
    """The experts of each layer, layers and experts ascending."""
    experts: defaultdict[int, list[int]] = defaultdict(list)
    for layer, expert in sorted(pairs):
        experts[layer].append(expert)
    return dict(experts)


def planned_biases(
    checkpoint: Checkpoint,
    suppress: Iterable[Pair],
    stimulate: Iterable[Pair],
    suppress_bias: BiasChoice = "auto",
    bias_shifts: Iterable[Entry] = (),
) -> list[tuple[int, list[float]]]:
    """The selection biases [E] by layer that mote-rewrite would give a variant of the checkpoint."""
    options = EditOptions(semantics=REROUTE, suppress_bias=suppress_bias)
    plan = make_plan(checkpoint, as_expert_set(suppress, bias_shifts), as_expert_set(stimulate), options)
    biases = []
    for layer_edit, patch in zip(plan.layers, plan.patches, strict=True):
        assert patch.data is not None, "reroute patches hold the whole bias"
        dtype = checkpoint.header(patch.shard).tensors[patch.tensor].dtype
        biases.append((layer_edit.layer, decode_bias(patch.data, dtype).astype(np.float64).tolist()))
    return biases


def as_expert_set(pairs: Iterable[Pair], bias_shifts: Iterable[Entry] = ()) -> ExpertSet | None:
    """Pairs, and the bias shifts of some of them, as an expert set without provenance; None for no pairs."""
    shifts = {(layer, expert): shift for layer, expert, shift in bias_shifts}
    entries = [
        ExpertEntry(layer=int(layer), expert=int(expert), bias_shift=shifts.get((layer, expert)))
        for layer, expert in pairs
    ]
    return ExpertSet(layer_index="model", behavior="edit", experts=entries) if entries else None
