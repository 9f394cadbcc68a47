"""The router weight of a layer without a router bias: read from a checkpoint, and its suppressed experts' rows worked out.

Legend: E routed experts, D hidden size.
"""

from collections.abc import Collection
from dataclasses import dataclass
from math import ceil

import numpy as np

from rewriter.checkpoint.kinds import Model
from rewriter.checkpoint.source import TensorEntry
from rewriter.edit.router_rows import (
    ROW_DTYPES,
    SCALED_DTYPES,
    LayerNorm,
    Rows,
    centroid,
    decode_rows,
    encode_row,
    shifted_row,
)
from rewriter.errors import CheckpointError, PlanError
from rewriter.families.family import RouterLayout

WEIGHT = ".weight"
# What float8 numbers are multiplied by, as checkpoints name it beside the weight: a number, one a row, or one a block.
SCALE_SUFFIXES = ("_scale_inv", "_scale")
DEFAULT_BLOCK = (128, 128)
# What stands in the place of a weight where a format packs it.
PACKED_SUFFIXES = (".qweight", ".weight_packed", ".weight.absmax", "_blocks")


@dataclass(frozen=True)
class RowChange:
    """New bytes for one row of a router."""

    entry: TensorEntry
    expert: int
    start: int  # first byte, counted from the start of the tensor
    before: bytes
    after: bytes


@dataclass(frozen=True)
class RouterEdit:
    """What happens to a layer's router."""

    rows: tuple[RowChange, ...]
    shift: float | None  # logits that the rows lie below the survivors' mean; None: they are that mean


def edit_router(checkpoint: Model, layer: int, suppressed: Collection[int]) -> RouterEdit:
    """The rows that take experts out of a layer's selection: shifted ones behind a LayerNorm whose bias carries it, else means.

    suppressed: every expert of the layer that is to stay out, those of the base included.

    Raises: CheckpointError for a router that is not there or not [E, D] of a float type; PlanError where fewer experts survive
    than the router selects.
    """
    layout = checkpoint.layout
    check_survivors(layer, layout, suppressed)
    entry = _find_router(checkpoint, layer)
    data = checkpoint.read(entry)
    scale = _scale(checkpoint, entry)
    rows = decode_rows(data, entry.dtype, entry.shape, scale)
    if not np.isfinite(rows).all():
        expert = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
        raise CheckpointError(
            f"{checkpoint.source.name}/{entry.shard}: {entry.name} is not finite for expert {expert}, expected numbers"
        )
    norm = _norm_before(checkpoint, layer)
    shifted = shifted_row(rows, suppressed, norm, entry.dtype) if norm is not None and scale is None else None
    mean = centroid(rows, suppressed)
    size = entry.size_bytes // layout.num_experts
    changes = []
    for expert in sorted(suppressed):
        own_scale = None if scale is None else np.broadcast_to(scale, entry.shape)[expert]
        row = shifted.row if shifted else encode_row(mean, entry.dtype, own_scale)
        start = expert * size
        changes.append(RowChange(entry, expert, start, data[start : start + size], row.tobytes()))
    return RouterEdit(tuple(changes), shifted.constant if shifted else None)


def check_survivors(layer: int, layout: RouterLayout, suppressed: Collection[int]) -> None:
    """Refuse to leave a router without a bias fewer live experts than it selects, whichever groups it keeps.

    Raises: PlanError with the layer, the numbers, and what would make it feasible.
    """
    group_size = layout.num_experts // layout.num_groups
    live = [group_size] * layout.num_groups
    for expert in suppressed:
        live[expert // group_size] -= 1
    fewest = sum(sorted(live)[: layout.groups_kept])
    if fewest < layout.top_k:
        where = f"the {layout.groups_kept} groups that it keeps could have only" if layout.num_groups > 1 else "leaves"
        raise PlanError(
            f"layer {layer}: suppressing {len(suppressed)} of {layout.num_experts} experts {where} {fewest} live ones, but"
            f" the router selects {layout.top_k} (top-k); suppress at least {layout.top_k - fewest} fewer"
        )


def _find_router(checkpoint: Model, layer: int) -> TensorEntry:
    """The router weight of a layer, its type and shape checked."""
    layout, where = checkpoint.layout, checkpoint.source.name
    names = layout.router_names(layer)
    entry = checkpoint.find(names)
    if entry is None:
        stems = [name.removesuffix(WEIGHT) for name in names]
        packed = [
            stem + suffix for stem in stems for suffix in PACKED_SUFFIXES if stem + suffix in checkpoint.weight_map
        ]
        if packed:
            raise CheckpointError(
                f"{where}: the router of layer {layer} is quantised ({packed[0]}), expected rows of a float type;"
                " a row of packed integers cannot be written alone, --semantics drop leaves the router as it is"
            )
        raise CheckpointError(f"{where}: has no tensor {' or '.join(names)}, expected the router of layer {layer}")
    if entry.dtype not in ROW_DTYPES:
        raise CheckpointError(
            f"{where}/{entry.shard}: the router {entry.name} is quantised ({entry.dtype}), expected one of"
            f" {', '.join(ROW_DTYPES)}; a row of packed integers cannot be written alone, --semantics drop leaves the"
            " router as it is"
        )
    if len(entry.shape) != 2 or entry.shape[0] != layout.num_experts:
        raise CheckpointError(
            f"{where}/{entry.shard}: {entry.name} has shape {list(entry.shape)}, expected [{layout.num_experts}, D], a row"
            " an expert"
        )
    return entry


def _scale(checkpoint: Model, entry: TensorEntry) -> Rows | None:
    """What a float8 router's numbers are multiplied by, broadcast over [E, D]; None where the checkpoint has no scale."""
    if entry.dtype not in SCALED_DTYPES:
        return None
    found = checkpoint.find(tuple(entry.name + suffix for suffix in SCALE_SUFFIXES))
    if found is None:
        return None
    where = f"{checkpoint.source.name}/{found.shard}: {found.name}"
    if found.dtype not in ROW_DTYPES or found.dtype in SCALED_DTYPES:
        raise CheckpointError(f"{where} is {found.dtype}, expected one of F32, F16, BF16, F64")
    experts, hidden = entry.shape
    values = np.frombuffer(checkpoint.read(found), ROW_DTYPES[found.dtype]).astype(np.float32).reshape(found.shape)
    if values.size == 1:
        return values.reshape(1, 1)
    if values.shape in ((experts,), (experts, 1)):
        return values.reshape(experts, 1)
    high, wide = _block_size(checkpoint)
    if values.shape == (ceil(experts / high), ceil(hidden / wide)):
        return values.repeat(high, 0)[:experts].repeat(wide, 1)[:, :hidden]
    raise CheckpointError(
        f"{where} has shape {list(found.shape)}, expected one number, {experts} for the rows, or one for each block of"
        f" {high} x {wide}"
    )


def _block_size(checkpoint: Model) -> tuple[int, int]:
    """Rows and columns that share a scale, as config.json's quantization_config says."""
    quantization = checkpoint.config.get("quantization_config")
    size = quantization.get("weight_block_size") if isinstance(quantization, dict) else None
    if isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size):
        return size[0], size[1]
    return DEFAULT_BLOCK


def _norm_before(checkpoint: Model, layer: int) -> LayerNorm | None:
    """The LayerNorm before a layer's router, where the family has one and the checkpoint its weight and bias."""
    for template in checkpoint.layout.family.router_norm:
        stem = template.format(layer=layer)
        parts = [checkpoint.find((f"{stem}.{part}",)) for part in ("weight", "bias")]
        if all(part is not None and part.dtype in ROW_DTYPES for part in parts):
            weight, bias = (
                np.frombuffer(checkpoint.read(part), ROW_DTYPES[part.dtype]).astype(np.float32)
                for part in parts
                if part is not None
            )
            return LayerNorm(weight, bias)
    return None
