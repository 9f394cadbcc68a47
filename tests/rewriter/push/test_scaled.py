"""Variants that multiply outputs, a strength and a gain: pushed as weights, and as a recipe that makes the same bytes again."""

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints import build_checkpoint, down_proj_name, read_tensors, shard_of, write_set
from hub_double.fixtures import Hub

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.expert_set import ExpertSet
from rewriter.semantics import DROP
from rewriter.variant.write import write_variant

SUPPRESSED, STIMULATED = (1, 3), (3, 5)
STRENGTH, GAIN = 0.25, 1.7
SENTENCE = "layer 3 expert 5: gain 1.7. The router gives it 0.100 of a token's weight in the mean"


@pytest.fixture(scope="module")
def scaled(module_hub: Hub) -> tuple[Path, Path]:
    """A base on the double and its variant: one expert of which 0.75 is kept, and one times 1.7, as traces said."""
    base = build_checkpoint(module_hub.root / "scaled-base", expert_dtype="BF16")
    commit = module_hub.double.seed("org/scaled", base)
    sets = []
    for action, (layer, expert), numbers in (
        ("down", SUPPRESSED, {"strength": STRENGTH}),
        ("up", STIMULATED, {"gain": GAIN}),
    ):
        path = write_set(
            module_hub.root / f"{action}.json", [], experts=[{"layer": layer, "expert": expert, **numbers}]
        )
        sets.append(ExpertSet.load(path))
    sets[1].provenance["by_traces"] = {"model": "scaled", "sentences": [SENTENCE]}
    options = EditOptions(semantics=DROP)
    plan = make_plan(Checkpoint.open(base), *sets, options, base_model="org/scaled", base_revision=commit)
    variant = module_hub.root / "scaled-variant"
    write_variant(plan, base, variant)
    before, after = read_tensors(base), read_tensors(variant)
    for (layer, expert), factor in ((SUPPRESSED, 1 - STRENGTH), (STIMULATED, GAIN)):
        name = down_proj_name(layer, expert)
        numbers, products = (np.frombuffer(at[name].data, ml_dtypes.bfloat16) for at in (before, after))
        expected = (numbers.astype(np.float64) * factor).astype(ml_dtypes.bfloat16)
        assert (products == expected).all() and (products != numbers).any()
    return base, variant


def test_the_weights_are_pushed_with_their_factors_said(hub: Hub, scaled: tuple[Path, Path]) -> None:
    base, variant = scaled
    done = json.loads(hub.push(variant, "alice/scaled", "--yes", "--json").stdout)
    edited = {shard_of(base, down_proj_name(*pair)).name for pair in (SUPPRESSED, STIMULATED)}
    uploaded = {one["path"] for one in done["plan"]["actions"] if one["action"] == "upload"}
    assert {name for name in uploaded if name.endswith(".safetensors")} == edited, "the others are copied from the base"
    files = hub.double.files("alice/scaled")
    for shard in variant.glob("*.safetensors"):
        assert files[shard.name]["lfs"] == hashlib.sha256(shard.read_bytes()).hexdigest()
    card = (variant / "README.md").read_text()
    assert "output x 0.75" in card and "output x 1.7" in card and SENTENCE in card


def test_the_recipe_carries_them_and_makes_the_same_bytes(hub: Hub, scaled: tuple[Path, Path]) -> None:
    _, variant = scaled
    hub.push(variant, "alice/scaled-recipe", "--recipe", "--yes")
    assert not any(name.endswith(".safetensors") for name in hub.double.files("alice/scaled-recipe"))
    hub.rewrite("--recipe", "alice/scaled-recipe", "-o", "scaled-again")
    again = hub.root / "scaled-again"
    for shard in variant.glob("*.safetensors"):
        assert (again / shard.name).read_bytes() == shard.read_bytes(), shard.name
    ours, theirs = (json.loads((at / "config.json").read_text())["mote"] for at in (again, variant))
    assert ours["experts"] == theirs["experts"] and ours["tensors"] == theirs["tensors"]
    assert [(one.get("strength"), one.get("gain")) for one in ours["experts"]] == [(STRENGTH, None), (None, GAIN)]
    assert SENTENCE in (again / "README.md").read_text()
