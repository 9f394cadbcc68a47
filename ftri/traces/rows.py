"""Recorded rows are checked, never believed: captures of runtimes that lost, repeated or misplaced rows have been published.

What such a fault looks like (docs/recording.md): an expert twice within a token and layer, rows or tails of zeros, ids beyond
the experts that there are, fewer or more rows than tokens.

Letters of shapes: T tokens run through the model, L MoE layers, K selected experts.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Experts = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
Weights = npt.NDArray[np.float16] | npt.NDArray[np.float32]

# With one expert a token, zeros are a valid choice; all layers of a token choosing expert 0 by chance is rarer than 2^-40.
CHANCE_BITS = 40
REMEDY = "the capture was at fault: record again with another kernel (vLLM's engine argument moe_backend)"


def expert_dtype(num_choices: int) -> np.dtype[Any]:
    """The narrowest dtype that holds every id a router chooses from: uint8 up to 256, else uint16 (little-endian)."""
    return np.dtype(np.uint8) if num_choices <= 256 else np.dtype("<u2")


def fault_of(experts: npt.NDArray[Any], num_rows: int, row_shape: tuple[int, int], num_choices: int) -> str | None:
    """What is wrong with a response's rows, as the end of a sentence; None where they can be what a router selected.

    experts: [T, L, K] ids, uint8 or uint16, or signed where a runtime gives such; num_rows: the T that the tokens need;
    row_shape: (L, K); num_choices: ids lie below it.
    """
    if experts.shape != (num_rows, *row_shape):
        return f"rows of shape {list(experts.shape)}, expected {[num_rows, *row_shape]} (tokens, layers, experts of a token)"
    if not experts.size:
        return None
    if experts.dtype.kind != "u" and int(experts.min()) < 0:
        token, layer, _ = np.argwhere(experts < 0)[0]
        return f"expert {int(experts.min())} (token {token}, layer row {layer}), expected ids of 0 and above"
    if num_choices <= np.iinfo(experts.dtype).max and int(experts.max()) >= num_choices:
        token, layer, _ = np.argwhere(experts >= num_choices)[0]
        return f"expert {int(experts.max())} (token {token}, layer row {layer}), expected ids below {num_choices}"
    # Ascending rows need no sort to show a repetition; others are sorted only to be told apart from one.
    if row_shape[1] > 1 and (experts[..., 1:] <= experts[..., :-1]).any():
        ordered = np.sort(experts, axis=-1)
        repeated = ordered[..., 1:] == ordered[..., :-1]
        if repeated.any():
            token, layer, place = np.argwhere(repeated)[0]
            rows = int(repeated.any(axis=(1, 2)).sum())
            return (
                f"expert {int(ordered[token, layer, place])} more than once in one token and layer (token {token}, layer row"
                f" {layer}; {rows} of {num_rows} tokens), expected {row_shape[1]} different ones"
            )
    if row_shape[1] == 1 and row_shape[0] * math.log2(max(num_choices, 2)) >= CHANCE_BITS:
        empty = ~experts.any(axis=(1, 2))
        if empty.any():
            return (
                f"nothing but expert 0 in {int(empty.sum())} of {num_rows} tokens, as in rows that were never written"
            )
    return None


def weights_fault_of(weights: npt.NDArray[Any], num_rows: int, row_shape: tuple[int, int]) -> str | None:
    """What is wrong with the weights of a response's rows, as the end of a sentence; None where a router can have given them.

    weights: [T, L, K] float16 or float32, in the order of the rows' experts; num_rows, row_shape: as in `fault_of`. A single
    weight may be 0 (an expert that an edit dropped), those of a token in all of its layers cannot.
    """
    if weights.shape != (num_rows, *row_shape):
        return f"weights of shape {list(weights.shape)}, expected {[num_rows, *row_shape]} (tokens, layers, experts of a token)"
    is_wrong = ~(weights >= 0) | np.isinf(weights)
    if is_wrong.any():
        token, layer, place = np.argwhere(is_wrong)[0]
        return (
            f"weight {float(weights[token, layer, place]):g} (token {token}, layer row {layer}), expected finite ones of 0 or"
            " more"
        )
    empty = ~weights.any(axis=(1, 2))
    if weights.size and empty.any():
        return (
            f"nothing but weights of 0 in {int(empty.sum())} of {num_rows} tokens, as in rows that were never written"
        )
    return None
