"""What an expert's output times a number comes to in the format that it is stored in. Pure: nothing is written here.

Where a format has a scale, that is multiplied and no code changes; plain numbers are multiplied themselves. Either is rounded
to the type that it is stored in, and how much that is, is told.

Legend: E routed experts.
"""

from dataclasses import dataclass
from math import frexp, isfinite, sqrt
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rewriter.checkpoint.gguf.types import BLOCK_SCALES, TENSOR_TYPES
from rewriter.checkpoint.kinds import Model
from rewriter.checkpoint.source import TensorEntry
from rewriter.edit.formats import BIASES, EXPONENTS
from rewriter.edit.zero import StoredWeight, expert_part
from rewriter.errors import CheckpointError

NUMBER_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
}
EXPONENT = "F8_E8M0"
LARGEST_EXPONENT = 254  # 255 is no number


@dataclass(frozen=True)
class Packing:
    """Where in a tensor's bytes the numbers lie that are multiplied: at `offsets` of every block."""

    block_bytes: int
    offsets: tuple[int, ...]
    dtype: str  # a key of NUMBER_DTYPES, or EXPONENT: a byte b that stands for 2 ** (b - 127)


@dataclass(frozen=True)
class Scaling:
    """A multiplication of the numbers in a range of a tensor, each product rounded to the numbers' type."""

    packing: Packing
    factor: float

    def apply(self, data: bytes) -> bytes:
        """The bytes of whole blocks with their numbers multiplied.

        Raises: ValueError where a product leaves the numbers' type.
        """
        blocks = np.frombuffer(data, np.uint8).reshape(-1, self.packing.block_bytes).copy()
        width = 1 if self.packing.dtype == EXPONENT else NUMBER_DTYPES[self.packing.dtype].itemsize
        for offset in self.packing.offsets:
            field = np.ascontiguousarray(blocks[:, offset : offset + width])
            blocks[:, offset : offset + width] = self._scaled(field)
        return blocks.tobytes()

    def _scaled(self, field: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Numbers as bytes [N, width], multiplied."""
        if self.packing.dtype == EXPONENT:
            moved = field.astype(np.int64) + power_of_two(self.factor)
            if field.max() > LARGEST_EXPONENT or moved.min() < 0 or moved.max() > LARGEST_EXPONENT:
                raise ValueError("a number or a product is outside the range of its powers of two")
            return moved.astype(np.uint8)
        dtype = NUMBER_DTYPES[self.packing.dtype]
        with np.errstate(over="ignore"):
            products = rounded(field.view(dtype).astype(np.float64) * self.factor, dtype)
        if not np.isfinite(products.astype(np.float64)).all():
            raise ValueError(f"a product is no finite number of its type {self.packing.dtype}")
        return products.view(np.uint8).reshape(field.shape)

    def rounding(self, before: bytes, after: bytes) -> float:
        """The root mean square of what rounding changed, as a share of that of the exact products; 0: nothing."""
        if self.packing.dtype == EXPONENT:
            return 0.0
        exact = self._numbers(before) * self.factor
        total = float((exact**2).sum())
        return sqrt(float(((self._numbers(after) - exact) ** 2).sum()) / total) if total else 0.0

    def _numbers(self, data: bytes) -> NDArray[np.float64]:
        """All numbers that are multiplied, in float64."""
        dtype = NUMBER_DTYPES[self.packing.dtype]
        blocks = np.frombuffer(data, np.uint8).reshape(-1, self.packing.block_bytes)
        fields = [np.ascontiguousarray(blocks[:, at : at + dtype.itemsize]) for at in self.packing.offsets]
        return np.concatenate([field.view(dtype).ravel() for field in fields]).astype(np.float64)


@dataclass(frozen=True)
class ScaledRange:
    """A range of a tensor whose numbers are multiplied."""

    entry: TensorEntry
    start: int  # first byte, counted from the start of the tensor
    size_bytes: int
    scaling: Scaling


def scale_weight(
    checkpoint: Model, weight: StoredWeight, row: int | None, num_experts: int, factor: float
) -> tuple[ScaledRange, ...]:
    """What is multiplied so that a weight, or one expert's row of a stack, and the bias beside it come to `factor` times theirs.

    row: the expert where `weight` is a stack of all, else None; num_experts: E.

    Raises: CheckpointError for a format whose scale is no number, or that all experts share, or that takes powers of two only.
    """
    chosen = next((suffix for suffix in weight.format.scales if suffix in weight.tensors), None)
    where = f"{checkpoint.source.name}: the weight {weight.name} is stored as {weight.format.name}"
    if chosen is None:
        raise CheckpointError(
            f"{where}, whose output cannot be scaled: no one tensor of it is a factor of all the others"
        )
    entry = weight.tensors[chosen]
    packing = _packing(entry, is_exponent=weight.format.tensors.get(chosen) == EXPONENTS)
    if packing is None:
        raise CheckpointError(
            f"{where}, whose output cannot be scaled: {entry.name} is {entry.dtype}, expected numbers of a float type or powers"
            " of two"
        )
    if packing.dtype == EXPONENT and not is_power_of_two(factor):
        raise CheckpointError(
            f"{where}, whose scales are powers of two: an output times {factor:g} cannot be written, expected a power of two"
            " such as 0.5, 2 or 4"
        )
    own = 1 / factor if weight.format.scale_divides else factor
    ranges = [_part(checkpoint, entry, row, num_experts, Scaling(packing, own))]
    for suffix in sorted(BIASES & weight.tensors.keys()):
        bias = weight.tensors[suffix]
        plain = _packing(bias)
        if plain is None:
            raise CheckpointError(
                f"{checkpoint.source.name}/{bias.shard}: {bias.name} is {bias.dtype}, expected a float type"
            )
        ranges.append(_part(checkpoint, bias, row, num_experts, Scaling(plain, factor)))
    return tuple(ranges)


def rounded(values: NDArray[np.float64], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Numbers rounded once to the nearest of a type, of two that are as near to the even one.

    ml_dtypes goes by way of float32, where a number just beside the middle of two of its own becomes the middle. Rounded there
    to odd instead, it stays on its side, as float32 has at least two bits more than any of these types.
    """
    if dtype.itemsize > 2 or dtype == np.float16:
        return values.astype(dtype)
    near = values.astype(np.float32)
    is_even = (near.view(np.uint32) & 1) == 0
    beside = np.isfinite(values) & (near.astype(np.float64) != values) & is_even
    toward = np.where(values > near, np.float32(np.inf), np.float32(-np.inf))
    return np.where(beside, np.nextafter(near, toward), near).astype(dtype)


def is_power_of_two(factor: float) -> bool:
    """Whether a positive number is a whole power of two."""
    return frexp(factor)[0] == 0.5


def power_of_two(factor: float) -> int:
    """The exponent of a power of two."""
    assert is_power_of_two(factor)
    return frexp(factor)[1] - 1


def is_factor(value: float) -> bool:
    """Whether an output can be multiplied with a number: it is finite and above 0."""
    return isfinite(value) and value > 0


def _packing(entry: TensorEntry, is_exponent: bool = False) -> Packing | None:
    """Where a tensor's numbers lie; None where it holds none that can be multiplied."""
    if entry.dtype == EXPONENT or (entry.dtype == "U8" and is_exponent):
        return Packing(1, (0,), EXPONENT)
    if entry.dtype in NUMBER_DTYPES:
        return Packing(NUMBER_DTYPES[entry.dtype].itemsize, (0,), entry.dtype)
    offsets = BLOCK_SCALES.get(entry.dtype)
    if offsets is None:
        return None
    block_bytes = next(kind.block_bytes for kind in TENSOR_TYPES.values() if kind.name == entry.dtype)
    return Packing(block_bytes, offsets, EXPONENT if entry.dtype == "MXFP4" else "F16")


def _part(checkpoint: Model, entry: TensorEntry, row: int | None, num_experts: int, scaling: Scaling) -> ScaledRange:
    return ScaledRange(entry, *expert_part(checkpoint, entry, row, num_experts), scaling)
