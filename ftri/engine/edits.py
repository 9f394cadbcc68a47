"""Edits of a running engine's routers: what they mean, and what of it each worker is told.

Three semantics (see also ftri.worker.edits, which carries out the last two):

- reroute: the selection bias that `mote-rewrite` would write; the next-best expert steps in.
- drop: a suppressed expert keeps its place in the selection and its share, its output is dropped, as in a checkpoint
  with that expert's output zeroed.
- drop-renorm: the paper's own (arXiv 2502.11096). A suppressed expert's weight becomes 0 and the others selected are
  renormalised; a stimulated expert is added to the selection with the largest weight.

Stimulation goes by the bias, as in a checkpoint, under reroute and drop (natural weight), and is the paper's own under
drop-renorm.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.plan import EditOptions, make_plan
from rewriter.edit.record import BiasChoice
from rewriter.edit.tensors import decode_bias
from rewriter.errors import ExpertSetError, InputError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.families.family import RouterLayout
from rewriter.semantics import DROP, REROUTE, SEMANTICS, Semantics

Pair = tuple[int, int]  # (model layer, expert)


@dataclass(frozen=True)
class RouterEdit:
    """Experts to suppress and to stimulate, as (model layer, expert), and how.

    `suppress_bias` is mote-rewrite's --suppress-bias: "auto", "-inf", "margin" or a number; only reroute looks at it.
    """

    semantics: Semantics = REROUTE
    suppress: Sequence[Pair] = field(default_factory=tuple)
    stimulate: Sequence[Pair] = field(default_factory=tuple)
    suppress_bias: BiasChoice = "auto"


@dataclass(frozen=True)
class WorkerEdit:
    """An edit as the workers take it: new selection biases (layer, values [E]), and routers to wrap (layer, suppressed,
    stimulated, whether the rest is renormalised)."""

    biases: list[tuple[int, list[float]]]
    wrappers: list[tuple[int, list[int], list[int], bool]]


def worker_edit(edit: RouterEdit, folder: Path, layout: RouterLayout) -> WorkerEdit:
    """Work out an edit for the model in `folder`; a bias is the one that mote-rewrite would write into the checkpoint.

    Raises InputError for unknown semantics, ExpertSetError for experts the model lacks or that contradict each other,
    PlanError where the router could not bear the edit.
    """
    if edit.semantics not in SEMANTICS:
        raise InputError(f"semantics {edit.semantics!r} is not known, expected one of {', '.join(SEMANTICS)}")
    check_pairs(edit, layout)
    if edit.semantics == REROUTE:
        return WorkerEdit(planned_biases(folder, edit.suppress, edit.stimulate, edit.suppress_bias), [])
    suppressed, stimulated = by_layer(edit.suppress), by_layer(edit.stimulate)
    if edit.semantics == DROP:
        wrappers = [(layer, experts, list[int](), False) for layer, experts in suppressed.items()]
        return WorkerEdit(planned_biases(folder, (), edit.stimulate) if edit.stimulate else [], wrappers)
    return WorkerEdit(
        [],
        [
            (layer, suppressed.get(layer, []), stimulated.get(layer, []), True)
            for layer in sorted(suppressed.keys() | stimulated.keys())
        ],
    )


def check_pairs(edit: RouterEdit, layout: RouterLayout) -> None:
    """Refuse an edit that names nothing, what the model lacks, or the same expert twice.

    Raises ExpertSetError.
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


def by_layer(pairs: Iterable[Pair]) -> dict[int, list[int]]:
    """The experts of each layer, layers and experts ascending."""
    experts: defaultdict[int, list[int]] = defaultdict(list)
    for layer, expert in sorted(pairs):
        experts[layer].append(expert)
    return dict(experts)


def planned_biases(
    folder: Path, suppress: Iterable[Pair], stimulate: Iterable[Pair], suppress_bias: BiasChoice = "auto"
) -> list[tuple[int, list[float]]]:
    """The selection biases [E] by layer that mote-rewrite would give a variant of the checkpoint in `folder`."""
    checkpoint = Checkpoint.open(folder)
    options = EditOptions(semantics=REROUTE, suppress_bias=suppress_bias)
    plan = make_plan(checkpoint, as_expert_set(suppress), as_expert_set(stimulate), options)
    biases = []
    for layer_edit, patch in zip(plan.layers, plan.patches, strict=True):
        assert patch.data is not None, "reroute patches hold the whole bias"
        dtype = checkpoint.header(patch.shard).tensors[patch.tensor].dtype
        biases.append((layer_edit.layer, decode_bias(patch.data, dtype).astype(np.float64).tolist()))
    return biases


def as_expert_set(pairs: Iterable[Pair]) -> ExpertSet | None:
    """Pairs as an expert set without provenance; None for no pairs."""
    entries = [ExpertEntry(layer=int(layer), expert=int(expert)) for layer, expert in pairs]
    return ExpertSet(layer_index="model", behavior="edit", experts=entries) if entries else None
