"""A live reroute against the checkpoint that mote-rewrite emits, in an engine of its own."""

from pathlib import Path

import numpy as np
import pytest
from engines import ENGINE_ARGUMENTS, MAX_TOKENS, prompts, run_engine
from running import run_main

from ftri.engine.edits import RouterEdit, as_expert_set
from ftri.engine.engine import Engine, Sampling
from rewriter.cli.rewrite import main

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
