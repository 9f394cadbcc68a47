"""Pure edits of router weights without a bias: the row that keeps an expert from being selected, where the bytes can say so.

Such a router computes logits = W h, one row of W [E, D] an expert. Two rows serve, both worked out from the survivors', the
rows of the experts that are not suppressed:

*Centroid*: their mean. The expert's logit is then the survivors' mean logit, so that on any input it is never ranked first
and its share of the softmax is at most 1/E. Selecting k >= 2, a router takes it where fewer than k survivors lie above their
own mean, which no row can rule out; its output is zeroed as well, so that it adds nothing even then.

*Shift*: the centroid less c/gamma, for a router behind a LayerNorm h = gamma x + beta, whose x sums to zero. The logit falls
by c times the sum of beta/gamma, a constant, which puts it below every survivor's on any input.

Legend: E routed experts, S survivors, D hidden size.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]

# The data types a router's rows come in. Packed integers are not among them: a row of such cannot be written alone.
ROW_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
# Of these, the ones whose numbers are multiplied by a scale that the checkpoint holds beside them.
SCALED_DTYPES = frozenset({"F8_E4M3", "F8_E5M2"})

# A shift must lie this many standard deviations of the rounding of 16-bit activations below the survivors.
NUM_DEVIATIONS = 8.0
# Relative rounding error of a bfloat16 activation: uniform within half a unit of its eighth significant bit.
ACTIVATION_ROUNDING = 2.0**-8 / math.sqrt(12)
# The largest shift, in logits: beyond it the softmax of 16-bit runtimes loses digits of the survivors.
MAX_SHIFT = 1e4


@dataclass(frozen=True)
class LayerNorm:
    """What stands before a router: h = weight x + bias, x of mean 0 and mean square 1. Both [D] float32."""

    weight: Rows
    bias: Rows


@dataclass(frozen=True)
class Shift:
    """A row that lies below every survivor on any input."""

    row: NDArray[Any]  # [D] in the row's own dtype
    constant: float  # logits that the row lies below the survivors' mean
    num_deviations: float  # of activation rounding, by which it lies below the nearest survivor


def decode_rows(data: bytes, dtype: str, shape: tuple[int, ...], scale: Rows | None = None) -> Rows:
    """A router's weight [E, D] as float32; scale: what its numbers are multiplied by, broadcast over [E, D]."""
    rows = np.frombuffer(data, ROW_DTYPES[dtype]).reshape(shape).astype(np.float32)
    return rows if scale is None else rows * scale


def survivors_of(num_experts: int, suppressed: Collection[int]) -> list[int]:
    """The experts that are not suppressed, ascending."""
    return [expert for expert in range(num_experts) if expert not in suppressed]


def centroid(rows: Rows, suppressed: Collection[int]) -> Rows:
    """The mean [D] float32 of the survivors' rows of a router [E, D].

    It is summed in float64, so that the order of the sum cannot show: a recipe's hashes hold on any machine.

    Raises:
        ValueError: no expert survives.
    """
    survivors = survivors_of(len(rows), suppressed)
    if not survivors:
        raise ValueError("no survivor is left")
    return rows[survivors].mean(0, dtype=np.float64).astype(np.float32)


def encode_row(row: Rows, dtype: str, scale: Rows | None = None) -> NDArray[Any]:
    """A row [D] float32 in its stored dtype, rounded once; scale: as for decode_rows, broadcast over [D].

    A float8 number beyond the type's largest is taken for the largest, which other types cannot need: a mean is no larger
    than the rows it is of.
    """
    target = ROW_DTYPES[dtype]
    values = row if scale is None else row / scale
    if dtype in SCALED_DTYPES:
        largest = float(ml_dtypes.finfo(target).max)
        values = np.clip(values, -largest, largest)
    return values.astype(target)


def shifted_row(rows: Rows, suppressed: Collection[int], norm: LayerNorm, dtype: str) -> Shift | None:
    """The centroid less c/gamma, with the smallest c that puts it below every survivor on any input; None where none does.

    rows: [E, D] float32. A logit's distance to a survivor's is a @ x + b with a = (row - survivor's) gamma and
    b = (row - survivor's) @ beta. As x sums to zero and is no longer than sqrt(D), it is at most |a - mean(a)| sqrt(D) + b:
    a bound on the row as it is rounded. None where gamma has a zero, or the constant is lost in the rounding of activations.
    """
    gamma, beta = norm.weight.astype(np.float64), norm.bias.astype(np.float64)
    if not (np.isfinite(gamma).all() and np.isfinite(beta).all() and gamma.all()):
        return None
    direction = 1 / gamma
    slope = float((beta * direction).sum())  # logits that one unit of c moves
    survivors = rows[survivors_of(len(rows), suppressed)].astype(np.float64)
    middle = centroid(rows, suppressed).astype(np.float64)
    noise_of_unit = ACTIVATION_ROUNDING * math.sqrt(gamma.size + float(np.square(beta * direction).sum()))
    if abs(slope) <= 2 * NUM_DEVIATIONS * noise_of_unit:
        return None
    highest = float(_highest_logits(middle, survivors, gamma, beta).max())
    shift = max(highest, 0.0) * 1.25 + 1.0
    while shift <= MAX_SHIFT:
        row = encode_row((middle - shift / slope * direction).astype(np.float32), dtype)
        kept = row.astype(np.float64)
        bounds = _highest_logits(kept, survivors, gamma, beta)
        # Of all inputs no token's hidden state is larger than sqrt(D) in x; the usual one has mean square 1.
        noise = ACTIVATION_ROUNDING * math.sqrt(float(np.square(kept).dot(np.square(gamma) + np.square(beta))))
        if np.isfinite(kept).all() and float(bounds.max()) + NUM_DEVIATIONS * noise < 0:
            return Shift(row, shift, -float(bounds.max()) / noise)
        shift *= 1.5
    return None


def _highest_logits(
    row: NDArray[np.float64], survivors: NDArray[np.float64], gamma: NDArray[np.float64], beta: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The most by which a row's logit can exceed each survivor's [S], over all inputs of the LayerNorm."""
    difference = row - survivors  # [S, D]
    along = difference * gamma
    along -= along.mean(1, keepdims=True)
    return np.linalg.norm(along, axis=1) * math.sqrt(gamma.size) + difference @ beta
