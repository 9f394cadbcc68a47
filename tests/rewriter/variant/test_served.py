"""Served variants: a folder of links with a record, which is refused when it is damaged or of another model."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from checkpoints import build_checkpoint, write_set
from commands import Command

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.dial import open_base, read_served
from rewriter.edit.record import read_record
from rewriter.errors import RecordError
from rewriter.variant.card import RESULTS_NOT_MEASURED, SAFETY_NOT_MEASURED
from rewriter.variant.card_parts import find_block, split_card


@pytest.fixture
def dialled(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> Path:
    english = write_set(tmp_path / "english.json", [(2, 5)])
    dials = [
        "--dial",
        f"refusal={refusal}",
        "--dial",
        f"both=suppress:{refusal}",
        "--dial",
        f"both=stimulate:{english}",
    ]
    mote_rewrite("--model", base, *dials, "-o", tmp_path / "dialled")
    return tmp_path / "dialled"


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of config.json; those with a dot lie in the mote block."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        block, _, key = name.rpartition("__")
        (config[block] if block else config)[key] = value
    path.write_text(json.dumps(config))


def test_all_weights_are_the_base_s_own_files(base: Path, dialled: Path, mote_verify: Command) -> None:
    shards = Checkpoint.open(base).shards
    assert shards and all((dialled / shard).samefile(base / shard) for shard in shards)
    config, original = json.loads((dialled / "config.json").read_text()), json.loads((base / "config.json").read_text())
    assert config["architectures"] == ["MoteDeepseekV3ForCausalLM"] and config["model_type"] == "mote_deepseek_v3"
    served = read_served(config, "dialled")
    assert served.sets["refusal"].semantics == "drop-renorm" and served.default is None and served.has_dial
    assert served.sets["both"].suppress == ((1, 3), (1, 8), (3, 0)) and served.sets["both"].stimulate == ((2, 5),)
    # Read as its base, it is the base.
    assert open_base(dialled).config == original
    assert "verified" in mote_verify(dialled, "--base", base).stdout
    (dialled / shards[0]).unlink()
    (dialled / shards[0]).write_bytes((base / shards[0]).read_bytes()[:-1] + b"\1")
    assert "differs from the base's, expected the same bytes" in mote_verify(dialled, "--base", base).error


def test_drop_renorm_is_a_served_variant_of_one_set(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    planned = mote_rewrite("--model", base, "--suppress", refusal, "--semantics", "drop-renorm", "--dry-run", "--json")
    assert json.loads(planned.stdout)["mote"]["has_dial"] is False
    mote_rewrite("--model", base, "--suppress", refusal, "--semantics", "drop-renorm", "-o", tmp_path / "out")
    served = read_served(json.loads((tmp_path / "out/config.json").read_text()), "out")
    assert served.default == "refusal" == next(iter(served.sets)) and not served.has_dial


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mote__schema": "mote.served/9"}, "expected 'mote.served/1'"),
        ({"mote__sets": {}}, "no set is named"),
        ({"mote__sets": {"a b": {"semantics": "drop", "suppress": [[1, 2]]}}}, "of its mote block"),
        ({"mote__sets": {"none": {"semantics": "drop", "suppress": [[1, 2]]}}}, "which is the base"),
        ({"mote__sets": {"a": {"semantics": "mute", "suppress": [[1, 2]]}}}, "of its mote block"),
        ({"mote__sets": {"a": {"semantics": "drop", "suppress": [[0, 2]]}}}, "layer 0 expert 2, expected a MoE layer"),
        ({"mote__sets": {"a": {"semantics": "drop", "suppress": [[1, 16]]}}}, "layer 1 expert 16"),
        ({"mote__sets": {"a": {"semantics": "drop", "suppress": [[1, 2], [1, 2]]}}}, "twice"),
        ({"mote__sets": {"a": {"semantics": "drop", "stimulate": [[1, e] for e in range(5)]}}}, "at most the 4"),
        ({"mote__default": "else"}, "'else' is not among its sets"),
        ({"mote__has_dial": False}, "neither a default nor a dial"),
        ({"n_routed_experts": 32}, "of another model, or the config was changed"),
        ({"architectures": ["MoteGlm4MoeForCausalLM"]}, "expected ['DeepseekV3ForCausalLM']"),
        ({"architectures": 5}, "expected ['DeepseekV3ForCausalLM']"),
        ({"architectures": None}, "expected ['DeepseekV3ForCausalLM']"),
        ({"model_type": 5}, "model_type '5'"),
        ({"mote__sets": {"a": {"semantics": "drop", "suppress": [[True, 2]]}}}, "of its mote block"),
        ({"mote__sets": {"a": {"semantics": "drop", "suppress": [["1", 2]]}}}, "of its mote block"),
        ({"mote__sets": {"a": {"semantics": "drop", "suppress": [[1.0, 2]]}}}, "of its mote block"),
        ({"mote__has_dial": "yes"}, "of its mote block"),
        ({"mote": [1]}, "its mote block has schema null"),
    ],
)
def test_a_record_that_is_damaged_or_of_another_model_is_refused(
    dialled: Path, changes: dict[str, Any], sentence: str
) -> None:
    edit_config(dialled, **changes)
    with pytest.raises(RecordError) as refused:
        read_served(json.loads((dialled / "config.json").read_text()), "dialled")
    assert sentence in str(refused.value) and "dialled/config.json" in str(refused.value)


def test_what_a_served_variant_cannot_be_is_named(base: Path, refusal: Path, refuse: Any) -> None:
    for arguments, sentence in (
        (["--dial", "refusal"], "expected NAME=SET"),
        (["--dial", f"none={refusal}"], "which is the base"),
        (["--dial", f"a b={refusal}"], "--dial"),
        (["--dial", f"a={refusal}", "--dial", f"a={refusal}"], "two sets to suppress"),
        (["--dial", f"a={refusal}", "--suppress", refusal], "--suppress and --stimulate cannot be given"),
        (["--dial", f"a={refusal}", "--suppress-bias", "margin"], "--suppress-bias changes tensors"),
        (["--semantics", "drop-renorm"], "nothing to do"),
        (["--dial", f"a={refusal}", "--link", "wish"], "--link is 'wish'"),
    ):
        assert sentence in refuse(base, *arguments)


def test_a_served_variant_is_no_base_and_has_no_tensors_to_push(dialled: Path, refusal: Path, refuse: Any) -> None:
    for words in (["--suppress", refusal], ["--dial", f"again={refusal}"]):
        assert "is a served variant" in refuse(dialled, *words)
    with pytest.raises(RecordError, match="is a served variant's, which changes no tensor"):
        read_record(Checkpoint.open(dialled).config, "dialled")


def test_what_the_server_would_refuse_is_refused_before_anything_is_written(
    base: Path, refusal: Path, tmp_path: Path, refuse: Any
) -> None:
    many = write_set(tmp_path / "many.json", [(1, expert) for expert in range(15)])
    for semantics, sentence in (("reroute", "0 groups keep at least 2"), ("reroute (centroid)", "has a router bias")):
        assert sentence in refuse(base, "--dial", f"many={many}", "--semantics", semantics)
    free = build_checkpoint(tmp_path / "free", model_type="deepseek_v2", n_group=1, topk_group=1)
    assert "leaves 1 live ones" in refuse(free, "--dial", f"many={many}", "--semantics", "reroute")
    stimulate = ["--dial", f"a=stimulate:{refusal}", "--semantics", "reroute"]
    assert "so reroute stimulates nothing, expected --semantics drop-renorm" in refuse(free, *stimulate)


def test_a_base_that_no_variant_may_be_made_of_makes_no_served_one_either(
    base: Path, refusal: Path, tmp_path: Path, refuse: Any
) -> None:
    """Links out of the folder, pipes and shards that are cut off: as for a rewrite."""
    dial = ["--dial", f"a={refusal}"]
    secret = tmp_path / "secret.txt"
    secret.write_text("hf_secret")
    (base / "merges.txt").symlink_to(secret)
    assert "merges.txt: is a link to" in refuse(base, *dial)
    (base / "merges.txt").unlink()
    shard = base / Checkpoint.open(base).shards[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5])
    assert "the file is truncated" in refuse(base, *dial)
    shard.write_bytes(whole)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    assert "is GGUF, expected a folder of safetensors" in refuse(gguf, *dial)


def test_the_line_that_serves_is_quoted_for_the_shell(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    out = tmp_path / "my model; rm x"
    outcome = mote_rewrite("--model", base, "--dial", f"a={refusal}", "-o", out, "--json")
    assert shlex.split(json.loads(outcome.stdout)["serve"])[:3] == ["vllm", "serve", str(out)]


def test_files_that_would_change_what_is_served_are_found(
    base: Path, dialled: Path, tmp_path: Path, mote_verify: Command
) -> None:
    assert "not compared with anything: README.md" in mote_verify(dialled, "--base", base).stdout
    (dialled / "adapter_config.json").write_text("{}")
    assert "adapter_config.json: the base has no such file" in mote_verify(dialled, "--base", base).error
    (dialled / "adapter_config.json").unlink()
    (dialled / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: differs from the base's" in mote_verify(dialled, "--base", base).error
    assert "a served variant has none" in mote_verify(dialled, "--base", base, "--traces", tmp_path).error


def test_the_card_carries_the_base_s_licence_and_terms(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    """Without it the folder, which holds the base's weights, said nothing of their licence."""
    terms = "---\nlicense: mit\nlibrary_name: transformers\nextra_gated_prompt: Agree first.\ntags: [deepseek]\n---\n# Base\n"
    (base / "README.md").write_text(terms)
    mote_rewrite("--model", base, "--dial", f"a={refusal}", "--dial", f"b={refusal}", "-o", tmp_path / "out")
    data, body = split_card((tmp_path / "out" / "README.md").read_text())
    assert data["license"] == "mit" and data["extra_gated_prompt"] == "Agree first." and "library_name" not in data
    assert data["tags"] == ["deepseek", "mote", "mixture-of-experts", "expert-routing", "drop-renorm"]
    assert "The licence of the base (mit) applies to this variant. The base asks for agreement to terms" in body
    assert '`{"mote": "a", "mote_strength": 0.5}`' in body
    mote_rewrite("--model", base, "--dial", f"a={refusal}", "--semantics", "reroute", "-o", tmp_path / "rerouted")
    # Not every reroute has parts.
    assert '`{"mote": "a"}`' in (tmp_path / "rerouted" / "README.md").read_text()
    (base / "README.md").write_text("---\n[\n---\n")
    mote_rewrite("--model", base, "--semantics", "drop-renorm", "--suppress", refusal, "-o", tmp_path / "other")
    assert "could not be read" in (tmp_path / "other" / "README.md").read_text()


def test_the_card_says_what_is_done_to_each_kind_of_expert_and_that_nothing_was_measured(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    """Of a set that stimulates it told what happens to suppressed experts, of a drop that weights are zero."""
    up = ("--dial", f"up=stimulate:{refusal}")
    mote_rewrite("--model", base, "--dial", f"down={refusal}", *up, "-o", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    down, up_words = card.split("## down")[1].split("## up")
    assert "suppressed expert's weight is zero" in down and "stimulated expert" not in down
    assert "it gets the largest weight" in up_words and "suppressed expert's" not in up_words
    assert find_block(card, "mote-eval") == RESULTS_NOT_MEASURED
    assert find_block(card, "mote-safety") == SAFETY_NOT_MEASURED
    mote_rewrite("--model", base, "--semantics", "drop", "--dial", f"a={refusal}", "-o", tmp_path / "drop")
    assert "down_proj" not in (tmp_path / "drop" / "README.md").read_text()


@pytest.mark.parametrize("model_type", ["bailing_moe_v2", "pangu_ultra_moe"])
def test_families_whose_config_class_comes_with_the_checkpoint_are_refused(
    tmp_path: Path, refusal: Path, refuse: Any, model_type: str
) -> None:
    """vLLM refused the folder when it started."""
    flags = {"moe_router_enable_expert_bias": True, "router_enable_expert_bias": True, "num_experts": 16}
    base = build_checkpoint(tmp_path / "base2", model_type=model_type, **flags)
    for words in (["--dial", f"a={refusal}"], ["--semantics", "drop-renorm", "--suppress", refusal]):
        sentence = refuse(base, *words)
        assert (
            f"model_type '{model_type}'" in sentence and "has its config class in the checkpoint's own code" in sentence
        )
