"""What mote-verify says of a variant's proof, and of traces of it."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints import build_checkpoint
from running import run_main

from ftri.cli.verify import main
from ftri.traces.reader import TraceRecord
from ftri.traces.writer import TraceWriter
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.variant.write import write_variant

PAIRS = [(1, 3), (2, 5)]
BIAS_FREE = {"model_type": "deepseek_v2", "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}


def make_variant(folder: Path, semantics=None, **changes) -> tuple[Path, Path]:
    """A base and its variant without the pairs."""
    base = build_checkpoint(folder / "base", **changes)
    chosen = [ExpertEntry(layer=layer, expert=expert) for layer, expert in PAIRS]
    expert_set = ExpertSet(layer_index="model", behavior="test", experts=chosen)
    write_variant(make_plan(Checkpoint.open(base), expert_set, None, EditOptions(semantics)), base, folder / "variant")
    return base, folder / "variant"


def record_traces(folder: Path, variant: Path, num_selecting: int, num_responses: int = 30) -> Path:
    """Traces of the variant, some of whose responses select the first pair once."""
    layout = Checkpoint.open(variant).layout
    manifest = {
        "schema": "mote.traces/1",
        "model": "variant",
        "config_sha256": hashlib.sha256((variant / "config.json").read_bytes()).hexdigest(),
        "moe_layers": list(layout.moe_layers),
        "num_experts": layout.num_experts,
        "top_k": layout.top_k,
    }
    with TraceWriter(folder, manifest) as writer:
        for number in range(num_responses):
            experts = np.zeros((4, len(layout.moe_layers), layout.top_k), np.uint8)
            experts[...] = np.arange(8, 8 + layout.top_k)
            if number < num_selecting:
                experts[1, layout.moe_layers.index(1), 0] = 3
            record = TraceRecord(f"p{number}", 0, "hello", "hello", [1, 2], [3, 4, 5], "text", "stop")
            record.experts = np.sort(experts, axis=-1)
            writer.append(record)
    return folder


def verify(variant: Path, base: Path, *arguments: object):
    return run_main(main, "mote-verify", variant, "--base", base, *arguments)


@pytest.mark.parametrize("num_selecting", [0, 2])
def test_a_centroid_is_proved_to_add_nothing_and_its_selections_are_counted(tmp_path: Path, num_selecting: int):
    base, variant = make_variant(tmp_path, **BIAS_FREE)
    said = verify(variant, base).stdout
    assert "proved from the bytes: reroute (centroid): " in said
    assert "adds nothing and is never ranked first" in said
    assert "not proved: that a suppressed expert is never selected: it is possible only where fewer than 2" in said
    traces = record_traces(tmp_path / "traces", variant, num_selecting)
    finished = verify(variant, base, "--traces", traces)
    assert finished.returncode == 0
    assert (
        f"observed: {num_selecting} selections of the suppressed experts in 30 responses (120 tokens)"
        in finished.stdout
    )
    if not num_selecting:
        assert f"fewer than {1 - 0.05 ** (1 / 30):.2%} of responses like these" in finished.stdout
    document = json.loads(verify(variant, base, "--traces", traces, "--json").stdout)["traces"]
    assert document["responses_selecting"] == num_selecting
    assert document["experts"][0] == {"layer": 1, "expert": 3, "tokens": num_selecting}


def test_a_biased_reroute_that_traces_contradict_is_an_error(tmp_path: Path):
    base, variant = make_variant(tmp_path)
    assert "so it is never selected" in verify(variant, base).stdout
    clean = verify(variant, base, "--traces", record_traces(tmp_path / "clean", variant, 0))
    assert "observed: 0 selections" in clean.stdout
    wrong = verify(variant, base, "--traces", record_traces(tmp_path / "wrong", variant, 1))
    assert wrong.returncode == 1
    assert "1 tokens select layer 1 expert 3, expected none" in wrong.stderr


def test_a_drop_is_said_to_be_selected_as_before(tmp_path: Path):
    base, variant = make_variant(tmp_path, "drop", **BIAS_FREE)
    said = verify(variant, base, "--traces", record_traces(tmp_path / "traces", variant, 3)).stdout
    assert "drop: the output of a suppressed expert is zero" in said
    assert "observed: 3 selections" in said


def test_one_expert_a_token_makes_non_selection_certain(tmp_path: Path):
    base, variant = make_variant(tmp_path, **(BIAS_FREE | {"num_experts_per_tok": 1}))
    said = verify(variant, base).stdout
    assert "the router selects one expert, so a suppressed one is never selected" in said
    assert "not proved" not in said
