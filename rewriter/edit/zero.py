"""Which bytes make an expert's output zero in the format that it is stored in. Pure: nothing is written here.

Legend: E routed experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rewriter.checkpoint.kinds import Model
from rewriter.checkpoint.source import TensorEntry
from rewriter.edit.formats import ACTIVATIONS, BIASES, FLOATS, WEIGHT_FORMATS, WeightFormat
from rewriter.errors import CheckpointError

WEIGHT = ".weight"


@dataclass(frozen=True)
class Fill:
    """A range of a tensor that is filled with one byte."""

    entry: TensorEntry
    start: int  # first byte, counted from the start of the tensor
    size_bytes: int
    byte: int


@dataclass(frozen=True)
class StoredWeight:
    """A weight matrix, or a stack [E, ...] of them, as a checkpoint stores it."""

    name: str  # as the family's row calls it
    format: WeightFormat
    tensors: Mapping[str, TensorEntry]  # suffix -> where it lies


def find_weight(checkpoint: Model, name: str) -> StoredWeight | None:
    """The tensors that a weight is stored in; None where the checkpoint has none of them.

    name: as the family's row calls it, `...down_proj.weight`, or `...down_proj` for a parameter that stacks the experts.

    Raises: CheckpointError for tensors that are of no known format, or of one that is known and cannot be zeroed.
    """
    tensors = _beside(checkpoint, name.removesuffix(WEIGHT))
    if not tensors:
        return None
    found = next((row for row in WEIGHT_FORMATS if _is_stored_as(row, tensors)), None)
    if found is None or found.zeroed is None:
        stored = ", ".join(f"{suffix or 'itself'} {entry.dtype}" for suffix, entry in sorted(tensors.items()))
        where = f"{checkpoint.source.name}: the weight {name} is stored as {stored}"
        if found is not None:
            raise CheckpointError(
                f"{where}; that is {found.name}, which cannot be dropped: {found.refused}; --semantics reroute touches no expert"
            )
        raise CheckpointError(
            f"{where}, a quantised format without a row, expected one whose zero is known; to add it, append a row to"
            " rewriter/edit/formats.py"
        )
    return StoredWeight(name, found, tensors)


def zero_weight(checkpoint: Model, weight: StoredWeight, row: int | None, num_experts: int) -> tuple[Fill, ...]:
    """What is written so that a weight, or one expert's row of a stack, and the bias beside it come to zero.

    row: the expert where `weight` is a stack of all, else None; num_experts: E.

    Raises: CheckpointError for a stack that is not [E, ...], or a code book without zero.
    """
    assert weight.format.zeroed is not None  # find_weight refuses the others
    fills = [_fill(checkpoint, weight.tensors[weight.format.zeroed], row, num_experts, _zero_byte(checkpoint, weight))]
    for suffix in sorted(BIASES & weight.tensors.keys()):
        entry = weight.tensors[suffix]
        if entry.dtype not in FLOATS:
            raise CheckpointError(
                f"{checkpoint.source.name}/{entry.shard}: {entry.name} is {entry.dtype}, expected one of"
                f" {', '.join(sorted(FLOATS))}"
            )
        fills.append(_fill(checkpoint, entry, row, num_experts, 0))
    return tuple(fills)


def _beside(checkpoint: Model, stem: str) -> dict[str, TensorEntry]:
    """The tensors whose names begin with a module's or a parameter's name, by what follows it.

    A number that follows is another expert's: some savers write `down_proj.3.weight`.
    """
    tensors = {}
    for name in checkpoint.names_from(stem):
        suffix = name[len(stem) :]
        if suffix[:1] in ("", "_") or (suffix[0] == "." and not suffix[1:2].isdigit()):
            entry = checkpoint.find((name,))
            assert entry is not None  # the weight map has it
            tensors[suffix] = entry
    return tensors


def _is_stored_as(row: WeightFormat, tensors: Mapping[str, TensorEntry]) -> bool:
    """Whether the tensors beside a weight are those of a format: all that it needs and, unless it is refused, no others."""
    allowed = row.tensors.keys() | set(row.further) | ACTIVATIONS | BIASES
    return (
        row.tensors.keys() <= tensors.keys()
        and (row.zeroed is None or tensors.keys() <= allowed)
        and all(not dtypes or tensors[suffix].dtype in dtypes for suffix, dtypes in row.tensors.items())
    )


def _zero_byte(checkpoint: Model, weight: StoredWeight) -> int:
    """The byte that stands for zero: 0, or twice the four-bit code whose entry in the code book is zero."""
    if weight.format.code_book is None:
        return 0
    entry = weight.tensors[weight.format.code_book]
    book = np.frombuffer(checkpoint.read(entry), "<f4")
    codes = np.flatnonzero(book == 0)
    if book.size != 16 or not codes.size:
        raise CheckpointError(
            f"{checkpoint.source.name}/{entry.shard}: {entry.name} holds {book.size} numbers of which {codes.size} are"
            f" zero, expected 16 with a zero among them ({weight.format.name})"
        )
    return int(codes[0]) * 0x11


def _fill(checkpoint: Model, entry: TensorEntry, row: int | None, num_experts: int, byte: int) -> Fill:
    return Fill(entry, *expert_part(checkpoint, entry, row, num_experts), byte)


def expert_part(checkpoint: Model, entry: TensorEntry, row: int | None, num_experts: int) -> tuple[int, int]:
    """First byte and size in bytes of all of a tensor (row None), or of one expert's part of a stack of E.

    Raises:
        CheckpointError: the tensor does not stack E experts in front.
    """
    if row is None:
        return 0, entry.size_bytes
    if not entry.shape or entry.shape[0] != num_experts:
        raise CheckpointError(
            f"{checkpoint.source.name}/{entry.shard}: {entry.name} has shape {list(entry.shape)}, expected one of"
            f" [{num_experts}, ...]: what all experts share cannot be changed for one"
        )
    size = entry.size_bytes // num_experts
    return row * size, size
