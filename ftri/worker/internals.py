"""Every name inside vLLM that the workers, the engine and the plugin touch: what of it is relied on, and since when.

vLLM's releases move such names, so nothing else in the project spells a module of vLLM's out. `make test-vllm` runs what is
built on them on several releases and looks every name up in the sources of newer ones.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

# Releases that `make test-vllm` runs; another one belongs here when it has passed (MOTE_ANY_VLLM=1 lets it be tried).
TESTED_RELEASES = ("0.30", "0.31", "0.32")


@dataclass(frozen=True)
class Internal:
    """One name of vLLM's: where it is, what is relied on, and the first release that has it there."""

    module: str
    name: str
    relied_on: str
    since: str
    members: tuple[str, ...] = ()  # methods and attributes of a class that are used by name
    key: str = ""  # what the table calls it, where another module of vLLM's has the same name


FUSED_MOE = "vllm.model_executor.layers.fused_moe"

INTERNALS = {
    one.key or one.name: one
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
            "a module per MoE layer with layer_id, layer_name, router, routed_experts.quant_method.is_monolithic, moe_config",
            "0.28",
            ("router", "routed_experts", "moe_config", "layer_id", "layer_name"),
        ),
        Internal(
            "vllm.forward_context",
            "get_forward_context",
            "within a step, no_compile_layers has the modules of MoE layers by layer_name",
            "0.28",
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
            "query_start_loc.np describe the step; execute_model(scheduler_output, ...) runs it, an attribute that can be set on "
            "the object, after which input_batch.block_table[group].slot_mapping.gpu has the cache slots of its tokens",
            "0.28",
            ("_model_forward", "get_model", "requests", "input_batch", "query_start_loc", "execute_model"),
        ),
        Internal(
            "vllm.v1.worker.gpu.model_runner",
            "GPUModelRunner",
            "V2: get_model; execute_model(scheduler_output, ...) as V1's, then block_tables.slot_mappings [groups, tokens] "
            "has the cache slots of its tokens; kv_cache_config",
            "0.32",
            ("get_model", "execute_model", "block_tables", "kv_cache_config"),
            key="GPUModelRunner V2",
        ),
        Internal(
            "vllm.v1.worker.gpu.block_table",
            "BlockTables",
            "V2: slot_mappings, int64 [groups, tokens], -1 for tokens without a slot on this rank",
            "0.32",
            ("slot_mappings",),
        ),
        Internal(
            "vllm.v1.core.sched.output",
            "SchedulerOutput",
            "finished_req_ids, scheduled_new_reqs, scheduled_cached_reqs and total_num_scheduled_tokens of a step, to either "
            "runner",
            "0.28",
            ("finished_req_ids", "scheduled_new_reqs", "scheduled_cached_reqs", "total_num_scheduled_tokens"),
        ),
        Internal(
            "vllm.v1.core.sched.output",
            "NewRequestData",
            "req_id and block_ids (a list a group), all that the request has so far; V2 gets resumed requests as new ones",
            "0.28",
            ("req_id", "block_ids"),
        ),
        Internal(
            "vllm.v1.core.sched.output",
            "CachedRequestData",
            "req_ids and their new_block_ids, added to what each has, or in its place for resumed_req_ids",
            "0.28",
            ("req_ids", "new_block_ids", "resumed_req_ids"),
        ),
        Internal(
            "vllm.v1.kv_cache_interface",
            "FullAttentionSpec",
            "the cache of layers that keep every token of a request; block_size",
            "0.28",
        ),
        Internal(
            "vllm.v1.kv_cache_interface",
            "UniformTypeKVCacheSpecs",
            "kv_cache_specs, the layers of a group that share blocks",
            "0.28",
            ("kv_cache_specs",),
        ),
        Internal(
            f"{FUSED_MOE}.routed_experts_capturer",
            "RoutedExpertsCapturer",
            "capture(layer, rows [N, K]) writes this rank's rows, of whichever the router saw, to device_buffer[:, layer], "
            "asked only where there are several ranks",
            "0.30",
            ("capture", "device_buffer"),
        ),
        Internal(
            "vllm.distributed.parallel_state",
            "get_tp_group",
            "is_first_rank: tensor-parallel ranks route alike",
            "0.28",
        ),
        Internal(
            "vllm.config.vllm",
            "VllmConfig",
            "handed to a model's constructor: model_config.hf_config (on which hf_overrides are set), scheduler_config, "
            "parallel_config, device_config, compilation_config; use_v2_model_runner says which runner will run it",
            "0.28",
            ("model_config", "scheduler_config", "parallel_config", "device_config", "compilation_config")
            + ("use_v2_model_runner",),
        ),
        Internal(
            "vllm.engine.arg_utils",
            "EngineArgs",
            "fields by name; add_cli_args(parser); create_engine_config() raises ValueError or NotImplementedError for what this "
            "build cannot do; aux_output_config, or before 0.31 enable_return_routed_experts, has routed_experts returned",
            "0.28",
            ("add_cli_args", "create_engine_config", "enable_return_routed_experts"),
        ),
        Internal(
            "vllm.v1.engine.llm_engine",
            "LLMEngine",
            "from_engine_args, add_request(id, prompt, params) -> the id that workers see, step, abort_request, "
            "has_unfinished_requests, collective_rpc, get_tokenizer, engine_core.shutdown",
            "0.28",
            ("from_engine_args", "add_request", "step", "abort_request", "has_unfinished_requests", "collective_rpc"),
        ),
        Internal(
            "vllm.outputs",
            "CompletionOutput",
            "routed_experts [tokens, hidden layers, top-k], set when the request has finished",
            "0.28",
            ("routed_experts",),
        ),
        Internal(
            "vllm.distributed.parallel_state",
            "cleanup_dist_env_and_memory",
            "lets go of what an engine held in this process",
            "0.28",
        ),
        Internal("vllm.exceptions", "VLLMError", "what the engine raises for a request that it refuses", "0.30"),
        Internal("vllm.inputs", "TokensPrompt", "a prompt as token ids, a dict that takes cache_salt", "0.28"),
        Internal("vllm.sampling_params", "RequestOutputKind", "CUMULATIVE and FINAL_ONLY", "0.28"),
        Internal("vllm.platforms", "current_platform", "is_cpu()", "0.28"),
        Internal(
            "vllm.utils.argparse_utils",
            "FlexibleArgumentParser",
            "the parser of vLLM's own command line, whose error(message) can be overridden",
            "0.28",
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
