"""What is said of an engine that died is its own error, not that of cleaning up behind it."""

from typing import Any

import pytest

from ftri.engine.answers import Request
from ftri.engine.errors import EngineError
from ftri.engine.run_loop import RunLoop

pytestmark = pytest.mark.vllm


class DyingEngine:
    """An engine whose first step fails, and every call after it."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.is_dead = False

    def add_request(self, request_id: str, prompt: Any, params: Any) -> str:
        return request_id

    def step(self) -> list[Any]:
        if self.is_dead:
            raise RuntimeError("the second failure")
        self.is_dead = True
        raise self.error

    def has_unfinished_requests(self) -> bool:
        return True

    def abort_request(self, request_ids: list[str]) -> None:
        raise RuntimeError("the second failure")


def dead_engine_error() -> Exception:
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError()


@pytest.mark.parametrize("make", [lambda: RuntimeError("CUDA out of memory"), dead_engine_error])
def test_the_first_failure_is_the_one_that_is_told(make: Any) -> None:
    error = make()
    loop = RunLoop(DyingEngine(error), rows=None, in_flight_limit=4)
    with pytest.raises(EngineError, match="vLLM failed while it ran") as caught:
        list(loop.run(iter([Request("p", [1, 2], "p", params=None)])))
    assert str(error).splitlines()[0].rstrip(".") in str(caught.value)
    assert caught.value.__cause__ is error
