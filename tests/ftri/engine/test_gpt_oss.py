"""gpt-oss in vLLM, whose router's bias is part of the logit: a live reroute of a tiny random one is its rewritten checkpoint."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import ENGINE_ARGUMENTS, run_engine
from family_models import TINY_MODELS, build_tiny_model
from running import run_main
from tiny_models import write_tiny_tokenizer

from ftri.cli.rewrite import main
from ftri.engine.edits import as_expert_set
from ftri.traces.rows import Experts
from rewriter.checkpoint.reader import Checkpoint

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

# Sizes that vLLM's kernels take, and a vocabulary for the tiny tokenizer.
SIZES = {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 128, "head_dim": 64}
SIZES |= {"num_attention_heads": 2, "num_key_value_heads": 2}
JOB: dict[str, Any] = {"count": 16, "arguments": ENGINE_ARGUMENTS, "max_tokens": 24}


def build_gpt_oss(folder: Path) -> Path:
    tiny = next(tiny for tiny in TINY_MODELS if str(tiny) == "gpt_oss")
    build_tiny_model(replace(tiny, config=tiny.config | SIZES), folder)
    write_tiny_tokenizer(folder, SIZES["vocab_size"])
    return folder


def most_selected(rows: list[Experts], layers: tuple[int, ...]) -> list[tuple[int, int]]:
    """The two experts that each layer selects most often, as (model layer, expert)."""
    pairs = []
    for place, layer in enumerate(layers):
        counts = Counter(expert for one in rows for expert in one[:, place].ravel().tolist())
        pairs += [(layer, expert) for expert, _ in counts.most_common(2)]
    return pairs


def test_it_is_recorded_rerouted_and_dropped_live(tmp_path: Path) -> None:
    folder = build_gpt_oss(tmp_path / "gpt-oss")
    layers = Checkpoint.open(folder).layout.moe_layers
    recorded = run_engine(tmp_path / "base", model=str(folder), **JOB)
    suppress = most_selected([one["experts"] for one in recorded], layers)
    semantics = ("reroute", "drop", "drop-renorm")
    edits = [None, *({"semantics": name, "suppress": suppress} for name in semantics)]
    found = run_engine(tmp_path / "live", model=str(folder), edits=edits, **JOB)
    base, reroute, drop, renorm = (found[number :: len(edits)] for number in range(len(edits)))
    for one, alone in zip(base, recorded, strict=True):
        assert one["token_ids"] == alone["token_ids"]
        np.testing.assert_array_equal(one["experts"], alone["experts"])

    expert_set = as_expert_set(suppress)
    assert expert_set is not None
    expert_set.save(tmp_path / "suppress.json")
    for name, live in (("reroute", reroute), ("drop", drop)):
        options = ["--suppress", tmp_path / "suppress.json", "--semantics", name, "-o", tmp_path / name]
        rewritten = run_main(main, "mote-rewrite", "--model", folder, *options)
        assert rewritten.returncode == 0, rewritten.stderr
        stored = run_engine(tmp_path / f"{name}-run", model=str(tmp_path / name), **JOB)
        assert any(one["token_ids"] != other["token_ids"] for one, other in zip(live, base, strict=True))
        for one, other in zip(live, stored, strict=True):
            assert one["token_ids"] == other["token_ids"]
            np.testing.assert_array_equal(one["experts"], other["experts"])
    assert any(one["token_ids"] != other["token_ids"] for one, other in zip(renorm, drop, strict=True))
