"""The rows of finished requests as the engine hands them out: put together from all ranks, ascending, checked.

Letters of shapes: T tokens run through the model, L MoE layers, K selected experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftri.engine.errors import EngineError
from ftri.traces.rows import REMEDY, Experts, Weights, expert_dtype, fault_of, weights_fault_of
from rewriter.families.family import RouterLayout

# How routing is had: from vLLM's own capture, or from the routers of ftri.worker.routers.
OWN_CAPTURE, HOOK = "routed_experts", "router_hook"
# What a rank answers for a request: its layers' experts and weights as bytes, None where another rank has the request.
RankRows = tuple[bytes, bytes | None] | None


@dataclass(frozen=True)
class Rows:
    """One request's experts [T, L, K] uint8 or uint16, and their weights [T, L, K] float16 or float32 where they are kept."""

    experts: Experts
    weights: Weights | None = None

    def ascending(self) -> Rows:
        """The same with the experts of a token and layer ascending: kernels give them in orders of their own."""
        if self.weights is None:
            ascending: Any = np.sort(self.experts, axis=-1)
            return Rows(ascending)
        order = np.argsort(self.experts, axis=-1)
        tensors: list[Any] = [np.take_along_axis(one, order, -1) for one in (self.experts, self.weights)]
        return Rows(*tensors)

    def fault(self, num_rows: int, layout: RouterLayout) -> str | None:
        """What is wrong with them, as the end of a sentence."""
        row_shape = (len(layout.moe_layers), layout.top_k)
        fault = fault_of(self.experts, num_rows, row_shape, layout.num_experts + layout.num_other_choices)
        if fault is None and self.weights is not None:
            fault = weights_fault_of(self.weights, num_rows, row_shape)
        return fault


@dataclass(frozen=True)
class RowReader:
    """Reads the rows of finished requests from a started vLLM, and checks them."""

    llm: Any  # vLLM's LLMEngine
    capture: str  # OWN_CAPTURE or HOOK
    layout: RouterLayout
    rank_layers: Sequence[Sequence[int]] = ()  # with HOOK: the MoE layers of each rank
    weights_dtype: str | None = None  # with HOOK, where weights are kept

    def clear(self) -> None:
        """Forget the rows of requests that nobody asked for."""
        if self.capture == HOOK:
            self.llm.collective_rpc("mote_clear")

    def read(self, outputs: Sequence[Any], internal_ids: Mapping[str, str]) -> list[Rows]:
        """The rows of vLLM's finished outputs, ascending within K; `internal_ids`: what its workers call each of them.

        Raises:
            EngineError: rows are missing, or cannot be what a router selected.
        """
        counts = [len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1 for output in outputs]
        if self.capture == OWN_CAPTURE:
            found = [self._captured(output, count) for output, count in zip(outputs, counts, strict=True)]
        else:
            request_ids = [internal_ids[output.request_id] for output in outputs]
            answers = self.llm.collective_rpc("mote_take", args=(request_ids, counts))
            found = together(answers, self.rank_layers, counts, self.layout, self.weights_dtype)
        rows = [one.ascending() for one in found]
        for output, one, count in zip(outputs, rows, counts, strict=True):
            fault = one.fault(count, self.layout)
            if fault is not None:
                raise EngineError(f"request {output.request_id} came back with {fault}; {REMEDY}")
        return rows

    def _captured(self, output: Any, num_rows: int) -> Rows:
        """What vLLM's own capture returned: it counts dense layers too, and may have a row for the last token."""
        captured = output.outputs[0].routed_experts
        if captured is None:
            raise EngineError(
                f"request {output.request_id} came back without rows, though vLLM took the argument that asks for them,"
                " expected routed_experts of every token"
            )
        last = self.layout.moe_layers[-1]
        if captured.ndim != 3 or captured.shape[1] <= last:
            raise EngineError(
                f"request {output.request_id} came back with rows of shape {list(captured.shape)}, expected a row of every layer"
                f" up to layer {last} for each token; {REMEDY}"
            )
        return Rows(captured[:num_rows, list(self.layout.moe_layers)])


def together(
    answers: Sequence[Sequence[RankRows]],
    rank_layers: Sequence[Sequence[int]],
    counts: Sequence[int],
    layout: RouterLayout,
    weights_dtype: str | None,
) -> list[Rows]:
    """Put the parts of all ranks together: each pipeline rank has its own layers, one data rank the request.

    answers: each rank's, for every request; rank_layers: the MoE layers of each rank; counts: T of every request.
    """
    position: Mapping[int, int] = {layer: number for number, layer in enumerate(layout.moe_layers)}
    dtypes = [expert_dtype(layout.num_experts + layout.num_other_choices)]
    if weights_dtype is not None:
        dtypes.append(np.dtype(weights_dtype))
    found: list[Rows] = []
    for number, count in enumerate(counts):
        tensors: list[Any] = [np.zeros((count, len(position), layout.top_k), dtype) for dtype in dtypes]
        filled: set[int] = set()
        for layers, parts in zip(rank_layers, answers, strict=True):
            part = parts[number]
            if part is None or not layers:
                continue
            places = [position[layer] for layer in layers]
            for tensor, content in zip(tensors, part, strict=False):
                assert content is not None, "the rank keeps what the engine asked for"
                tensor[:, places] = np.frombuffer(content, tensor.dtype).reshape(count, len(layers), layout.top_k)
            filled.update(layers)
        assert len(filled) == len(position), f"no rank holds all rows of request {number}"
        found.append(Rows(*tensors))
    return found
