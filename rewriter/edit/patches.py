"""The parts of a plan: what happens to a layer's experts, and the byte ranges of tensors that are written for it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from rewriter.checkpoint.source import TensorEntry
from rewriter.edit.record import BiasChoice
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
    """New bytes for a range of one tensor: `data`, or the byte `fill` throughout where `data` is None."""

    tensor: str
    shard: str
    start: int  # first byte, counted from the start of the tensor
    size_bytes: int
    data: bytes | None
    sha256_before: str
    sha256_after: str
    fill: int = 0


@dataclass(frozen=True)
class ShiftedBias:
    """A suppressed expert that stays selectable: its bias is the base's plus a finite number, rounded to the bias's type."""

    expert: int
    shift: float  # as asked for, below 0
    value: float  # the bias as it is written


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


def of_layer(pairs: Iterable[Pair], layer: int) -> tuple[int, ...]:
    """The experts of one layer, ascending."""
    return tuple(sorted(expert for at, expert in pairs if at == layer))


def whole_patch(entry: TensorEntry, before: bytes, after: bytes) -> TensorPatch:
    """The patch of a whole tensor."""
    assert len(after) == entry.size_bytes
    return TensorPatch(entry.name, entry.shard, 0, entry.size_bytes, after, sha256(before), sha256(after))


def sha256(data: bytes) -> str:
    """The SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()
