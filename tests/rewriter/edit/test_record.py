"""The one reader of mote blocks and recipes: what 0.1.0 wrote stays as it is, and what is not a record is one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_double.models import build_base, build_variant

from rewriter.checkpoint.edited_json import BLOCK_KEY
from rewriter.edit.record import Recipe, find_record, read_record
from rewriter.errors import RecordError

HASH = "0" * 64
# As MoTE 0.1.0 wrote it, key by key in this order; frozen here so that a change of the record cannot change old bytes.
BLOCK: dict[str, Any] = {
    "schema": "mote.variant/1",
    "tool_version": "0.1.0",
    "base_model": "org/base",
    "base_revision": "a" * 40,
    "base_folder": "base",
    "behavior": "refusal-stimulate-english",
    "semantics": "reroute",
    "suppress_bias": -20.5,
    "renormalize": False,
    "renormalization": "norm_topk_prob is true in the base and stays true",
    "layer_index": "model",
    "experts": [
        {"layer": 3, "expert": 1, "action": "suppress", "value": "-inf"},
        {"layer": 3, "expert": 2, "action": "stimulate", "value": 12.5},
        {"layer": 4, "expert": 0, "action": "suppress", "value": "zero output"},
    ],
    "changed_files": ["model-00001-of-00002.safetensors"],
    "fingerprint": HASH,
    "tensors": [
        {
            "name": "model.layers.3.mlp.gate.e_score_correction_bias",
            "shard": "model-00001-of-00002.safetensors",
            "start": 0,
            "size_bytes": 32,
            "sha256_before": HASH,
            "sha256_after": HASH,
        }
    ],
    "expert_sets": [
        {"behavior": "refusal", "model": None, "provenance": {"note": "拒绝", "n": [1, 2.5, None]}},
        {"behavior": "english", "model": "org/base", "provenance": {}},
    ],
}
RECIPE = """{
  "schema": "mote.recipe/1",
  "tool_version": "0.1.0",
  "base_model": "org/base",
  "base_revision": null,
  "behavior": "refusal",
  "semantics": "reroute",
  "suppress_bias": "auto",
  "renormalize": true,
  "experts": [
    {
      "layer": 3,
      "expert": 1,
      "action": "suppress",
      "value": "-inf"
    }
  ],
  "tensors": [
    {
      "name": "t",
      "start": 0,
      "size_bytes": 32,
      "sha256_before": "HASH",
      "sha256_after": "HASH"
    }
  ],
  "expert_sets": [
    {
      "behavior": "拒绝",
      "model": null,
      "provenance": {}
    }
  ]
}
""".replace("HASH", HASH)


def text_of(block: dict[str, Any]) -> str:
    return json.dumps(block, indent=2, ensure_ascii=False)


def test_blocks_and_recipes_of_0_1_0_are_read_and_written_as_they_are() -> None:
    record = read_record({BLOCK_KEY: BLOCK}, "model")
    assert text_of(record.to_block()) == text_of(BLOCK)
    assert Recipe.read(RECIPE, "mote-recipe.json").to_json() == RECIPE
    assert '"shard"' not in Recipe.of(record).to_json()


def test_chain_keeps_each_block_and_what_later_versions_added() -> None:
    older = {key: value for key, value in BLOCK.items() if key not in ("renormalize", "base_folder", "expert_sets")}
    chain = BLOCK | {"later": {"key": 1}, "base": BLOCK | {"base": older | {"semantics": "drop"}}}
    record = read_record({BLOCK_KEY: chain}, "model")
    assert [one.semantics for one in record.chain()] == ["reroute", "reroute", "drop"]
    written = record.to_block()
    assert written == chain and text_of(written["base"]["base"]) == text_of(older | {"semantics": "drop"})


def test_what_a_variant_carries_is_what_the_record_says(tmp_path: Path) -> None:
    base = build_base(tmp_path / "base")
    variant = build_variant(base, tmp_path / "variant", None, None, [(2, 1)])
    config = json.loads((variant / "config.json").read_text())
    record = read_record(config, str(variant))
    assert text_of(record.to_block()) == text_of(config["mote"])
    assert [(one.layer, one.expert, one.is_minus_inf, one.edits_bias) for one in record.experts] == [(2, 1, True, True)]
    assert find_record(json.loads((base / "config.json").read_text()), str(base)) is None
    assert find_record({}, "model") is None


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (None, "its mote block has schema null, expected 'mote.variant/1'"),
        ("yes", "its mote block has schema null"),
        ({"schema": "mote.variant/9"}, 'its mote block has schema "mote.variant/9"'),
        ({"schema": "mote.variant/1"}, "tool_version of its mote block is missing"),
        (BLOCK | {"experts": 3}, "experts of its mote block is 3: input should be a valid list"),
        (BLOCK | {"experts": [{"layer": "3"}]}, 'experts.0.layer of its mote block is "3"'),
        (BLOCK | {"experts": [{"layer": True}]}, "experts.0.layer of its mote block is true"),
        (BLOCK | {"suppress_bias": float("nan")}, "suppress_bias"),
        (BLOCK | {"expert_sets": [{"behavior": ""}]}, "expert_sets.0.behavior of its mote block is"),
        (BLOCK | {"semantics": "vanish"}, "semantics of its mote block is"),
        (BLOCK | {"behavior": ["\x1b[2J\u202e\n" * 9999]}, r'behavior of its mote block is ["\u001b[2J\u202e\n'),
        (BLOCK | {"base": {"schema": "mote.variant/1"}}, "base.tool_version of its mote block is missing"),
    ],
)
def test_what_is_no_record_is_one_printable_sentence(block: object, expected: str) -> None:
    with pytest.raises(RecordError) as caught:
        find_record({BLOCK_KEY: block}, "model")
    sentence = str(caught.value)
    assert expected in sentence and sentence.startswith("model/config.json: ")
    assert sentence.isprintable() and len(sentence) <= 400


def test_endless_chain_is_one_sentence() -> None:
    chain = dict(BLOCK)
    for _ in range(5000):
        chain = BLOCK | {"base": chain}
    with pytest.raises(RecordError) as caught:
        read_record({BLOCK_KEY: chain}, "model")
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 400
