"""Inside a vLLM worker: which experts every token selected, attributed by the cache slot the token was written to.

Every token that is run through the model is written to a slot of the KV cache, and its routing belongs to it for as long
as the cached keys and values do. So the rows of a step are kept in a table by slot, and a request's rows are read off
through its block table when it has finished. Mixed batches, chunked prefill, preemption (its tokens are run again, in
other slots) and prefix-cache hits (the slots hold the rows of the request that filled them) need no case of their own.

Letters of shapes: S cache slots, N tokens of a step, T tokens of a request, L MoE layers of this rank, K selected experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ftri.traces.rows import expert_dtype


class RoutingRecorder:
    """The slot table of one worker, fed by vLLM's own capture buffer after each step."""

    def __init__(self, runner: Any, vllm_config: Any, num_choices: int) -> None:
        """Attach vLLM's capture to the routers of `runner`'s model and allocate the table [S, L, K].

        num_choices: the ids that a router chooses from, which may be more than the experts that vLLM counts.

        Raises:
            RuntimeError: the model runner is not the one this was written for.
            ValueError: vLLM cannot capture a layer's routing.
        """
        from vllm.model_executor.layers.fused_moe.layer import MoERunner
        from vllm.model_executor.layers.fused_moe.routed_experts_capturer import (
            RoutedExpertsCapturer,
            bind_routed_experts_capturer,
        )

        if not hasattr(runner, "requests") or not hasattr(runner.input_batch, "block_table"):
            raise RuntimeError(f"the routing hook needs vLLM's model runner V1, found {type(runner).__name__}")
        self.runner = runner
        self.layers = sorted(module.layer_id for module in runner.model.modules() if isinstance(module, MoERunner))
        # Under data, expert and sequence parallelism the routers see other ranks' tokens too; vLLM's own capture knows
        # which rows are this rank's.
        self.capturer = RoutedExpertsCapturer(vllm_config.scheduler_config.max_num_batched_tokens, vllm_config)
        if self.layers:
            bind_routed_experts_capturer(runner.model, self.capturer)
        self.group, self.block_size = full_attention_group(runner.kv_cache_config)
        num_slots = runner.kv_cache_config.num_blocks * self.block_size
        top_k = self.capturer.shape_per_token[1]
        # vLLM goes by the experts alone, so that ids of zero-computation experts beside 256 of them would wrap in a byte.
        dtype = expert_dtype(num_choices)
        self.capturer.output_dtype_name, self.capturer.output_dtype = dtype.name, getattr(torch, dtype.name)
        self.table = np.zeros((num_slots, len(self.layers), top_k), dtype)
        # Rows of finished requests nobody has asked for yet, and requests asked for before the engine let go of them.
        self.finished: dict[str, np.ndarray] = {}
        self.taken: set[str] = set()
        self._execute_model = runner.execute_model
        runner.execute_model = self.execute_model

    def execute_model(self, scheduler_output: Any, *arguments: Any, **keywords: Any) -> Any:
        """Run a step as the model runner does, and keep its routing."""
        # The blocks of a finished request may be written to in this very step.
        for request_id in scheduler_output.finished_req_ids:
            if request_id in self.taken:
                self.taken.discard(request_id)
            elif request_id in self.runner.requests:
                self.finished[request_id] = self._read(request_id)
        output = self._execute_model(scheduler_output, *arguments, **keywords)
        num_tokens = scheduler_output.total_num_scheduled_tokens
        if num_tokens and self.layers:
            slots = self.runner.input_batch.block_table[self.group].slot_mapping.gpu[:num_tokens]
            rows = self.capturer.snapshot_routing_data(num_tokens)
            self.table[slots.cpu().numpy()] = rows.cpu().numpy()[:, self.layers]
        return output

    def take(self, request_ids: list[str], num_rows: list[int]) -> list[bytes | None]:
        """Hand over the rows [T, L, K] of finished requests as bytes; None for a request that ran on another rank."""
        answers: list[bytes | None] = []
        for request_id, count in zip(request_ids, num_rows, strict=True):
            rows = self.finished.pop(request_id, None)
            if rows is None and request_id in self.runner.requests:
                rows = self._read(request_id)
                self.taken.add(request_id)
            answers.append(None if rows is None else rows[:count].tobytes())
        return answers

    def clear(self) -> None:
        """Forget the rows of requests that nobody asked for."""
        self.finished.clear()
        self.taken.clear()

    def _read(self, request_id: str) -> np.ndarray:
        blocks = np.asarray(self.runner.requests[request_id].block_ids[self.group], np.int64)
        return self.table[(blocks[:, None] * self.block_size + np.arange(self.block_size)).reshape(-1)]


def full_attention_group(kv_cache_config: Any) -> tuple[int, int]:
    """The group of cache blocks that keeps every token of a request, and its block size.

    Raises:
        RuntimeError: no layer attends to all tokens.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec, UniformTypeKVCacheSpecs

    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        spec = group.kv_cache_spec
        specs = spec.kv_cache_specs.values() if isinstance(spec, UniformTypeKVCacheSpecs) else [spec]
        if any(isinstance(one, FullAttentionSpec) for one in specs):
            return number, spec.block_size
    raise RuntimeError("no attention layer of this model keeps all tokens in its cache, so rows cannot be attributed")
