"""Rows of vLLM's own capture as they are read: the layers that route, checked, and missed where there are none."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_models import TINY_R1_CONFIG

from ftri.engine.errors import EngineError
from ftri.engine.rows import OWN_CAPTURE, RowReader
from rewriter.families.lookup import router_layout

LAYOUT = router_layout(TINY_R1_CONFIG)  # layers 1 to 3 of 0 to 3 route, 4 of 16 experts a token


def finished(captured: Any) -> Any:
    """A request of three prompt tokens and two of an answer, whose last was never run."""
    completion = SimpleNamespace(token_ids=[7, 8], routed_experts=captured)
    return SimpleNamespace(request_id="5", prompt_token_ids=[1, 2, 3], outputs=[completion])


def read(captured: Any) -> Any:
    (rows,) = RowReader(llm=None, capture=OWN_CAPTURE, layout=LAYOUT).read([finished(captured)], {"5": "5"})
    return rows.experts


def capture_of(num_rows: int) -> np.ndarray:
    """Rows [T, hidden layers, K], descending: dense layers have zeros."""
    rows = np.random.default_rng(2).permuted(np.tile(np.arange(16, dtype=np.uint8), (num_rows, 4, 1)), axis=-1)[..., :4]
    rows[:, 0] = 0
    return -np.sort(-rows.astype(int), axis=-1).astype(np.uint8)


def marked_empty() -> np.ndarray:
    """Signed rows with a place that no expert was written to."""
    captured = capture_of(4).astype(np.int32)
    captured[1, 2, 0] = -1
    return captured


@pytest.mark.parametrize("num_rows", [4, 5])
def test_the_layers_that_route_are_read_ascending(num_rows: int) -> None:
    captured = capture_of(num_rows)
    np.testing.assert_array_equal(read(captured), captured[:4, 1:, ::-1])


@pytest.mark.parametrize(
    ("captured", "sentence"),
    [
        (None, "request 5 came back without rows, though vLLM took the argument .* expected routed_experts"),
        (np.zeros((4, 4, 4), np.uint8), "request 5 came back with expert 0 more than once .* moe_backend"),
        (
            capture_of(4)[:, 1:],
            r"request 5 came back with rows of shape \[4, 3, 4\], expected a row of every layer up to layer 3",
        ),
        (capture_of(4)[0], r"request 5 came back with rows of shape \[4, 4\], expected a row of every layer"),
        (marked_empty(), r"expert -1 \(token 1, layer row 1\), expected ids of 0 and above"),
        (capture_of(3), r"request 5 came back with rows of shape \[3, 3, 4\], expected \[4, 3, 4\]"),
    ],
)
def test_rows_that_cannot_be_are_refused(captured: Any, sentence: str) -> None:
    with pytest.raises(EngineError, match=sentence):
        read(captured)
