"""A response that ends when it is decided is the beginning of the whole one, routing included, and leaves no trace in others."""

import numpy as np
import pytest
from engines import prompts

from ftri.engine.edits import RouterEdit
from ftri.engine.engine import Engine, Generation, Sampling, Until

pytestmark = pytest.mark.vllm
SAMPLING = Sampling(max_tokens=12, temperature=0.0)
COUNT = 10


def run(engine: Engine, until: Until | None = None, edit: list[RouterEdit | None] | None = None) -> list[Generation]:
    rendered = [engine.render(prompt) for prompt in prompts(COUNT)]
    return sorted(engine.generate(rendered, SAMPLING, edit=edit, until=until), key=lambda generation: generation.index)


def test_decided_responses_begin_as_whole_ones_do(tiny_engine: Engine) -> None:
    whole = run(tiny_engine)
    decided = list(zip(whole, run(tiny_engine, until=lambda index, text: True), strict=True))
    for one, other in decided:
        assert other.finish_reason == "decided"
        assert one.text.startswith(other.text)
        assert len(other.token_ids) < len(one.token_ids)
        assert one.token_ids[: len(other.token_ids)] == other.token_ids
        assert one.experts is not None and other.experts is not None
        rows = len(other.experts)
        assert rows == len(other.prompt.token_ids) + len(other.token_ids) - 1
        assert np.array_equal(one.experts[:rows], other.experts)
    assert [one.token_ids for one in run(tiny_engine)] == [one.token_ids for one in whole]


def test_a_response_that_nothing_decides_is_whole(tiny_engine: Engine) -> None:
    whole, watched = run(tiny_engine), run(tiny_engine, until=lambda index, text: False)
    assert [(one.text, one.finish_reason) for one in watched] == [(one.text, one.finish_reason) for one in whole]


def test_edits_and_ends_go_together(tiny_engine: Engine) -> None:
    edits = [RouterEdit("drop", suppress=[(1, 0)]) if number % 2 else None for number in range(COUNT)]
    whole = run(tiny_engine, edit=edits)
    short = run(tiny_engine, until=lambda index, text: len(text) >= 8, edit=edits)
    assert all(one.text.startswith(other.text) for one, other in zip(whole, short, strict=True))
