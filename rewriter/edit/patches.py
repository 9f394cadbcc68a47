"""The parts of a plan: what happens to a layer's experts, and the byte ranges of tensors that are written for it."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rewriter.checkpoint.source import TensorEntry
from rewriter.edit.record import BiasChoice
from rewriter.edit.scale import Scaling
from rewriter.semantics import CheckpointSemantics

Pair = tuple[int, int]  # (model layer, expert)


@dataclass(frozen=True)
class EditOptions:
    """What the user may choose about an edit."""

    # None: a reroute where the router can hold one, else a drop; REROUTE and CENTROID both mean the one that it can hold.
    semantics: CheckpointSemantics | None = None
    suppress_bias: BiasChoice = "auto"
    renormalize: bool = False  # turn renormalisation on where the base was trained without
    stamp: bool = True  # mark the headers of edited shards; without, only values change and no length does


@dataclass(frozen=True)
class TensorPatch:
    """New bytes for a range of one tensor: `data`; where that is None, what is there multiplied, or else the byte `fill`."""

    tensor: str
    shard: str
    start: int  # first byte, counted from the start of the tensor
    size_bytes: int
    data: bytes | None
    sha256_before: str
    sha256_after: str
    fill: int = 0
    scaling: Scaling | None = None


@dataclass(frozen=True)
class ShiftedBias:
    """A suppressed expert that stays selectable: its bias is the base's plus a finite number, rounded to the bias's type."""

    expert: int
    shift: float  # as asked for, below 0
    value: float  # the bias as it is written


@dataclass(frozen=True)
class ScaledOutput:
    """An expert whose output is multiplied: one that is dropped in part, or a stimulated one with a gain."""

    expert: int
    factor: float
    rounding: float  # of what is stored, a share of it (root mean square); 0: none


@dataclass(frozen=True)
class LayerEdit:
    """What happens to the routed experts of one model layer."""

    layer: int
    suppressed: tuple[int, ...]
    stimulated: tuple[int, ...]
    # The bias given to those without a shift of their own, or how far a row is shifted down; None where neither is done.
    suppress_value: float | None = None
    stimulate_value: float | None = None
    shifted: tuple[ShiftedBias, ...] = ()  # of the suppressed, those with a finite shift
    scaled: tuple[ScaledOutput, ...] = ()  # of all, those whose output is neither whole nor zero


def of_layer(pairs: Iterable[Pair], layer: int) -> tuple[int, ...]:
    """The experts of one layer, ascending."""
    return tuple(sorted(expert for at, expert in pairs if at == layer))


def numbers_of_layer(numbers: Mapping[Pair, float], layer: int) -> dict[int, float]:
    """The numbers of one layer's experts, experts ascending."""
    return {expert: number for (at, expert), number in sorted(numbers.items()) if at == layer}


def whole_patch(entry: TensorEntry, before: bytes, after: bytes) -> TensorPatch:
    """The patch of a whole tensor."""
    assert len(after) == entry.size_bytes
    return TensorPatch(entry.name, entry.shard, 0, entry.size_bytes, after, sha256(before), sha256(after))


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
