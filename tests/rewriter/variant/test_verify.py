"""mote-verify: what it proves without reading, what it reads, and that no tampering gets past it."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    INDEX,
    bias_name,
    build_checkpoint,
    down_proj_name,
    read_header,
    rewrite_header,
    shard_name,
    shard_of,
    tree_state,
    write_json,
    write_set,
)
from commands import Command


@pytest.fixture
def variant(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> Path:
    """A variant of `base` by copies, so that it can be tampered with."""
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out", "--link", "copy").code == 0
    return tmp_path / "out"


def flip(shard: Path, tensor: str, byte: int = 0) -> None:
    """Flip one bit of a tensor."""
    document, body = read_header(shard)
    at = body + document[tensor]["data_offsets"][0] + byte
    with shard.open("r+b") as opened:
        opened.seek(at)
        old = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([old ^ 1]))


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Replace a JSON file by what `change` makes of it."""
    write_json(path, change(json.loads(path.read_text())))


@pytest.mark.parametrize("full", [[], ["--full"]])
def test_untouched_variant(base: Path, variant: Path, mote_verify: Command, full: list[str]) -> None:
    before = tree_state(base), tree_state(variant)
    outcome = mote_verify(variant, "--base", base, *full)
    assert outcome.code == 0 and outcome.stdout.startswith(f"verified: {variant} is {base} but for 2 planned patches")
    assert "vLLM" in outcome.stdout and "llama.cpp" in outcome.stdout
    assert (tree_state(base), tree_state(variant)) == before


def test_hardlinks_cost_nothing_and_full_reads_them(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--link", "hardlink").code == 0
    sizes = {path.name: path.stat().st_size for path in base.glob("*.safetensors")}
    edited = {shard_of(base, bias_name(layer)).name for layer in (1, 3)}
    linked_bytes = sum(size for name, size in sizes.items() if name not in edited)
    quick = json.loads(mote_verify(out, "--base", base, "--json").stdout)
    assert quick["shards"]["same file"] == len(sizes) - len(edited)
    assert quick["bytes_by_inode"] == linked_bytes
    assert quick["bytes_read"] + quick["bytes_by_extent"] <= sum(sizes[name] for name in edited)
    full = json.loads(mote_verify(out, "--base", base, "--json", "--full").stdout)
    assert full["shards"] == {"read": len(sizes)} and full["bytes_by_inode"] == full["bytes_by_extent"] == 0
    marked = sum(read_header(base / name)[1] for name in edited)  # compared as JSON
    assert full["bytes_read"] == sum(sizes.values()) - marked - 2 * 64  # the two planned tensors are hashed


def test_symlinks_count_as_the_same_file(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--link", "symlink").code == 0
    assert json.loads(mote_verify(out, "--base", base, "--json").stdout)["shards"]["same file"] == 2


@pytest.mark.parametrize("full", [[], ["--full"]])
@pytest.mark.parametrize(
    "tensor", [down_proj_name(1, 3), down_proj_name(4, 15), "model.embed_tokens.weight", bias_name(2)]
)
def test_flipped_bit_outside_the_plan(
    base: Path, variant: Path, mote_verify: Command, tensor: str, full: list[str]
) -> None:
    """In an edited shard or in a copied one, the sentence names the tensor and the byte."""
    shard = shard_of(variant, tensor)
    flip(shard, tensor, byte=5)
    sentence = mote_verify(variant, "--base", base, *full).error
    assert f"{shard}: byte 5 of {tensor} differs from the base" in sentence


@pytest.mark.parametrize("byte", [0, 4 * 3, 63])
def test_flipped_bit_in_planned_bytes(base: Path, variant: Path, mote_verify: Command, byte: int) -> None:
    flip(shard_of(variant, bias_name(1)), bias_name(1), byte)
    assert f"{bias_name(1)} does not hold the planned bytes" in mote_verify(variant, "--base", base).error


def test_every_byte_of_every_shard_is_covered(base: Path, variant: Path, mote_verify: Command) -> None:
    """A flip anywhere, headers included, is found: tried at places spread over all shards."""
    for shard in sorted(variant.glob("*.safetensors")):
        data = shard.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 12)):
            if data[at : at + 1] == b" ":
                continue  # the padding behind a header's JSON means nothing
            shard.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            assert mote_verify(variant, "--base", base).code == 1, (shard.name, at)
        shard.write_bytes(data)
    assert mote_verify(variant, "--base", base).code == 0


@pytest.mark.parametrize("change", [lambda size: size - 1, lambda size: size + 1, lambda size: 0])
def test_changed_length(base: Path, variant: Path, mote_verify: Command, change: Callable[[int], int]) -> None:
    shard = variant / shard_name(3)
    with shard.open("r+b") as opened:
        opened.truncate(change(shard.stat().st_size))
    assert str(shard) in mote_verify(variant, "--base", base).error


def test_missing_shard(base: Path, variant: Path, mote_verify: Command) -> None:
    (variant / shard_name(3)).unlink()
    assert f"{variant / shard_name(3)}: no such file" in mote_verify(variant, "--base", base).error


@pytest.mark.parametrize("number", [0, 3])
def test_changed_header(base: Path, variant: Path, mote_verify: Command, number: int) -> None:
    shard = variant / shard_name(number)
    rewrite_header(shard, lambda document: document | {"__metadata__": {"format": "pt", "mote": "other"}})
    assert "its header's mote mark is 'other'" in mote_verify(variant, "--base", base).error
    rewrite_header(shard, lambda document: document | {"__metadata__": {"format": "pt", "author": "someone"}})
    assert "its header differs from the base's" in mote_verify(variant, "--base", base).error


def test_renamed_tensor(base: Path, variant: Path, mote_verify: Command) -> None:
    shard, name = shard_of(variant, down_proj_name(4, 15)), down_proj_name(4, 15)
    rewrite_header(shard, lambda document: {key + ("x" if key == name else ""): line for key, line in document.items()})
    assert f"{shard}: {name} is missing" in mote_verify(variant, "--base", base).error


def test_changed_dtype_of_the_same_size(base: Path, variant: Path, mote_verify: Command) -> None:
    shard, name = shard_of(variant, down_proj_name(4, 15)), down_proj_name(4, 15)
    rewrite_header(shard, lambda document: document | {name: document[name] | {"dtype": "F8_E5M2"}})
    assert f"{name} is F8_E5M2 [8, 7], expected F8_E4M3 [8, 7]" in mote_verify(variant, "--base", base).error


def test_changed_index(base: Path, variant: Path, mote_verify: Command) -> None:
    def drop_one(index: Any) -> Any:
        del index["weight_map"][down_proj_name(4, 15)]
        return index

    edit_json(variant / INDEX, drop_one)
    assert f"its index differs from the base's, for example for {down_proj_name(4, 15)}" in (
        mote_verify(variant, "--base", base).error
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda config: config | {"routed_scaling_factor": 1.0}, "routed_scaling_factor is 1.0, expected None"),
        (lambda config: config | {"norm_topk_prob": False}, "norm_topk_prob is False, expected True"),
        (lambda config: {k: v for k, v in config.items() if k != "topk_method"}, "topk_method is None"),
        (lambda config: {k: v for k, v in config.items() if k != "mote"}, "has no mote block"),
        (lambda config: config | {"mote": "yes"}, "its mote block has schema null"),
        (
            lambda config: config | {"mote": config["mote"] | {"schema": "mote.variant/9"}},
            'schema "mote.variant/9", expected',
        ),
        (lambda config: config | {"mote": config["mote"] | {"experts": []}}, "mote block"),
        (lambda config: config | {"mote": config["mote"] | {"tensors": []}}, "tensors of its mote block"),
        (lambda config: config | {"mote": config["mote"] | {"tensors": 3}}, "tensors of its mote block"),
        (
            lambda config: config | {"mote": config["mote"] | {"tensors": [3]}},
            "tensors.0 of its mote block is 3, expected an object",
        ),
        (lambda config: config | {"mote": config["mote"] | {"experts": 3}}, "mote block"),
        (lambda config: config | {"mote": config["mote"] | {"semantics": "drop"}}, "mote block"),
        (lambda config: config | {"mote": config["mote"] | {"fingerprint": ""}}, "fingerprint of its mote block"),
        (lambda config: config | {"mote": {"schema": "mote.variant/1"}}, "tool_version of its mote block is missing"),
    ],
)
def test_changed_config(
    base: Path, variant: Path, mote_verify: Command, change: Callable[[Any], Any], expected: str
) -> None:
    edit_json(variant / "config.json", change)
    assert expected in mote_verify(variant, "--base", base).error


def test_another_base_is_named_by_its_first_tensor(variant: Path, tmp_path: Path, mote_verify: Command) -> None:
    other = build_checkpoint(tmp_path / "other", seed=1)
    sentence = mote_verify(variant, "--base", other).error
    assert f"was made from another base: {bias_name(1)} had hash" in sentence


def test_base_that_is_another_model(variant: Path, tmp_path: Path, mote_verify: Command) -> None:
    other = build_checkpoint(tmp_path / "other", num_hidden_layers=2)
    assert "layer 3 is not one of the model's MoE layers" in mote_verify(variant, "--base", other).error


def test_further_weights(base: Path, variant: Path, mote_verify: Command) -> None:
    """Runtimes that load whatever they find would take the unedited tensors from them."""
    shutil.copy(base / shard_name(0), variant / "model-old.safetensors")
    assert "model-old.safetensors: holds weights that the index does not name" in (
        mote_verify(variant, "--base", base).error
    )


def test_changed_or_missing_other_file(base: Path, variant: Path, mote_verify: Command) -> None:
    (variant / "modeling_custom.py").write_text("import os\n")
    assert "modeling_custom.py: differs from the base's" in mote_verify(variant, "--base", base).error
    (variant / "modeling_custom.py").unlink()
    assert "modeling_custom.py: no such file, but the base has it" in mote_verify(variant, "--base", base).error


def test_edited_shard_that_is_the_base_s_own(base: Path, variant: Path, mote_verify: Command) -> None:
    shard = shard_of(variant, bias_name(1))
    shard.unlink()
    os.link(base / shard.name, shard)
    assert f"{shard}: is the base's own file" in mote_verify(variant, "--base", base).error


def test_no_variant(base: Path, tmp_path: Path, mote_verify: Command) -> None:
    assert "has no mote block" in mote_verify(base, "--base", base).error
    assert "no such folder" in mote_verify(tmp_path / "nowhere", "--base", base).error


def test_local_base_must_be_given(variant: Path, mote_verify: Command) -> None:
    sentence = mote_verify(variant).error
    assert "names no base on the Hub (its base was the local folder 'tiny'); give --base" in sentence


def test_variant_of_a_variant(
    base: Path, variant: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    """Edits add up, and each step is proven against the step before."""
    second, more = tmp_path / "second", write_set(tmp_path / "more.json", [(1, 4), (2, 2)])
    assert mote_rewrite("--model", variant, "--suppress", more, "-o", second).code == 0
    assert mote_verify(second, "--base", variant).code == 0
    assert mote_verify(second, "--base", base).code == 1
    block = json.loads((second / "config.json").read_text())["mote"]
    assert block["base"]["behavior"] == "refusal" and block["base_folder"] == "out"


def test_verdict_on_a_variant_of_a_variant_counts_the_first_edit(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", first).code == 0

    def verdict(*pairs: tuple[int, int], action: str = "--suppress") -> str:
        more = write_set(tmp_path / "more.json", list(pairs))
        options = ("-o", second, "--suppress-bias", "margin", "--overwrite")
        assert mote_rewrite("--model", first, action, more, *options).code == 0
        rows = json.loads(mote_verify(second, "--base", first, "--json").stdout)["runtimes"]
        return next(row["verdict"] for row in rows if row["runtime"] == "llama.cpp (after conversion)")

    assert verdict((2, 2)) == "not safe"
    # The last word counts: the experts that were at -inf have finite biases now.
    assert verdict((1, 3), (1, 8), (3, 0)) == "safe"


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "chat_template.jinja", "modeling_deepseek.py", "additional/config.json"]
)
@pytest.mark.parametrize("full", [[], ["--full"]])
def test_added_file_that_a_runtime_would_read(
    base: Path, variant: Path, mote_verify: Command, name: str, full: list[str]
) -> None:
    (variant / name).parent.mkdir(exist_ok=True)
    (variant / name).write_text("{}")
    assert f"{variant / name}: the base has no such file" in mote_verify(variant, "--base", base, *full).error


@pytest.mark.parametrize("name", [".hidden.safetensors", "sub/model.safetensors", ".cache/pytorch_model.bin"])
def test_hidden_and_nested_weights(base: Path, variant: Path, mote_verify: Command, name: str) -> None:
    (variant / name).parent.mkdir(exist_ok=True)
    (variant / name).write_bytes(b"x")
    assert f"{variant / name}: holds weights" in mote_verify(variant, "--base", base).error


def test_linked_folder_and_unreadable_folder(
    base: Path, variant: Path, tmp_path: Path, mote_verify: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (variant / "linked").symlink_to(tmp_path)
    assert f"{variant / 'linked'}: is a link to a folder" in mote_verify(variant, "--base", base).error
    (variant / "linked").unlink()
    (variant / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert f"{variant / 'closed'}: cannot be read" in mote_verify(variant, "--base", base).error


def test_what_is_compared_with_nothing_is_named(base: Path, variant: Path, mote_verify: Command) -> None:
    (variant / ".gitattributes").write_text("x")
    (variant / "mote-eval.md").write_text("x")
    (variant / "README.md").write_text("edited by hand")
    expected = [".gitattributes", "README.md", "mote-eval.md"]
    told = ["tool_version of the mote block", "base_folder of the mote block", "expert_sets of the mote block"]
    assert json.loads(mote_verify(variant, "--base", base, "--json").stdout)["not_compared"] == expected + told
    assert "not compared with anything: .gitattributes, README.md, mote-eval.md, tool_version of" in (
        mote_verify(variant, "--base", base).stdout
    )


@pytest.mark.parametrize(
    "change",
    [
        {"behavior": "kindness"},
        {"renormalization": "nothing to see"},
        {"suppress_bias": -20.0},
        {"expert_sets": []},
    ],
)
def test_texts_of_the_record_follow_from_it(
    base: Path, variant: Path, mote_verify: Command, change: dict[str, Any]
) -> None:
    edit_json(variant / "config.json", lambda config: config | {"mote": config["mote"] | change})
    outcome = mote_verify(variant, "--base", base)
    if "expert_sets" in change:  # which sets the experts came from is told, not proven
        assert outcome.code == 0 and "expert_sets of the mote block" not in outcome.stdout
    else:
        assert "of its mote block is not what its experts come to" in outcome.error


def test_runtimes_that_a_variant_is_not_safe_on(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    verdicts = {}
    for name in ("-inf", "margin"):
        out = tmp_path / name.strip("-")
        assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--suppress-bias", name).code == 0
        rows = json.loads(mote_verify(out, "--base", base, "--json").stdout)["runtimes"]
        verdicts[name] = {row["runtime"]: row["verdict"] for row in rows}
    assert (
        verdicts["-inf"]["llama.cpp (after conversion)"] == "not safe"
        and verdicts["margin"]["llama.cpp (after conversion)"] == "safe"
    )
    assert verdicts["-inf"]["vLLM (CPU build)"] == verdicts["margin"]["vLLM (CUDA)"] == "safe"
