"""Counting the selections of suppressed experts, and what no selection in so many responses says."""

import json
from pathlib import Path

import numpy as np
import pytest

from ftri.traces.reader import TraceError
from ftri.traces.selections import count_selections, selections_in_traces

LAYERS = (2, 5)


def routing(num_tokens: int, seed: int) -> np.ndarray:
    """Selected experts int [T, L, K] of 8 experts, without experts 6 and 7."""
    generator = np.random.default_rng(seed)
    return np.array([[generator.permutation(6)[:2] for _ in LAYERS] for _ in range(num_tokens)])


def test_selections_are_counted_by_token_and_by_response():
    responses = [routing(20, seed) for seed in range(10)]
    responses[3][4, 1] = (7, 0)
    responses[3][9, 1] = (1, 7)
    responses[8][0, 0] = (6, 7)
    found = count_selections(iter(responses), LAYERS, [(5, 7), (2, 6), (2, 5)])
    slow = sum(5 in token[0] for response in responses for token in response)
    assert found.tokens_by_expert == {(2, 5): slow, (2, 6): 1, (5, 7): 2}
    assert (found.num_responses, found.num_tokens) == (10, 200)
    without = count_selections(iter(responses), LAYERS, [(5, 7), (2, 6)])
    assert without.num_responses_selecting == 2
    assert without.num_selections == 3


@pytest.mark.parametrize("num_responses", [1, 20, 756])
def test_the_bound_of_no_selection_is_one_less_the_root_of_a_twentieth(num_responses):
    found = count_selections([routing(3, seed) for seed in range(num_responses)], LAYERS, [(2, 7)])
    assert found.bound == pytest.approx(1 - 0.05 ** (1 / num_responses))


def test_the_bound_of_some_selections_is_the_share_that_shows_so_few_in_one_of_twenty_draws():
    responses = [routing(3, seed) for seed in range(50)]
    for response in responses[:4]:
        response[0, 0] = (7, 1)
    bound = count_selections(responses, LAYERS, [(2, 7)]).bound
    draws = np.random.default_rng(0).binomial(50, bound, 200_000)
    assert (draws <= 4).mean() == pytest.approx(0.05, abs=0.003)


def test_selections_everywhere_have_no_bound_below_one():
    assert count_selections([np.full((3, 2, 2), 7)], LAYERS, [(2, 7)]).bound == 1


def test_traces_of_another_model_are_refused(tmp_path: Path):
    traces, variant = tmp_path / "traces", tmp_path / "variant"
    traces.mkdir()
    variant.mkdir()
    (variant / "config.json").write_text("{}")
    manifest = {"schema": "mote.traces/1", "model": "m", "config_sha256": "0" * 64, "moe_layers": [2, 5]}
    (traces / "manifest.json").write_text(json.dumps(manifest | {"num_experts": 8, "top_k": 2}))
    with pytest.raises(TraceError, match=r"SHA-256 0000000000000000, expected that of .*variant"):
        selections_in_traces(traces, variant, [(2, 7)])
