"""What a plan makes of config.json, and its record of the edit."""

import json
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    CONFIG,
    INDEX,
    bias_name,
    build_checkpoint,
    down_proj_name,
    read_tensors,
    write_json,
    write_set,
    write_shard,
)
from commands import Command

from rewriter.checkpoint.edited_json import config_text, parse_config
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.expert_set import ExpertEntry, ExpertSet


def plan_of(base: Path, **options: Any) -> Any:
    """A plan that suppresses one expert."""
    chosen = ExpertSet(layer_index="model", behavior="test", experts=[ExpertEntry(layer=1, expert=3)])
    return make_plan(Checkpoint.open(base), chosen, None, EditOptions(**options))


def with_config(base: Path, change: Any) -> Path:
    """The base with its config.json changed."""
    write_json(base / "config.json", change(json.loads((base / "config.json").read_text())))
    return base


def test_config_keeps_its_keys_their_order_and_unknown_ones(base: Path) -> None:
    config = json.loads(config_text(plan_of(base).config))
    assert list(config) == [*CONFIG, "mote"]
    assert {key: value for key, value in config.items() if key != "mote"} == CONFIG


def test_numbers_stay_as_they_were_written(base: Path) -> None:
    text = (
        '{"model_type": "deepseek_v3", "num_hidden_layers": 5, "first_k_dense_replace": 1, "n_routed_experts": 16,'
        ' "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "a": 1E-6, "b": 0.10, "c": [1.0e5, -0.0, 10000.0],'
        ' "d": {"e": 1e-06, "f": 123456789012345678901234567890, "g": 0.1}, "h": "1E-6 \\u0000", "i": 1e999, "j": NaN,'
        ' "k": "caf\\u00e9", "l": 1e22}'
    )
    (base / "config.json").write_text(text)
    written = config_text(plan_of(base).config)
    for number in ("1E-6,", "0.10,", "1.0e5,", "-0.0,", "10000.0\n", "1e-06,", "1e999,", "NaN,", "1e22,"):
        assert number in written, number
    assert "123456789012345678901234567890" in written and '"1E-6 \\u0000"' in written and "café" in written


def test_config_text_is_what_json_writes_where_numbers_are_plain() -> None:
    document = CONFIG | {"nested": [{"deep": [0.5, 1, True, None, "text"]}]}
    text = json.dumps(document, indent=2) + "\n"
    assert config_text(parse_config(text)) == text


def test_renormalisation_is_written_out_where_it_is_the_default(base: Path) -> None:
    with_config(base, lambda config: {key: value for key, value in config.items() if key != "norm_topk_prob"})
    plan = plan_of(base)
    assert plan.config["norm_topk_prob"] is True and plan.renormalizes is True
    assert plan.record.renormalization == "norm_topk_prob is true in the base and is written out as true"


@pytest.mark.parametrize(("renormalize", "expected"), [(False, False), (True, True)])
def test_renormalisation_stays_off_unless_asked_for(base: Path, renormalize: bool, expected: bool) -> None:
    with_config(base, lambda config: config | {"norm_topk_prob": False})
    plan = plan_of(base, renormalize=renormalize)
    assert plan.config["norm_topk_prob"] is expected and plan.renormalizes is expected
    assert "changes every token" in plan.record.renormalization
    assert plan.config["mote"]["renormalization"] == plan.record.renormalization
    assert list(plan.config) == [*CONFIG, "mote"]


def test_renormalize_option_reaches_the_folder_and_verifies(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    with_config(base, lambda config: config | {"norm_topk_prob": False})
    for name, option in (("off", []), ("on", ["--renormalize"])):
        outcome = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / name, *option)
        assert outcome.code == 0 and "norm_topk_prob" in outcome.stdout
        assert json.loads((tmp_path / name / "config.json").read_text())["norm_topk_prob"] is (name == "on")
        assert mote_verify(tmp_path / name, "--base", base).code == 0


def test_nested_language_config(tmp_path: Path) -> None:
    """Multimodal models keep the router's keys one level down, where they are edited; the top level gets the block alone."""
    base = build_checkpoint(tmp_path / "nested")
    inner = {key: value for key, value in CONFIG.items() if key != "norm_topk_prob"}
    outer = {"model_type": "kimi_k25", "vision_config": {"depth": 2}, "text_config": inner, "last": 1}
    write_json(base / "config.json", outer)
    config = plan_of(base).config
    assert list(config) == ["model_type", "vision_config", "text_config", "last", "mote"]
    assert config["text_config"] == inner | {"norm_topk_prob": True} and "norm_topk_prob" not in config


def test_block_records_the_edit(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    block = json.loads((tmp_path / "out" / "config.json").read_text())["mote"]
    assert block["schema"] == "mote.variant/1" and block["semantics"] == "reroute" and block["layer_index"] == "model"
    assert block["base_model"] is None and block["base_folder"] == "tiny" and str(tmp_path) not in json.dumps(block)
    assert [(e["layer"], e["expert"], e["action"], e["value"]) for e in block["experts"]] == [
        (1, 3, "suppress", "-inf"),
        (1, 8, "suppress", "-inf"),
        (3, 0, "suppress", "-inf"),
    ]
    assert [tensor["name"] for tensor in block["tensors"]] == [bias_name(1), bias_name(3)]


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        ("org/R1", "org/R1"),
        ("R1", "R1"),
        ("/home/alice/secret/R1", "R1"),
        ("../R1", "R1"),
        ("~/a/b/R1.gguf", "R1.gguf"),
    ],
)
def test_a_variant_does_not_say_where_its_sets_model_lies(base: Path, model: str, kept: str) -> None:
    chosen = ExpertSet(model=model, layer_index="model", behavior="test", experts=[ExpertEntry(layer=1, expert=3)])
    record = make_plan(Checkpoint.open(base), chosen, None, EditOptions()).record
    assert [one.model for one in record.expert_sets] == [kept]


@pytest.mark.parametrize("dtype", ["F8_E4M3", "BF16", "F16", "F32"])
def test_drop_zeroes_the_output_and_leaves_the_router(
    tmp_path: Path, refusal: Path, mote_rewrite: Command, mote_verify: Command, dtype: str
) -> None:
    base = build_checkpoint(tmp_path / "tiny", expert_dtype=dtype)
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "--semantics", "drop", "-o", out).code == 0
    ours, theirs = read_tensors(base), read_tensors(out)
    dropped = {down_proj_name(layer, expert) for layer, expert in ((1, 3), (1, 8), (3, 0))}
    for name, tensor in ours.items():
        assert theirs[name] == (tensor._replace(data=bytes(len(tensor.data))) if name in dropped else tensor), name
    assert mote_verify(out, "--base", base, "--full").code == 0


def test_drop_with_stimulation_edits_both(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    stimulate = write_set(tmp_path / "kind.json", [(1, 5)])
    out = tmp_path / "out"
    arguments = ("--suppress", refusal, "--stimulate", stimulate, "--semantics", "drop", "-o", out)
    assert mote_rewrite("--model", base, *arguments).code == 0
    changed = {name for name, tensor in read_tensors(base).items() if read_tensors(out)[name] != tensor}
    assert changed == {bias_name(1), *(down_proj_name(*pair) for pair in ((1, 3), (1, 8), (3, 0)))}


def test_model_of_one_shard_without_an_index(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    tensors = read_tensors(base)
    for path in [*base.glob("*.safetensors"), base / INDEX]:
        path.unlink()
    write_shard(base / "model.safetensors", tensors)
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    assert not (tmp_path / "out" / INDEX).exists() and (tmp_path / "out" / "model.safetensors").exists()


def test_planning_reads_only_the_headers_it_needs(base: Path) -> None:
    """Config, index, the affected shard's header and the bias: nothing else is read of a model of any size."""
    checkpoint = Checkpoint.open(base)
    read: list[tuple[str, int]] = []
    original = checkpoint.source.read

    class Recording:
        name = checkpoint.source.name
        size_bytes = staticmethod(checkpoint.source.size_bytes)

        def read(self, file_name: str, offset: int, size: int) -> bytes:
            read.append((file_name, size))
            return original(file_name, offset, size)

    chosen = ExpertSet(layer_index="model", behavior="test", experts=[ExpertEntry(layer=1, expert=3)])
    plan = make_plan(Checkpoint(Recording()), chosen, None, EditOptions())
    (shard,) = plan.changed_shards
    assert {name for name, _ in read} == {"config.json", "model.safetensors.index.json", shard}
    assert [size for name, size in read if name == shard][2:] == [64]
