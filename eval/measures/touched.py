"""How much routing experts take part in, and how much of it an edit changes. Pure.

Legend: T positions, L MoE layers, K selected experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel

if TYPE_CHECKING:
    import numpy as np


class TouchedShares(BaseModel):
    """What an expert set takes part in when nothing is edited: shares of router slots and of tokens."""

    num_tokens: int
    num_slots: int
    slots_in_set: int
    slot_share: float | None
    tokens_touched: int
    token_share: float | None


def touched_shares(
    routings: Iterable[np.ndarray], layers: Sequence[int], experts: Iterable[tuple[int, int]]
) -> TouchedShares:
    """The share of router slots that the experts hold and of tokens with at least one such slot.

    `routings`: arrays int [T, L, K] of selected expert ids, L in the order of `layers`; `experts`: (model layer, expert).
    Under `drop` and `drop-renorm` these slots are removed; under `reroute` the next-best expert takes them.
    """
    import numpy as np

    wanted: dict[int, list[int]] = {}
    for layer, expert in experts:
        wanted.setdefault(layers.index(layer), []).append(expert)
    num_tokens = num_slots = slots = tokens = 0
    for routing in routings:
        hit = np.zeros(routing.shape, dtype=bool)
        for row, chosen in wanted.items():
            hit[:, row] = np.isin(routing[:, row], chosen)
        num_tokens += len(routing)
        num_slots += routing.size
        slots += int(hit.sum())
        tokens += int(hit.any(axis=(1, 2)).sum())
    return TouchedShares(
        num_tokens=num_tokens,
        num_slots=num_slots,
        slots_in_set=slots,
        slot_share=slots / num_slots if num_slots else None,
        tokens_touched=tokens,
        token_share=tokens / num_tokens if num_tokens else None,
    )


def changed_slots(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """The share of router slots whose expert is not among the token's experts any more; routings int [T, L, K], order ignored."""
    import numpy as np

    kept = total = 0
    for then, now in zip(before, after, strict=True):
        length = min(len(then), len(now))
        kept += int((then[:length, :, :, None] == now[:length, :, None, :]).any(axis=-1).sum())
        total += int(np.prod(then[:length].shape))
    return 1 - kept / total if total else math.nan
