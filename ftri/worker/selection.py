"""Pure, graph-safe edits of what a router selected: torch operations of fixed shapes, no branch on a value.

The same functions serve eager, compiled and captured modes, and batches in which every request carries its own edit: what
an edit asks for comes as one row a token, gathered from the tables of ftri.worker.tables.

Letters of shapes: N tokens of a step, E experts, K selected experts, G expert groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RoutingRule:
    """How a router of vLLM's gets from logits to a selection (docs/runtimes.md, "Selection")."""

    scoring: str  # "sigmoid", "softmax" or "sqrtsoftplus"
    top_k: int
    num_groups: int
    groups_kept: int
    has_bias: bool  # a group's score is then the sum of its two best choices, else its best choice
    renormalize: bool
    scale: float  # what the weights are multiplied with at the end


def score(logits: torch.Tensor, scoring: str) -> torch.Tensor:
    """Router logits [N, E] as scores [N, E] float32.

    Raises:
        ValueError: for a scoring function without a formula here.
    """
    values = logits.float()
    if scoring == "sigmoid":
        return values.sigmoid()
    if scoring == "softmax":
        return torch.softmax(values, dim=-1)
    if scoring == "sqrtsoftplus":
        return torch.nn.functional.softplus(values).sqrt()
    raise ValueError(f"scoring function {scoring!r} has no formula, expected one added to ftri/worker/selection.py")


def select(logits: torch.Tensor, bias: torch.Tensor, rule: RoutingRule) -> tuple[torch.Tensor, torch.Tensor]:
    """Select anew with a selection bias of each token's own, which none of vLLM's routers takes.

    logits: [N, E] float; bias: [N, E] float32, added to the scores for the choice only. Returns weights [N, K] float32 and
    ids [N, K] int64, in no order.
    """
    scores = score(logits, rule.scoring)
    choice = scores + bias
    if rule.num_groups > 1:
        grouped = choice.unflatten(-1, (rule.num_groups, -1))
        best = grouped.topk(2, dim=-1)[0].sum(dim=-1) if rule.has_bias else grouped.amax(dim=-1)
        kept = torch.zeros_like(best).scatter(1, best.topk(rule.groups_kept, dim=-1)[1], 1.0).bool()
        choice = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
    ids = choice.topk(rule.top_k, dim=-1)[1]
    weights = scores.gather(1, ids)
    if rule.renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights * rule.scale, ids


def with_mean_logits(logits: torch.Tensor, is_centroid: torch.Tensor) -> torch.Tensor:
    """Logits [N, E] in which those of each token's `is_centroid` experts, bool [N, E], are the mean of its others'.

    What a router row that is the mean of the others' rows gives (rewriter/edit/router_rows.py). A token without such experts
    keeps its bits.
    """
    kept = (~is_centroid).to(torch.float32)
    mean = (logits.float() * kept).sum(dim=-1, keepdim=True) / kept.sum(dim=-1, keepdim=True)
    return torch.where(is_centroid, mean.to(logits.dtype), logits)


def stimulate(
    weights: torch.Tensor, ids: torch.Tensor, factor: torch.Tensor, stimulated: torch.Tensor, strength: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add stimulated experts to the selection as the paper does (arXiv 2502.11096), with the largest weight.

    weights: [N, K] float32; ids: [N, K] int64; factor: [N, E] float32, below 1 where an expert is suppressed; stimulated:
    [N, K] int64, -1 behind a token's last one; strength: [N, 1] float32 of 0..1. Returns weights and ids anew.

    An expert that was not selected takes the slot of the selected expert of the lowest weight (of equal ones, the lowest
    id), leaving out the stimulated ones, and the suppressed ones as long as there are others. Its weight is the largest that
    the router gave the token, times the strength; one that was selected moves towards that by the strength.
    """
    is_wanted = stimulated >= 0
    named = ids.unsqueeze(1) == stimulated.unsqueeze(2)  # [N, stimulated, slots]
    is_absent = is_wanted & ~named.any(dim=2)
    was_selected = named.any(dim=1)
    # Stable sorts from the least to the most important key.
    order = ids.argsort(dim=-1, stable=True)
    rank = (factor.gather(1, ids) < 1).int() + 2 * was_selected.int()
    for key in (weights, rank):
        order = order.gather(1, key.gather(1, order).argsort(dim=-1, stable=True))
    # The n-th absent expert takes the n-th slot of the order; the others are written beside, into a column cut off again.
    place = (is_absent.int().cumsum(dim=-1) - 1).clamp(min=0)
    slot = torch.where(is_absent, order.gather(1, place), ids.shape[1])
    padding = ids.new_zeros(ids.shape[0], 1)
    widened = torch.cat([ids, padding], dim=1).scatter(1, slot, stimulated)
    inserted = torch.zeros_like(widened).scatter(1, slot, 1)[:, :-1].bool()
    largest = weights.amax(dim=-1, keepdim=True)
    start = torch.where(inserted, torch.zeros_like(weights), weights)
    is_stimulated = inserted | was_selected
    changed = torch.where(
        is_stimulated, torch.lerp(start, largest.expand_as(start), strength.expand_as(start)), weights
    )
    return changed, widened[:, :-1]


def weigh(
    weights: torch.Tensor, before: torch.Tensor, factor: torch.Tensor, renormalizes: torch.Tensor
) -> torch.Tensor:
    """Weaken suppressed experts, and give their share to the others where the edit says so.

    weights: [N, K] float32; before: [N, 1] float32, their sum before any edit; factor: [N, K] float32, what each selected
    expert's weight is multiplied with; renormalizes: [N, 1] bool. A token of the base, or that no part of an edit touched, keeps
    its bits (the two sums are then of the same numbers); where nothing but suppressed experts was selected, all weights are 0.
    """
    edited = weights * factor
    after = edited.sum(dim=-1, keepdim=True)
    ratio = before / torch.where(after == 0, 1.0, after)
    return edited * torch.where(renormalizes, ratio, 1.0)
