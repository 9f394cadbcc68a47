"""The rows of finished requests as the engine hands them out: put together from all ranks, ascending, checked.

Letters of shapes: T tokens run through the model, L MoE layers, K selected experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ftri.traces.rows import Experts, Weights, expert_dtype, fault_of, weights_fault_of
from rewriter.families.family import RouterLayout

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
