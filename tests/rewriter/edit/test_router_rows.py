"""Router rows of suppressed experts where the router has no bias, against what they are for: logits of any input."""

import ml_dtypes
import numpy as np
import pytest

from rewriter.edit.router_rows import (
    ROW_DTYPES,
    LayerNorm,
    centroid,
    decode_rows,
    encode_row,
    shifted_row,
)

RNG = np.random.default_rng(0)


def random_rows(num_experts: int, hidden: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_experts, hidden)).astype(np.float32)


@pytest.mark.parametrize("dtype", list(ROW_DTYPES))
def test_rows_keep_their_bits_through_decoding_and_encoding(dtype):
    stored = random_rows(8, 16).astype(ROW_DTYPES[dtype])
    rows = decode_rows(stored.tobytes(), dtype, (8, 16))
    assert rows.dtype == np.float32
    if dtype != "F64":
        assert encode_row(rows[3], dtype).tobytes() == stored[3].tobytes()


def test_the_centroid_is_the_survivors_mean_in_float32():
    rows = random_rows(16, 8)
    survivors = [row for expert, row in enumerate(rows) if expert not in (2, 5)]
    slow = [sum(float(row[at]) for row in survivors) / 14 for at in range(8)]
    assert centroid(rows, {2, 5}).dtype == np.float32
    np.testing.assert_array_equal(centroid(rows, {2, 5}), np.array(slow, np.float32))


def test_the_centroid_needs_a_survivor():
    with pytest.raises(ValueError, match="no survivor"):
        centroid(random_rows(2, 4), {0, 1})


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_on_any_input_the_centroids_logit_is_the_survivors_mean_and_never_first(dtype):
    rows = random_rows(16, 32).astype(ROW_DTYPES[dtype]).astype(np.float32)
    suppressed = {0, 7, 9}
    row = encode_row(centroid(rows, suppressed), dtype).astype(np.float32)
    hidden = (RNG.standard_normal((5000, 32)) * np.exp(RNG.standard_normal((5000, 1)))).astype(np.float32)
    others = hidden @ rows[[e for e in range(16) if e not in suppressed]].T
    mine = hidden @ row
    assert (mine < others.max(1)).all()
    np.testing.assert_allclose(mine, others.mean(1), atol=0.03 * np.abs(others).max())
    everyone = np.concatenate((others, mine[:, None]), 1)
    chances = np.exp(everyone - everyone.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)
    assert (chances[:, -1] <= 1 / (others.shape[1] + 1) * 1.02).all()


def test_float8_rows_are_rounded_once_by_their_own_scale():
    scale = np.full((4, 1), 0.01, np.float32)
    stored = (random_rows(4, 8) * 50).astype(ml_dtypes.float8_e4m3fn)
    rows = decode_rows(stored.tobytes(), "F8_E4M3", (4, 8), scale)
    np.testing.assert_array_equal(rows, stored.astype(np.float32) * scale)
    row = encode_row(centroid(rows, {1}), "F8_E4M3", scale[1])
    wanted = (rows[[0, 2, 3]].astype(np.float64).mean(0).astype(np.float32) / scale[1]).astype(ml_dtypes.float8_e4m3fn)
    assert row.tobytes() == wanted.tobytes()


def test_a_float8_row_never_becomes_infinite_by_another_scale():
    row = encode_row(np.array([1000.0, -1000.0], np.float32), "F8_E4M3", np.array([1.0], np.float32))
    assert row.astype(np.float32).tolist() == [448.0, -448.0]


def norm_of(hidden: int, bias: float, seed: int = 3) -> LayerNorm:
    rng = np.random.default_rng(seed)
    gamma = (1 + 0.2 * rng.standard_normal(hidden)).astype(np.float32)
    return LayerNorm(gamma, (bias + 0.3 * rng.standard_normal(hidden)).astype(np.float32))


@pytest.mark.parametrize("bias", [0.5, -0.5])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_a_shifted_row_lies_below_every_survivor_on_any_input(bias, dtype):
    rows = random_rows(16, 256).astype(ROW_DTYPES[dtype]).astype(np.float32)
    norm = norm_of(256, bias)
    shift = shifted_row(rows, {3, 4}, norm, dtype)
    assert shift is not None
    assert shift.num_deviations >= 8
    survivors = rows[[e for e in range(16) if e not in (3, 4)]]
    row = shift.row.astype(np.float32)
    # Ordinary inputs, and for each survivor the one on which it is worst off against the row.
    along = (row - survivors) * norm.weight
    plain = np.concatenate((RNG.standard_normal((2000, 256)), along), 0)
    plain -= plain.mean(1, keepdims=True)
    plain /= plain.std(1, keepdims=True)
    hidden = (plain * norm.weight + norm.bias).astype(ml_dtypes.bfloat16).astype(np.float32)
    assert (hidden @ row < (hidden @ survivors.T).min(1)).all()


def test_the_shift_is_a_constant_below_the_mean():
    rows, norm = random_rows(8, 64), norm_of(64, 1.0)
    shift = shifted_row(rows, {0}, norm, "F32")
    plain = RNG.standard_normal((100, 64))
    plain = (plain - plain.mean(1, keepdims=True)) / plain.std(1, keepdims=True)
    hidden = plain * norm.weight + norm.bias
    np.testing.assert_allclose(hidden @ shift.row - (hidden @ rows[1:].T).mean(1), -shift.constant, rtol=1e-4)


@pytest.mark.parametrize(
    "norm",
    [
        LayerNorm(np.ones(64, np.float32), np.zeros(64, np.float32)),  # no bias to move anything
        LayerNorm(np.ones(64, np.float32), np.tile(np.array([1, -1], np.float32), 32)),  # sums to nothing
        LayerNorm(np.r_[0, np.ones(63)].astype(np.float32), np.ones(64, np.float32)),  # nothing to divide by
        LayerNorm(np.ones(64, np.float32), np.full(64, np.nan, np.float32)),
    ],
)
def test_no_shift_where_the_norms_bias_cannot_carry_it(norm):
    assert shifted_row(random_rows(8, 64), {0}, norm, "BF16") is None
