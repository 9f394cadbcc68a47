"""Inside a vLLM worker: edits of the routers of the running model, and the way back.

*reroute* writes the selection bias in place. *drop*, *drop-renorm* and the paper's stimulation change what a router has
selected, by a wrapper around the router's own computation that exists only while such an edit is in force: without one,
the code that runs is vLLM's alone. The wrapper sits before vLLM's routing capture, so records show what was selected.

Since Python runs in every step, the engine has to be eager: a compiled or captured graph would keep the routing it was
made with.

Letters of shapes: N tokens of a step, E experts, K selected experts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class RouterEditor:
    """The routers of one worker's layers, by model layer."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Find the MoE layers of a loaded model; nothing is changed."""
        from vllm.model_executor.layers.fused_moe.layer import MoERunner

        runners = [module for module in model.modules() if isinstance(module, MoERunner)]
        self.runners: dict[int, Any] = {runner.layer_id: runner for runner in runners}
        self._biases: dict[int, torch.Tensor] = {}
        self._wrapped: list[Any] = []

    def describe(self) -> dict[str, list[int]]:
        """The layers of this rank, and which of them route inside their kernel where no wrapper reaches."""
        inside_kernel = [
            layer for layer, runner in self.runners.items() if runner.routed_experts.quant_method.is_monolithic
        ]
        return {"layers": sorted(self.runners), "inside_kernel": sorted(inside_kernel)}

    def set_bias(self, layer: int, values: list[float]) -> None:
        """Write a selection bias [E] in place, remembering the first one; does nothing where the layer is elsewhere."""
        if layer not in self.runners:
            return
        bias = self.runners[layer].router.e_score_correction_bias
        self._biases.setdefault(layer, bias.detach().clone())
        # In place, so that every alias of the tensor and every captured graph sees it.
        with torch.no_grad():
            bias.copy_(torch.tensor(values, dtype=torch.float64).to(bias.dtype).view_as(bias))

    def wrap(self, layer: int, suppress: list[int], stimulate: list[int], renormalize: bool) -> None:
        """Change what a layer's router selects from now on; see edit_selection."""
        if layer not in self.runners:
            return
        router = self.runners[layer].router
        original: Callable[..., tuple[torch.Tensor, torch.Tensor]] = router._compute_routing

        def edited(*arguments: Any, **keywords: Any) -> tuple[torch.Tensor, torch.Tensor]:
            weights, ids = original(*arguments, **keywords)
            return edit_selection(weights, ids, suppress, stimulate, renormalize)

        router._compute_routing = edited
        self._wrapped.append(router)

    def reset(self) -> None:
        """Put back every bias, bit for bit, and take every wrapper away."""
        for layer, original in self._biases.items():
            with torch.no_grad():
                self.runners[layer].router.e_score_correction_bias.copy_(original)
        self._biases.clear()
        for router in self._wrapped:
            del router._compute_routing  # the instance's attribute; the class's method is back
        self._wrapped.clear()


def edit_selection(
    weights: torch.Tensor, ids: torch.Tensor, suppress: list[int], stimulate: list[int], renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Suppress and stimulate as the paper does (arXiv 2502.11096), on one layer's selection.

    weights: [N, K] float; ids: [N, K] int. Returns both anew; `ids` only changes by stimulation.

    1. A stimulated expert that was not selected takes the slot of the selected expert of the lowest weight (of equal
       ones, the lowest id), leaving out the stimulated ones, and the suppressed ones as long as there are others.
    2. Suppressed experts in the selection get weight 0, stimulated ones the largest weight that the router had given.
    3. With `renormalize`, the weights of a token that was touched are scaled to the sum they had before. Where nothing
       but suppressed experts was selected, all weights are 0.

    The paper leaves open what "lowest" refers to and what several stimulated experts do; 1 is our reading.
    """
    before = weights.sum(dim=-1, keepdim=True)
    largest = weights.amax(dim=-1, keepdim=True)
    for expert in stimulate:
        is_absent = ~(ids == expert).any(dim=-1)
        slot = lowest_slot(weights, ids, suppress, stimulate)
        replaced = torch.where(is_absent, torch.full_like(slot, expert), ids.gather(1, slot[:, None])[:, 0]).to(
            ids.dtype
        )
        ids = ids.scatter(1, slot[:, None], replaced[:, None])
    is_stimulated, is_suppressed = is_among(ids, stimulate), is_among(ids, suppress)
    edited = torch.where(is_stimulated, largest.expand_as(weights), weights)
    edited = torch.where(is_suppressed, torch.zeros_like(edited), edited)
    if renormalize:
        after = edited.sum(dim=-1, keepdim=True)
        scale = torch.where(after > 0, before / after, torch.zeros_like(after))
        is_touched = (is_stimulated | is_suppressed).any(dim=-1, keepdim=True)
        # Untouched tokens keep their bits.
        edited = torch.where(is_touched, edited * scale, edited)
    return edited.contiguous(), ids.contiguous()


def is_among(ids: torch.Tensor, experts: list[int]) -> torch.Tensor:
    """Where `ids` [N, K] names one of `experts`: bool [N, K]."""
    return torch.isin(ids, torch.tensor(experts, dtype=ids.dtype, device=ids.device))


def lowest_slot(weights: torch.Tensor, ids: torch.Tensor, suppress: list[int], stimulate: list[int]) -> torch.Tensor:
    """The slot [N] int64 that gives way to a stimulated expert: lowest weight, then lowest id, see edit_selection."""
    # Stable sorts from the least to the most important key.
    order = ids.argsort(dim=-1, stable=True)
    rank = torch.where(is_among(ids, suppress), 1, 0) + torch.where(is_among(ids, stimulate), 2, 0)
    for key in (weights, rank):
        order = order.gather(1, key.gather(1, order).argsort(dim=-1, stable=True))
    return order[:, 0]
