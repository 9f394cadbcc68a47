"""Pure edits of tensors: the selection bias with experts suppressed or stimulated, and the values that make it certain.

Legend: E routed experts (and further choices behind them, where the family has such).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

MINUS_INFINITY = float("-inf")

# The data types a selection bias comes in.
BIAS_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F64": np.dtype("<f8"),
}


@dataclass(frozen=True)
class Margins:
    """Finite bias values that decide selection whatever the scores are (docs/runtimes.md, "Values that are safe")."""

    suppress: float  # bmin - (D + 2R + 1)
    suppress_bound: float  # bmin - (D + 2R): a suppressed bias must lie below this
    stimulate: float  # bmax + 2D + 4R + 2


def decode_bias(data: bytes, dtype: str) -> NDArray[Any]:
    """The bias [E] in its own dtype, a writable copy."""
    return np.frombuffer(data, BIAS_DTYPES[dtype]).copy()


def margins(bias: NDArray[Any], touched: Collection[int], score_range: float) -> Margins:
    """Finite margins for one layer.

    bias: [E] in its own dtype; touched: the experts about to be edited; score_range: R, width of the interval of the score.
    Experts that are -inf already are nobody's rival and do not count.

    Raises: ValueError when no untouched expert with a finite bias is left.
    """
    untouched = np.ones(bias.size, bool)
    untouched[list(touched)] = False
    values = bias[untouched].astype(np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        raise ValueError("no untouched expert is left")
    low, high = float(values.min()), float(values.max())
    spread = high - low
    bound = low - (spread + 2 * score_range)
    return Margins(suppress=bound - 1, suppress_bound=bound, stimulate=high + 2 * spread + 4 * score_range + 2)


def edit_bias(bias: NDArray[Any], suppress: dict[int, float], stimulate: dict[int, float]) -> NDArray[Any]:
    """A copy of the bias [E], same dtype, with some experts' values replaced; all other elements keep their bits.

    suppress, stimulate: expert to value. A value that the dtype cannot hold is rounded down where it suppresses and up where
    it stimulates, so that it still decides.
    """
    edited = bias.copy()
    for expert, value in suppress.items():
        edited[expert] = round_toward(value, bias.dtype, MINUS_INFINITY)
    for expert, value in stimulate.items():
        edited[expert] = round_toward(value, bias.dtype, -MINUS_INFINITY)
    return edited


def shift_bias(bias: NDArray[Any], shifts: Mapping[int, float]) -> NDArray[Any]:
    """A copy of the bias [E], same dtype, with a finite number added to some experts' values, each rounded once to the nearest.

    shifts: expert to what is added; all other elements keep their bits.

    Raises:
        ValueError: a sum is no finite number of the dtype, or rounds to the value that was there.
    """
    shifted = bias.copy()
    for expert, shift in shifts.items():
        before = float(bias[expert])
        if not np.isfinite(before):
            raise ValueError(
                f"expert {expert} has a bias of {before:g} in the base, to which nothing finite can be added"
            )
        with np.errstate(over="ignore"):
            shifted[expert] = bias.dtype.type(before + shift)
        if not np.isfinite(float(shifted[expert])):
            raise ValueError(
                f"a shift of {shift:g} takes expert {expert}'s bias of {before:g} out of its type {bias.dtype}, expected a"
                " smaller one, or none for a whole reroute"
            )
        if shifted[expert] == bias[expert]:
            raise ValueError(
                f"a shift of {shift:g} is lost in the rounding of expert {expert}'s bias of {before:g} ({bias.dtype}),"
                " expected a larger one"
            )
    return shifted


def round_toward(value: float, dtype: np.dtype[Any], direction: float) -> Any:
    """`value` in `dtype`, never on the other side of it than `direction` (plus or minus infinity)."""
    with np.errstate(over="ignore"):
        cast = dtype.type(value)
    wrong_side = float(cast) > value if direction < 0 else float(cast) < value
    return np.nextafter(cast, dtype.type(direction)) if wrong_side else cast
