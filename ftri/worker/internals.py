"""Every name inside vLLM that the workers, the engine and the plugin touch: what of it is relied on, and since when.

vLLM's releases move such names, so nothing else in the project spells a module of vLLM's out. `make test-vllm` runs what is
built on them on several releases and looks every name up in the sources of newer ones.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Internal:
    """One name of vLLM's: where it is, what is relied on, and the first release that has it there."""

    module: str
    name: str
    relied_on: str
    since: str
    members: tuple[str, ...] = ()  # methods and attributes of a class that are used by name


FUSED_MOE = "vllm.model_executor.layers.fused_moe"

INTERNALS = {
    one.name: one
    for one in (
        Internal(
            f"{FUSED_MOE}.layer",
            "create_fused_moe_router",
            "called by this name, as a global of its module, for every router while a model is constructed",
            "0.28",
        ),
        Internal(
            f"{FUSED_MOE}.runner.moe_runner",
            "MoERunner",
            "a module per MoE layer with layer_id, router, routed_experts.quant_method.is_monolithic, moe_config",
            "0.28",
            ("router", "routed_experts", "moe_config", "layer_id"),
        ),
        Internal(
            f"{FUSED_MOE}.router.base_router",
            "BaseRouter",
            "_compute_routing(hidden_states, router_logits, indices_type, ...) -> (weights [N, K], logical ids [N, K])",
            "0.28",
            ("_compute_routing", "set_capture_fn", "top_k", "global_num_experts"),
        ),
        Internal(
            f"{FUSED_MOE}.router.zero_expert_router",
            "ZeroExpertRouter",
            "routes to choices that are no experts, so no edit is known for it",
            "0.28",
        ),
        Internal(
            f"{FUSED_MOE}.config",
            "RoutingMethodType",
            "Custom: no kernel that routes by itself takes it",
            "0.28",
            ("Custom",),
        ),
        Internal(
            "vllm.model_executor.models.registry",
            "ModelRegistry",
            "register_model by 'module:class', get_supported_archs, models[architecture].load_model_cls",
            "0.28",
        ),
        Internal(
            "vllm.model_executor.models.config",
            "MODELS_CONFIG_MAP",
            "presets by architecture, a dict",
            "0.28",
        ),
        Internal(
            "vllm.transformers_utils.config",
            "_CONFIG_REGISTRY",
            "config classes by model_type, a dict that is asked before transformers' own",
            "0.28",
        ),
        Internal(
            "vllm.v1.engine.input_processor",
            "InputProcessor",
            "process_inputs(request_id, prompt, params, ...) is called in the front end for every request, before it is sent, "
            "and returns a request whose cache_salt can be set",
            "0.28",
            ("process_inputs", "model_config"),
        ),
        Internal(
            "vllm.v1.engine.async_llm",
            "AsyncLLM",
            "generate(prompt, sampling_params, ...) is called by the servers before they begin an answer; input_processor",
            "0.28",
            ("generate", "input_processor"),
        ),
        Internal(
            "vllm.exceptions",
            "VLLMValidationError",
            "answered with HTTP 400 and its text",
            "0.30",
        ),
        Internal(
            "vllm.config.speculative",
            "SpeculativeConfig",
            "hf_config_override(config of a draft) is looked up on the class and goes by architectures[0] for some families",
            "0.28",
            ("hf_config_override", "enable_adaptive_verification"),
        ),
        Internal(
            "vllm.v1.worker.gpu_model_runner",
            "GPUModelRunner",
            "V1: _model_forward is called once a step; get_model, requests[id].sampling_params, input_batch.req_ids and "
            "query_start_loc.np describe the step",
            "0.28",
            ("_model_forward", "get_model", "requests", "input_batch", "query_start_loc", "execute_model"),
        ),
        Internal(
            "vllm.v1.worker.gpu.model_states",
            "resolve_model_state_cls",
            "V2: (vllm_config, model) -> the class whose add_request, remove_request and prepare_inputs see requests and "
            "steps; a model's own get_model_state_cls comes first",
            "0.29",
        ),
    )
}


def module(name: str) -> Any:
    """The module of vLLM's that holds a name of the table."""
    return importlib.import_module(INTERNALS[name].module)


def load(name: str) -> Any:
    """A name of the table.

    Raises:
        ImportError: when this vLLM does not have it, with what it is needed for.
    """
    try:
        return getattr(module(name), name)
    except (ImportError, AttributeError) as error:
        internal = INTERNALS[name]
        raise ImportError(
            f"this vLLM has no {internal.module}.{name}, which MoTE relies on since {internal.since} ({internal.relied_on})"
        ) from error
