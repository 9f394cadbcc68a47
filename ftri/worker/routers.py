"""vLLM's own routers with an edit behind their computation, for every family at once.

`create_fused_moe_router` makes every router while a model is constructed. Exchanged for that time, it hands out routers of
a subclass of their own class whose `_compute_routing` edits what was selected, and then writes it down where a recording is
wanted. No model's code is copied, and vLLM's own computation always comes first: the bits of tokens without an edit are its
own.

Letters of shapes: N tokens of a step, E experts, K selected experts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ftri.worker import internals
from ftri.worker.record import StepRows
from ftri.worker.selection import RoutingRule, select, stimulate, weigh, with_mean_logits
from ftri.worker.tables import REROUTES, STIMULATES, WEIGHS, EditTables


class UneditableError(ValueError):
    """A layer of the model routes where no edit reaches, or in a way that no edit is known for."""


@contextmanager
def editable_routers() -> Iterator[None]:
    """Make vLLM hand out editable routers within."""
    module = internals.module("create_fused_moe_router")
    original = module.create_fused_moe_router

    def create(*arguments: Any, **keywords: Any) -> Any:
        router = original(*arguments, **keywords)
        if isinstance(router, internals.load("BaseRouter")) and not isinstance(
            router, internals.load("ZeroExpertRouter")
        ):
            own_class: Any = type(router)
            router.__class__ = editable_class(own_class)
        return router

    module.create_fused_moe_router = create
    try:
        yield
    finally:
        module.create_fused_moe_router = original


@functools.cache
def editable_class(router_class: Any) -> type:
    """A subclass of a router's class that edits. Single inheritance, so that an object's class can be exchanged for it."""

    def compute_routing(
        self: Any, hidden_states: Any, router_logits: Any, indices_type: Any, **keywords: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = router_class._compute_routing(self, hidden_states, router_logits, indices_type, **keywords)
        if self.mote_tables is None and self.mote_rows is None:
            return weights, ids
        if torch.compiler.is_compiling():
            return torch.ops.mote.route(hidden_states, router_logits, weights, ids, self.mote_layer_name)
        return self.mote_route(hidden_states, router_logits, weights, ids)

    def mote_route(
        self: Any, hidden_states: Any, router_logits: Any, weights: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.mote_tables is not None and self.mote_tables.needed[self.mote_row]:
            weights, ids = self.mote_edit(hidden_states, router_logits, weights, ids)
        if self.mote_rows is not None:
            self.mote_rows.write(self.mote_row, weights, ids)
        return weights, ids

    def mote_edit(
        self: Any, hidden_states: Any, router_logits: Any, weights: torch.Tensor, ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def reselect(bias: torch.Tensor, is_centroid: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            logits = with_mean_logits(router_logits, is_centroid[:, : router_logits.shape[-1]])
            if self.mote_rule is not None:
                own = self.e_score_correction_bias.float().view(1, -1) if self.mote_rule.has_bias else 0.0
                return select(logits, torch.where(bias.isnan(), own, bias), self.mote_rule)
            # A function of the model's own: it is asked again, with what it must not choose out of its reach.
            masked = logits.masked_fill(bias == float("-inf"), float("-inf"))
            return router_class._compute_routing(self, hidden_states, masked, ids.dtype)

        return edit_routing(weights, ids, self.mote_tables, self.mote_row, reselect)

    def routing_method_type(self: Any) -> Any:
        # Kernels that route by themselves know no such method, so vLLM chooses one that asks the router.
        return internals.load("RoutingMethodType").Custom

    return type(
        f"Mote{router_class.__name__}",
        (router_class,),
        {
            "mote_tables": None,
            "mote_rows": None,
            "_compute_routing": compute_routing,
            "mote_route": mote_route,
            "mote_edit": mote_edit,
            "routing_method_type": property(routing_method_type),
            # Asked by vLLM 0.33 instead.
            "kernel_routing_method_type": property(routing_method_type),
            "supports_monolithic_kernels": False,
            "__doc__": router_class.__doc__,
        },
    )


def route_in_graph(
    hidden_states: torch.Tensor, router_logits: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, layer_name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """A router's edit and record as one operator of a compiled graph, where vLLM compiles routers with the model (its CPU
    build; on GPUs they lie behind an operator of its own). Compiled into the graph instead, the edit's results reach vLLM's CPU
    kernel in a layout that it does not expect (vLLM 0.32: it takes routing for contiguous, whatever its strides).

    The router is found by its layer's name, as vLLM's own operators find theirs: graphs are kept on disk, and taken for
    later models of the same kind."""
    layer = internals.load("get_forward_context")().no_compile_layers[layer_name]
    edited, selected = layer.router.mote_route(hidden_states, router_logits, weights, ids)
    # An operator's results are never its arguments.
    return (edited.clone() if edited is weights else edited), (selected.clone() if selected is ids else selected)


def _shapes_in_graph(
    hidden_states: torch.Tensor, router_logits: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, layer_name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(weights), torch.empty_like(ids)


# By torch's plain registration, as vLLM does with its own: `torch.library.custom_op` adds checks of every call, which took as
# long as the operator.
OPERATORS = torch.library.Library("mote", "FRAGMENT")
OPERATORS.define("route" + torch.library.infer_schema(route_in_graph, mutates_args=()))
OPERATORS.impl("route", route_in_graph, "CompositeExplicitAutograd")
torch.library.register_fake("mote::route", _shapes_in_graph, lib=OPERATORS)


def edit_routing(
    weights: torch.Tensor, ids: torch.Tensor, tables: EditTables, row: int, reselect: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer selects after every token's own edit.

    weights: [N, K and more] float32, ids: [N, K and more] int: the router's selection; behind the first K columns stand
    shared experts that some kernels run along, which stay. row: the layer's in the tables. reselect: per-token biases
    [N, E] and whose logit becomes the others' mean, bool [N, E] -> (weights [N, K], ids [N, K]). Returns weights anew, and ids
    too where they can change.
    """
    needed, top_k, num_tokens = tables.needed[row], tables.top_k, ids.shape[0]
    own_weights, own_ids = (weights, ids) if ids.shape[1] == top_k else (weights[:, :top_k], ids[:, :top_k])
    edited, selected = own_weights.contiguous(), own_ids
    if needed & (REROUTES | STIMULATES):
        slots = tables.slots_of(num_tokens)
        # Padding may be marked by an id of -1, and unsigned ids know few operations.
        index = own_ids.to(torch.int64).clamp(min=0)
        if needed & REROUTES:
            new_weights, new_ids = reselect(tables.bias[row][slots], tables.is_centroid[row][slots])
            is_rerouted = tables.is_rerouted[row][slots].unsqueeze(1)
            edited = torch.where(is_rerouted, new_weights[:, :top_k].to(edited.dtype), edited)
            index = torch.where(is_rerouted, new_ids[:, :top_k].to(torch.int64), index)
        before = edited.sum(dim=-1, keepdim=True)
        if needed & STIMULATES:
            stimulated, strength = tables.stimulated[row][slots], tables.strength[slots].unsqueeze(1)
            edited, index = stimulate(edited, index, tables.factor[row][slots], stimulated, strength)
        selected = torch.where(own_ids.to(torch.int64) < 0, own_ids.to(torch.int64), index).to(ids.dtype)
    else:
        before = edited.sum(dim=-1, keepdim=True)
    if needed & WEIGHS:
        edited = weigh(edited, before, tables.factor_of(row, selected), tables.renormalizes_of(num_tokens))
    if ids.shape[1] > top_k:
        return torch.cat([edited, weights[:, top_k:]], dim=1), torch.cat([selected, ids[:, top_k:]], dim=1)
    return edited.contiguous(), selected.contiguous()


def routing_rule(router: Any) -> RoutingRule | None:
    """How a router selects, or None where a function of the model's own does.

    Raises:
        UneditableError: for a router that looks experts up by token.
    """
    if getattr(router, "_hash_indices_table", None) is not None:
        raise UneditableError("a layer looks its experts up by token, where no bias is read, expected scores")
    if getattr(router, "custom_routing_function", None) is not None:
        return None
    is_grouped = getattr(router, "use_grouped_topk", hasattr(router, "topk_group")) and router.num_expert_group
    has_bias = getattr(router, "e_score_correction_bias", None) is not None
    # vLLM's plain softmax routers ignore the factor.
    scales = is_grouped or has_bias
    return RoutingRule(
        scoring=router.scoring_func,
        top_k=router.top_k,
        num_groups=router.num_expert_group if is_grouped else 1,
        groups_kept=router.topk_group if is_grouped else 1,
        has_bias=has_bias,
        renormalize=router.renormalize,
        scale=router.routed_scaling_factor if scales else 1.0,
    )


def reach(model: torch.nn.Module) -> list[int]:
    """Number the routers of a newly constructed model's MoE layers, so that they can be edited and recorded; returns the layers.

    Raises:
        UneditableError: where a layer's routing cannot be reached.
    """
    runners = moe_runners(model)
    for row, (layer, runner) in enumerate(runners.items()):
        if not hasattr(runner.router, "mote_tables"):
            raise UneditableError(f"layer {layer}: neither edits nor records reach a {type(runner.router).__name__}")
        if runner.routed_experts.quant_method.is_monolithic:
            raise UneditableError(KERNEL_SENTENCE.format(layer=layer))
        # Some methods choose their kernel only when weights are loaded.
        runner.routed_experts.forward_monolithic = refuse_monolithic(layer)
        runner.router.mote_row, runner.router.mote_layer_name = row, runner.layer_name
    return list(runners)


def attach_edits(model: torch.nn.Module, vllm_config: Any, num_slots: int) -> EditTables:
    """Give every MoE layer of a model whose routers were reached its row of new tables.

    Raises:
        UneditableError: where no edit is known for a layer's router.
    """
    runners = moe_runners(model)
    layers = list(runners)
    num_experts = max(runners[layer].moe_config.num_logical_experts for layer in layers)
    tables = EditTables(
        layers=layers,
        num_experts=num_experts,
        top_k=max(runners[layer].router.top_k for layer in layers),
        num_slots=num_slots,
        num_tokens=step_size(vllm_config),
        device=torch.device(vllm_config.device_config.device),
        # vLLM's CPU build captures no graphs, so that Python runs there in compiled mode too.
        is_eager=vllm_config.model_config.enforce_eager or vllm_config.device_config.device.type == "cpu",
    )
    for layer in layers:
        router = runners[layer].router
        router.mote_tables, router.mote_rule = tables, routing_rule(router)
    return tables


def attach_rows(model: torch.nn.Module, vllm_config: Any, num_choices: int, keeps_weights: bool) -> StepRows:
    """Have the routers of a model, which were reached, write down what they select (ftri.worker.record)."""
    runners = moe_runners(model)
    top_k = max((runner.router.top_k for runner in runners.values()), default=0)
    rows = StepRows(len(runners), step_size(vllm_config), top_k, num_choices, keeps_weights, vllm_config)
    for runner in runners.values():
        runner.router.mote_rows = rows
    return rows


KERNEL_SENTENCE = (
    "layer {layer} routes inside a fused kernel where neither edits nor records reach, expected a modular one (choose another"
    " with --moe-backend)"
)


def refuse_monolithic(layer: int) -> Any:
    """What stands in for a kernel that routes by itself: better no answer than the base's under an edit's name."""

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise UneditableError(KERNEL_SENTENCE.format(layer=layer))

    return refuse


def step_size(vllm_config: Any) -> int:
    """The most tokens that a step can have, padding included."""
    captured = vllm_config.compilation_config.max_cudagraph_capture_size or 0
    # Sequence parallelism pads to a multiple of the ranks.
    padding = vllm_config.parallel_config.tensor_parallel_size
    return max(vllm_config.scheduler_config.max_num_batched_tokens, captured) + padding


def moe_runners(model: torch.nn.Module) -> dict[int, Any]:
    """The MoE layers of a model on this rank, by model layer, ascending."""
    runner_class = internals.load("MoERunner")
    runners = {module.layer_id: module for module in model.modules() if isinstance(module, runner_class)}
    return dict(sorted(runners.items()))


def describe(model: torch.nn.Module) -> dict[str, list[int]]:
    """The layers of this rank, those that route inside their kernel where no edit reaches, and those that route by a
    function of the model's own."""
    runners = moe_runners(model)
    return {
        "layers": list(runners),
        "inside_kernel": [
            layer for layer, runner in runners.items() if runner.routed_experts.quant_method.is_monolithic
        ],
        "own_function": [
            layer for layer, runner in runners.items() if getattr(runner.router, "mote_rule", ...) is None
        ],
    }
