"""A live reroute against the checkpoint that mote-rewrite emits, in an engine of its own."""

from pathlib import Path

import numpy as np
import pytest
from engines import ENGINE_ARGUMENTS, MAX_TOKENS, prompts, run_engine
from running import run_main

from ftri.cli.rewrite import main
from ftri.engine.edits import RouterEdit, as_expert_set
from ftri.engine.engine import Engine, Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_live_reroute_is_token_for_token_the_rewritten_checkpoint(
    tiny_engine: Engine, tiny_r1: Path, tmp_path: Path
) -> None:
    suppress, stimulate = [(1, 3), (1, 9), (3, 7)], [(2, 5)]
    for name, pairs in (("suppress", suppress), ("stimulate", stimulate)):
        expert_set = as_expert_set(pairs)
        assert expert_set is not None
        expert_set.save(tmp_path / f"{name}.json")
    variant = tmp_path / "variant"
    options = ["--suppress", tmp_path / "suppress.json", "--stimulate", tmp_path / "stimulate.json", "-o", variant]
    rewritten = run_main(main, "mote-rewrite", "--model", tiny_r1, *options)
    assert rewritten.returncode == 0, rewritten.stderr
    stored = run_engine(tmp_path / "run", model=str(variant), count=16, arguments=ENGINE_ARGUMENTS, temperature=1.0)

    rendered = [tiny_engine.render(prompt) for prompt in prompts(16)]
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=1.0)
    live = list(tiny_engine.generate(rendered, sampling, edit=RouterEdit("reroute", suppress, stimulate)))
    for generation in live:
        assert generation.token_ids == stored[generation.index]["token_ids"]
        np.testing.assert_array_equal(generation.experts, stored[generation.index]["experts"])


def test_a_live_shift_is_token_for_token_the_rewritten_checkpoint(tmp_path: Path) -> None:
    """On the shipped miniature, greedy, in a batch that the base's requests share; what is selected is equal too."""
    miniature = Path(__file__).parents[3] / "examples" / "tiny-r1"
    pairs = [(2, 46), (2, 58), (3, 99), (3, 44), (4, 84)]
    shifts = [(2, 46, -0.05), (2, 58, -0.01), (3, 99, -0.2), (3, 44, -0.02)]
    expert_set = as_expert_set(pairs, shifts)
    assert expert_set is not None
    expert_set.save(tmp_path / "shifted.json")
    variant = tmp_path / "variant"
    rewritten = run_main(
        main, "mote-rewrite", "--model", miniature, "--suppress", tmp_path / "shifted.json", "-o", variant
    )
    assert rewritten.returncode == 0, rewritten.stderr
    job = {"count": 16, "arguments": ENGINE_ARGUMENTS, "max_tokens": 48}
    stored = run_engine(tmp_path / "stored", model=str(variant), **job)
    edit = {"semantics": "reroute", "suppress": pairs, "bias_shifts": shifts}
    both = run_engine(tmp_path / "live", model=str(miniature), edits=[None, edit], **job)
    base, live = both[::2], both[1::2]
    num_rerouted = 0
    for number, one in enumerate(live):
        assert one["token_ids"] == stored[number]["token_ids"]
        np.testing.assert_array_equal(one["experts"], stored[number]["experts"])
        num_rerouted += base[number]["token_ids"] != one["token_ids"]
    counts = {
        (layer, expert): sum(int((one["experts"][:, layer - 2] == expert).sum()) for one in live)
        for layer, expert in pairs
    }
    assert num_rerouted  # the shifts do something
    assert any(counts[layer, expert] for layer, expert, _ in shifts), counts  # and less than a whole reroute
    assert counts[4, 84] == 0


def test_live_factors_are_the_scaled_checkpoint_but_for_its_rounding(tmp_path: Path) -> None:
    """On the shipped miniature, greedy: a gain of 2 and a strength of 0.5 are exact in bfloat16, and texts are the same."""
    miniature = Path(__file__).parents[3] / "examples" / "tiny-r1"
    down, up = [(2, 46), (3, 44)], [(4, 84)]
    for name, pairs in (("down", down), ("up", up)):
        expert_set = as_expert_set(pairs)
        assert expert_set is not None
        expert_set.save(tmp_path / f"{name}.json")
    variant = tmp_path / "variant"
    options = [
        "--suppress",
        tmp_path / "down.json",
        "--strength",
        0.5,
        "--stimulate",
        tmp_path / "up.json",
        "--gain",
        2,
    ]
    rewritten = run_main(main, "mote-rewrite", "--model", miniature, *options, "-o", variant)
    assert rewritten.returncode == 0, rewritten.stderr
    job = {"count": 16, "arguments": ENGINE_ARGUMENTS, "max_tokens": 48}
    stored = run_engine(tmp_path / "stored", model=str(variant), **job)
    factors = [(2, 46, 0.5), (3, 44, 0.5), (4, 84, 2.0)]
    edit = {"semantics": "drop", "suppress": down, "stimulate": up, "factors": factors}
    live = run_engine(tmp_path / "live", model=str(miniature), edits=[edit], **job)
    same = [one["token_ids"] == other["token_ids"] for one, other in zip(live, stored, strict=True)]
    assert sum(same) >= 15, same  # bfloat16 sums of products in another order may tie differently
    for one, other, is_same in zip(live, stored, same, strict=True):
        if is_same:
            assert (one["experts"] == other["experts"]).mean() > 0.99
