"""What is said of an engine that died is its own error, not that of cleaning up behind it."""

from typing import Any

import pytest

from ftri.engine.engine import Engine, EngineError, Sampling
from ftri.prompts.rendering import RenderedPrompt

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


def engine_of(llm: DyingEngine) -> Engine:
    """An engine around a double, without the start of a real one."""
    engine = Engine.__new__(Engine)
    engine._llm, engine.capture, engine.has_edits = llm, None, False
    engine._in_flight_limit, engine._next_request, engine._is_dead = 4, 0, False
    return engine


def dead_engine_error() -> Exception:
    from vllm.v1.engine.exceptions import EngineDeadError

    return EngineDeadError()


@pytest.mark.parametrize("make", [lambda: RuntimeError("CUDA out of memory"), dead_engine_error])
def test_the_first_failure_is_the_one_that_is_told(make: Any) -> None:
    error = make()
    engine = engine_of(DyingEngine(error))
    prompt = RenderedPrompt("p", "hello", "hello", [1, 2])
    with pytest.raises(EngineError, match="vLLM failed while it ran") as caught:
        list(engine.generate([prompt], Sampling(max_tokens=4)))
    assert str(error).splitlines()[0].rstrip(".") in str(caught.value)
    assert caught.value.__cause__ is error
