"""Inside a vLLM worker: which experts every token selected, attributed by the cache slot the token was written to.

The routers of ftri.worker.routers write what they selected, after any edit, into buffers of fixed place (`StepRows`), so that
a compiled or captured step fills them as an eager one does. After a step its rows go to a table by cache slot.

Every token that is run through the model is written to a slot of the KV cache, and its routing belongs to it for as long
as the cached keys and values do. So a request's rows are read off through its blocks when it has finished. Mixed batches,
chunked prefill, preemption (its tokens are run again, in other slots) and prefix-cache hits (the slots hold the rows of the
request that filled them) need no case of their own. The scheduler says which blocks a request has, in the same words to
either of vLLM's model runners; where each keeps the slots of a step is all that differs (`slot_mapping`).

Letters of shapes: S cache slots, N tokens of a step, T tokens of a request, L MoE layers of this rank, K selected experts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ftri.traces.rows import expert_dtype
from ftri.worker import internals

# Rows [T, L, K] of a request: its experts and, where they are kept, their weights.
Rows = tuple[npt.NDArray[Any], npt.NDArray[Any] | None]


class StepRows:
    """What the routers of one worker's model selected in the step under way."""

    def __init__(
        self, num_layers: int, num_tokens: int, top_k: int, num_choices: int, keeps_weights: bool, vllm_config: Any
    ) -> None:
        """Allocate the buffers [L, N of the largest step, K]: ids uint8 or int32 and, when `keeps_weights`, weights float32.

        num_choices: the ids that a router chooses from.
        """
        device = torch.device(vllm_config.device_config.device)
        shape = (num_layers, num_tokens, top_k)
        self.top_k = top_k
        self.ids = torch.zeros(shape, dtype=torch.uint8 if num_choices <= 256 else torch.int32, device=device)
        self.weights = torch.zeros(shape, dtype=torch.float32, device=device) if keeps_weights else None
        # One tensor a layer: the first index of a tensor costs as much as the copy of a small step.
        self._ids = list(self.ids)
        self._weights = None if self.weights is None else list(self.weights)
        parallel = vllm_config.parallel_config
        is_shared = parallel.tensor_parallel_size * parallel.data_parallel_size > 1
        self._own_rows = _own_rows_writers(self, vllm_config) if is_shared else None

    def write(self, row: int, weights: torch.Tensor, ids: torch.Tensor) -> None:
        """Keep what a layer selected: weights [N, K and more], ids [N, K and more]; shared experts that some kernels run
        along stand behind the first K. Graph-safe."""
        if ids.shape[1] > self.top_k:
            weights, ids = weights[:, : self.top_k], ids[:, : self.top_k]
        if self._own_rows is not None:
            for writer, rows in zip(self._own_rows, (ids, weights), strict=False):
                writer.capture(row, rows)
            return
        self._ids[row][: ids.shape[0]] = ids
        if self._weights is not None:
            self._weights[row][: ids.shape[0]] = weights


def _own_rows_writers(rows: StepRows, vllm_config: Any) -> list[Any]:
    """vLLM's own capturers onto the buffers: under data, expert and sequence parallelism a router sees other ranks' tokens
    too, or a part of this one's, and they know which rows are this rank's."""
    writers = []
    for buffer in (rows.ids, rows.weights):
        if buffer is not None:
            writer = internals.load("RoutedExpertsCapturer")(1, vllm_config)
            writer.device_buffer = buffer.transpose(0, 1)
            writers.append(writer)
    return writers


class RoutingRecorder:
    """The slot table of one worker, fed with the routers' rows after each step."""

    def __init__(self, runner: Any, rows: StepRows, num_choices: int, weights_dtype: str | None) -> None:
        """Follow the steps of a model runner, either of vLLM's, and allocate the tables [S, L, K].

        num_choices: the ids that a router chooses from, which may be more than the experts that vLLM counts; weights_dtype:
        "float16", "float32" or None.

        Raises:
            RuntimeError: the cache keeps no layer's every token.
        """
        self.runner, self.rows = runner, rows
        self.group, self.block_size = full_attention_group(runner.kv_cache_config)
        shape = (runner.kv_cache_config.num_blocks * self.block_size, rows.ids.shape[0], rows.top_k)
        self.table = np.zeros(shape, expert_dtype(num_choices))
        self.weights = None if weights_dtype is None else np.zeros(shape, np.dtype(weights_dtype))
        # The step that was run and is not in the tables yet: slots [N], ids and weights [L, N, K], and what to wait for.
        self._step: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Any] | None = None
        # The blocks of every request that the engine has.
        self._blocks: dict[str, list[int]] = {}
        # Rows of finished requests nobody has asked for yet, and requests asked for before the engine let go of them.
        self.finished: dict[str, Rows] = {}
        self.taken: set[str] = set()
        self._execute_model = runner.execute_model
        runner.execute_model = self.execute_model

    @property
    def size_bytes(self) -> int:
        """What the tables take."""
        return self.table.nbytes + (0 if self.weights is None else self.weights.nbytes)

    def execute_model(self, scheduler_output: Any, *arguments: Any, **keywords: Any) -> Any:
        """Run a step as the model runner does, and keep its routing."""
        self._follow(scheduler_output)
        output = self._execute_model(scheduler_output, *arguments, **keywords)
        num_tokens = scheduler_output.total_num_scheduled_tokens
        if num_tokens and len(self.rows.ids):
            self._keep(slot_mapping(self.runner, self.group)[:num_tokens], num_tokens)
        return output

    def take(self, request_ids: list[str], num_rows: list[int]) -> list[tuple[bytes, bytes | None] | None]:
        """Hand over the experts and weights [T, L, K] of finished requests as bytes; None for a request of another rank."""
        self._store()
        answers: list[tuple[bytes, bytes | None] | None] = []
        for request_id, count in zip(request_ids, num_rows, strict=True):
            rows = self.finished.pop(request_id, None)
            if rows is None and request_id in self._blocks:
                rows = self._read(self._blocks[request_id])
                self.taken.add(request_id)
            if rows is None:
                answers.append(None)
                continue
            experts, weights = rows
            answers.append((experts[:count].tobytes(), None if weights is None else weights[:count].tobytes()))
        return answers

    def clear(self) -> None:
        """Forget the rows of requests that nobody asked for."""
        self.finished.clear()
        self.taken.clear()

    def _follow(self, scheduler_output: Any) -> None:
        """Learn from the scheduler which requests are gone, and which blocks the others have."""
        self._store()
        # The blocks of a finished request may be written to in this very step.
        for request_id in scheduler_output.finished_req_ids:
            blocks = self._blocks.pop(request_id, None)
            if request_id in self.taken:
                self.taken.discard(request_id)
            elif blocks is not None:
                self.finished[request_id] = self._read(blocks)
        for new in scheduler_output.scheduled_new_reqs:
            self._blocks[new.req_id] = list(new.block_ids[self.group])
        cached = scheduler_output.scheduled_cached_reqs
        for request_id, added in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if added is None:
                continue
            if request_id in cached.resumed_req_ids:
                self._blocks[request_id] = []
            self._blocks[request_id].extend(added[self.group])

    def _keep(self, slots: torch.Tensor, num_tokens: int) -> None:
        """Copy the step's rows off the device, without waiting for them."""
        ids, weights = self.rows.ids[:, :num_tokens], self.rows.weights
        weights = None if weights is None else weights[:, :num_tokens]
        event = None
        if ids.is_cuda:
            slots, ids = slots.to("cpu", non_blocking=True), ids.to("cpu", non_blocking=True)
            weights = None if weights is None else weights.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._step = slots, ids, weights, event

    def _store(self) -> None:
        """Bring the last step's rows into the tables."""
        if self._step is None:
            return
        slots, ids, weights, event = self._step
        self._step = None
        if event is not None:
            event.synchronize()
        place = slots.numpy()
        # Tokens whose keys are kept by another rank have no slot here.
        is_here = slice(None) if place.min() >= 0 else place >= 0
        self.table[place[is_here]] = ids.numpy().swapaxes(0, 1)[is_here]
        if self.weights is not None and weights is not None:
            # A weight beyond float16 becomes infinite here and is refused with its row.
            with np.errstate(over="ignore"):
                self.weights[place[is_here]] = weights.numpy().swapaxes(0, 1)[is_here]

    def _read(self, blocks: list[int]) -> Rows:
        slots = (np.asarray(blocks, np.int64)[:, None] * self.block_size + np.arange(self.block_size)).reshape(-1)
        return self.table[slots], None if self.weights is None else self.weights[slots]


def slot_mapping(runner: Any, group: int) -> torch.Tensor:
    """The cache slots [N of the largest step] int64 of the step's tokens, as the model runner laid it out.

    Raises:
        RuntimeError: it is neither of the model runners that this was written for.
    """
    if hasattr(runner, "block_tables"):  # V2
        slots: torch.Tensor = runner.block_tables.slot_mappings[group]
        return slots
    if hasattr(runner, "input_batch"):  # V1
        slots = runner.input_batch.block_table[group].slot_mapping.gpu
        return slots
    raise RuntimeError(f"the routing hook knows vLLM's model runners V1 and V2, found {type(runner).__name__}")


def full_attention_group(kv_cache_config: Any) -> tuple[int, int]:
    """The group of cache blocks that keeps every token of a request, and its block size.

    Raises:
        RuntimeError: no layer attends to all tokens.
    """
    full, uniform = internals.load("FullAttentionSpec"), internals.load("UniformTypeKVCacheSpecs")
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        spec = group.kv_cache_spec
        specs = spec.kv_cache_specs.values() if isinstance(spec, uniform) else [spec]
        if any(isinstance(one, full) for one in specs):
            return number, spec.block_size
    raise RuntimeError("no attention layer of this model keeps all tokens in its cache, so rows cannot be attributed")
