"""GGUF variants as a user makes and verifies them: what is written to the byte, what is refused, what verifying finds."""

import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkpoints import tree_state, write_json, write_set
from commands import Command
from gguf_files import (
    ARCHITECTURE,
    BOOL,
    STRING,
    U32,
    Tensor,
    Value,
    bias_name,
    gguf_bytes,
    imatrix_bytes,
    model_metadata,
    model_tensors,
    outputs_name,
    write_model,
    write_split,
)

from rewriter.checkpoint.gguf.files import GgufSet
from rewriter.edit.tensors import margins
from rewriter.variant.output_folder import OutputFolder

Refuse = Callable[..., str]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with a model in three files."""
    write_split(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """A folder with a model in one file."""
    return write_model(tmp_path / "models" / "tiny-F16.gguf").parent


def tensors_of(path: Path) -> dict[str, bytes]:
    model = GgufSet.open(path)
    return {name: model.read(entry) for name in model.weight_map if (entry := model.find((name,)))}


def metadata_of(path: Path) -> dict[str, bytes]:
    """The pairs of a file as they stand, MoTE's own left out."""
    header, data = GgufSet.open(path).first, path.read_bytes()
    return {key: data[at.start : at.end] for key, at in header.metadata.items() if not key.startswith("mote.")}


def biases(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4")


def test_only_the_planned_values_change(models: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    before, out = tree_state(models), tmp_path / "out"
    base = tensors_of(models)
    result = json.loads(mote_rewrite("--suppress", refusal, "--model", models, "-o", out, "--json").stdout)
    assert tree_state(models) == before
    variant = tensors_of(out)
    assert base.keys() == variant.keys()
    assert {name for name in base if base[name] != variant[name]} == {bias_name(1), bias_name(3)}
    for layer, experts in ((1, [3, 8]), (3, [0])):
        old, new = biases(base[bias_name(layer)]), biases(variant[bias_name(layer)])
        assert np.flatnonzero(old != new).tolist() == experts
        # Not above the margin, and the nearest such number: runtimes.md's formula with the range 1 of a sigmoid.
        wanted = margins(old, experts, 1.0).suppress
        assert all(new[experts] <= wanted) and all(np.nextafter(new[experts], np.float32(np.inf)) > wanted)
    assert result["serve"].startswith("llama-server -m ") and result["serve"].endswith("/tiny-00001-of-00003.gguf")
    assert {path.name for path in out.iterdir()} == {path.name for path in models.iterdir()} | {"README.md"}


def test_headers_grow_by_whole_blocks_and_carry_record_and_fingerprint(
    models: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    out = tmp_path / "out"
    assert mote_rewrite("--suppress", refusal, "--model", models / "tiny-00002-of-00003.gguf", "-o", out).code == 0
    ours, theirs = GgufSet.open(models), GgufSet.open(out)
    record = theirs.config["mote"]
    assert [tensor["name"] for tensor in record["tensors"]] == [bias_name(1), bias_name(3)]
    edited = sorted({ours.weight_map[bias_name(1)], ours.weight_map[bias_name(3)], ours.shards[0]})
    assert record["changed_files"] == edited
    for name in ours.shards:
        grown = theirs.header(name).body_offset - ours.header(name).body_offset
        assert metadata_of_shard(models / name) == metadata_of_shard(out / name)
        if name in edited:
            assert grown > 0 and grown % 4096 == 0
            assert theirs.mark(name) == record["fingerprint"]
            assert (theirs.header(name).text("mote.record") is not None) == (name == ours.shards[0])
            # The body follows unshifted, so that blocks can be shared.
            body = (models / name).read_bytes()[ours.header(name).body_offset :]
            assert len((out / name).read_bytes()) == theirs.header(name).body_offset + len(body)
        else:
            assert (models / name).samefile(out / name)


def metadata_of_shard(path: Path) -> list[str]:
    header = GgufSet.open(path).headers[path.name]
    return [key for key in header.metadata if not key.startswith("mote.")]


def test_metadata_of_the_model_stays_to_the_byte(
    single: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    out = tmp_path / "out"
    assert mote_rewrite("--suppress", refusal, "--model", single, "-o", out).code == 0
    assert metadata_of(single / "tiny-F16.gguf") == metadata_of(out / "tiny-F16.gguf")


@pytest.mark.parametrize("alignment", [8, 64, 16384])
def test_other_alignments(
    alignment: int, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    metadata = model_metadata() | {"general.alignment": Value(U32, alignment)}
    base = tmp_path / "aligned.gguf"
    base.write_bytes(gguf_bytes(metadata, model_tensors(), alignment=alignment))
    assert mote_rewrite("--suppress", refusal, "--model", base, "-o", tmp_path / "out").code == 0
    assert GgufSet.open(tmp_path / "out").first.body_offset % alignment == 0
    assert mote_verify(tmp_path / "out", "--base", base).code == 0


def test_without_a_stamp_only_values_change(
    single: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    out, name = tmp_path / "out", "tiny-F16.gguf"
    assert mote_rewrite("--suppress", refusal, "--model", single, "-o", out, "--no-stamp").code == 0
    old, new = (single / name).read_bytes(), (out / name).read_bytes()
    assert len(old) == len(new)
    header = GgufSet.open(single).first
    changed = [at for at in range(len(old)) if old[at] != new[at]]
    places = [header.tensors[bias_name(layer)].offset + 4 * expert for layer, expert in ((1, 3), (1, 8), (3, 0))]
    assert {at - at % 4 for at in changed} == set(places) and len(changed) <= 12
    assert json.loads((out / "mote.json").read_text())["schema"] == "mote.variant/1"
    assert mote_verify(out, "--base", single).code == 0
    assert mote_verify(out / name, "--base", single / name).code == 0


def test_minus_inf_is_written_only_when_insisted_on(
    single: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    out = tmp_path / "out"
    outcome = mote_rewrite("--suppress", refusal, "--model", single, "-o", out, "--suppress-bias=-inf")
    assert "refused by llama.cpp's --check-tensors and llama-quantize" in outcome.stdout
    assert np.isneginf(biases(tensors_of(out)[bias_name(3)])[0])
    runtimes = json.loads(mote_verify(out, "--base", single, "--json").stdout)["runtimes"]
    assert {row["verdict"] for row in runtimes} == {"not safe"}
    assert "0 * -inf" in next(row["reason"] for row in runtimes if "November 2025" in row["runtime"])


def test_verify_says_for_which_releases_the_values_are_right(
    single: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    assert mote_rewrite("--suppress", refusal, "--model", single, "-o", tmp_path / "out").code == 0
    lines = mote_verify(tmp_path / "out", "--base", single).stdout.splitlines()
    assert sum(line.startswith("    safe     llama.cpp") for line in lines) == 4
    assert not any("vLLM" in line for line in lines)


@pytest.mark.parametrize("dtype", ["F16", "Q8_0", "Q4_K"])
def test_drop_zeroes_the_experts_slice(
    dtype: str, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    base, out = write_model(tmp_path / "base.gguf", expert_dtype=dtype), tmp_path / "out"
    assert mote_rewrite("--suppress", refusal, "--model", base, "-o", out, "--semantics", "drop").code == 0
    old, new = tensors_of(base), tensors_of(out)
    assert {name for name in old if old[name] != new[name]} == {outputs_name(1), outputs_name(3)}
    for layer, experts in ((1, [3, 8]), (3, [0])):
        size = len(old[outputs_name(layer)]) // 16
        for expert in range(16):
            part = slice(expert * size, (expert + 1) * size)
            expected = bytes(size) if expert in experts else old[outputs_name(layer)][part]
            assert new[outputs_name(layer)][part] == expected
    assert mote_verify(out, "--base", base).code == 0


def test_drop_zeroes_the_outputs_own_bias_as_well(tmp_path: Path, mote_rewrite: Command) -> None:
    """gpt-oss adds a bias to each expert's output, and has a bias of logits that can only suppress."""
    metadata = {
        key.replace(ARCHITECTURE, "gpt-oss"): Value(STRING, "gpt-oss") if key == "general.architecture" else value
        for key, value in model_metadata(expert_group_count=None, expert_group_used_count=None).items()
    }
    tensors = model_tensors()
    for layer in range(1, 5):
        tensors[f"blk.{layer}.ffn_gate_inp.bias"] = tensors.pop(bias_name(layer))
        ones = np.ones((16, 5), "<f4")
        tensors[f"blk.{layer}.ffn_down_exps.bias"] = Tensor("F32", ones.shape, ones.tobytes())
    base = tmp_path / "oss.gguf"
    base.write_bytes(gguf_bytes(metadata, tensors))
    chosen = write_set(tmp_path / "one.json", [(2, 7)])
    assert mote_rewrite("--suppress", chosen, "--model", base, "-o", tmp_path / "d", "--semantics", "drop").code == 0
    after = np.frombuffer(tensors_of(tmp_path / "d")["blk.2.ffn_down_exps.bias"], "<f4").reshape(16, 5)
    assert (after[7] == 0).all() and after.sum() == 15 * 5
    assert (
        "no finite margin is certain" in mote_rewrite("--suppress", chosen, "--model", base, "-o", tmp_path / "r").error
    )
    assert "can only be suppressed" in mote_rewrite("--stimulate", chosen, "--model", base, "-o", tmp_path / "s").error


def test_feasibility_reads_the_files_own_keys(tmp_path: Path, mote_rewrite: Command) -> None:
    """Nine experts of three groups: too many where two of four groups are kept, not where the file knows no groups."""
    chosen = write_set(tmp_path / "many.json", [(1, expert) for expert in (0, 1, 2, 4, 5, 6, 8, 9, 10)])
    grouped = write_model(tmp_path / "grouped.gguf")
    sentence = mote_rewrite("--suppress", chosen, "--model", grouped, "-o", tmp_path / "a").error
    assert "1 groups keep at least 2 live experts, but the router keeps 2 of 4 groups" in sentence
    metadata = model_metadata(expert_group_count=None, expert_group_used_count=None)
    old = write_model(tmp_path / "old.gguf", metadata=metadata)
    assert mote_rewrite("--suppress", chosen, "--model", old, "-o", tmp_path / "b").code == 0


def test_stimulate_and_top(
    single: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    chosen = write_set(tmp_path / "english.json", [(2, 5), (2, 6), (4, 1)])
    out = tmp_path / "out"
    arguments = ("--suppress", refusal, "--stimulate", chosen, "--top", 2, "--model", single, "-o", out)
    plan = json.loads(mote_rewrite(*arguments, "--dry-run", "--json").stdout)
    assert not out.exists() and plan["mote"]["changed_files"] == ["tiny-F16.gguf"]
    assert mote_rewrite(*arguments).code == 0
    old, new = tensors_of(single), tensors_of(out)
    raised = biases(new[bias_name(2)])
    wanted = margins(biases(old[bias_name(2)]), [5, 6], 1.0).stimulate
    assert np.flatnonzero(raised >= np.float32(wanted)).tolist() == [5, 6]
    assert old[bias_name(4)] == new[bias_name(4)] and old[bias_name(3)] == new[bias_name(3)]
    assert mote_verify(out, "--base", single).code == 0


@pytest.mark.parametrize("key", [Value(BOOL, False), None])
def test_renormalize_changes_the_files_key(
    key: Value | None, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    base = write_model(tmp_path / "base.gguf", metadata=model_metadata(expert_weights_norm=key))
    arguments = ("--suppress", refusal, "--model", base)
    assert mote_rewrite(*arguments, "-o", tmp_path / "plain").code == 0
    assert not GgufSet.open(tmp_path / "plain").layout.renormalize
    assert mote_rewrite(*arguments, "-o", tmp_path / "normal", "--renormalize").code == 0
    assert GgufSet.open(tmp_path / "normal").layout.renormalize
    for name in ("plain", "normal"):
        assert mote_verify(tmp_path / name, "--base", base).code == 0
    sentence = mote_rewrite(*arguments, "-o", tmp_path / "no", "--renormalize", "--no-stamp").error
    assert "expert_weights_norm stands in the header of base.gguf, which --no-stamp leaves alone" in sentence


def test_a_variant_of_a_variant_keeps_the_first_edit(
    single: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert mote_rewrite("--suppress", refusal, "--model", single, "-o", first).code == 0
    chosen = write_set(tmp_path / "more.json", [(2, 2)])
    assert mote_rewrite("--suppress", chosen, "--model", first, "-o", second).code == 0
    record = GgufSet.open(second).config["mote"]
    assert record["base"]["behavior"] == "refusal" and record["behavior"] == "more"
    assert list(GgufSet.open(second).first.metadata).count("mote.record") == 1
    assert mote_verify(second, "--base", first).code == 0
    # What the first edit keeps out is kept out of the second variant too.
    (tmp_path / "i.gguf").write_bytes(imatrix_bytes({layer: np.full(16, 4.0) for layer in range(1, 5)}, top_k=4))
    sentence = mote_verify(second, "--base", first, "--imatrix", tmp_path / "i.gguf").error
    assert "layer 1 expert 3 was selected 4 times" in sentence


def test_traces_are_of_folders_that_vllm_serves(models: Path, variant: Path, mote_verify: Command) -> None:
    traces = write_traces_of(models.parent / "traces")
    assert "config.json: no such file" in mote_verify(variant, "--base", models, "--traces", traces).error


def test_the_card_carries_the_files_licence_and_how_to_serve(
    single: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    assert mote_rewrite("--suppress", refusal, "--model", single, "-o", tmp_path / "out").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "library_name: gguf" in card
    assert "llama-server -m ./out/tiny-F16.gguf" in card and "vllm" not in card
    # Of a README that names no library it used to become one of transformers.
    (single / "README.md").write_text("---\nlicense: mit\n---\n# Files\n")
    assert mote_rewrite("--suppress", refusal, "--model", single, "-o", tmp_path / "again").code == 0
    card = (tmp_path / "again" / "README.md").read_text()
    assert "library_name: gguf" in card and "transformers" not in card


@pytest.mark.parametrize(
    ("words", "place"), [((), "`mote.record` of the first file's metadata"), (("--no-stamp",), "mote.json")]
)
def test_the_card_says_where_a_long_list_of_experts_stands(
    single: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], place: str,
) -> None:  # fmt: skip
    """There is no config.json of which it could speak."""
    monkeypatch.setattr("rewriter.variant.card.NUM_TABLE_ROWS", 1)
    assert mote_rewrite("--suppress", refusal, "--model", single, "-o", tmp_path / "out", *words).code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"more are listed in {place}." in card and "config.json" not in card


def test_the_output_may_lie_beside_the_file(
    single: Path, refusal: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    base = single / "tiny-F16.gguf"
    assert mote_rewrite("--suppress", refusal, "--model", base, "-o", single / "out").code == 0
    assert mote_verify(single / "out", "--base", base).code == 0
    assert "exists" in mote_rewrite("--suppress", refusal, "--model", base, "-o", single / "out").error
    assert mote_rewrite("--suppress", refusal, "--model", base, "-o", single / "out", "--overwrite").code == 0
    assert "holds the source" in mote_rewrite("--suppress", refusal, "--model", base, "-o", single, "--overwrite").error


def test_the_default_output_is_named_after_the_model(
    models: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert mote_rewrite("--suppress", refusal, "--model", models / "tiny-00003-of-00003.gguf").code == 0
    assert (tmp_path / "tiny-mote-refusal" / "tiny-00001-of-00003.gguf").exists()


@pytest.mark.parametrize("link", ["hardlink", "symlink", "copy"])
def test_other_files_come_over_as_asked(
    link: str, models: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    chosen, out = write_set(tmp_path / "one.json", [(1, 3)]), tmp_path / "out"
    assert mote_rewrite("--suppress", chosen, "--model", models, "-o", out, "--link", link).code == 0
    untouched = [
        path for path in models.iterdir() if path.name not in GgufSet.open(out).config["mote"]["changed_files"]
    ]
    assert untouched
    for path in untouched:
        other = out / path.name
        assert other.is_symlink() == (link == "symlink") and other.samefile(path) == (link != "copy")
    assert mote_verify(out, "--base", models, "--full").code == 0


def damaged_bias(tensor: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    tensors = model_tensors()
    return {name: tensor(value) if name == bias_name(1) else value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (damaged_bias(lambda bias: Tensor("F16", (16,), bias.data[:32])), "blk.1.exp_probs_b.bias is F16, expected one of F32"),
        (damaged_bias(lambda bias: Tensor("F32", (12,), bias.data[:48])), "has shape [12], expected [16]"),
        (damaged_bias(lambda bias: Tensor("F32", (16,), struct.pack("<f", np.nan) + bias.data[4:])), "is nan for expert 0"),
    ],
)  # fmt: skip
def test_biases_that_cannot_be_edited(
    tensors: dict[str, Tensor], said: str, refusal: Path, tmp_path: Path, refuse: Refuse
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "a.gguf").write_bytes(gguf_bytes(model_metadata(), tensors))
    assert said in refuse(tmp_path / "models", "--suppress", refusal)


def test_a_missing_file_is_no_hub_id(refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    for extra in ((), ("--dry-run",)):
        sentence = mote_rewrite("--suppress", refusal, "--model", tmp_path / "none.gguf", *extra).error
        assert sentence == f"{tmp_path / 'none.gguf'}: no such file"


def test_a_full_disk_leaves_nothing(
    models: Path, refusal: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert "the disk is full" in refuse(models, "--suppress", refusal)


def test_two_writers_do_not_mix(models: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    with OutputFolder(tmp_path / "out", models):
        sentence = mote_rewrite("--suppress", refusal, "--model", models, "-o", tmp_path / "out").error
    assert "another run is writing it now" in sentence
    assert mote_rewrite("--suppress", refusal, "--model", models, "-o", tmp_path / "out").code == 0


@pytest.fixture
def variant(models: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> Path:
    """A variant of `models` that shares no file with it."""
    assert mote_rewrite("--suppress", refusal, "--model", models, "-o", tmp_path / "v", "--link", "copy").code == 0
    return tmp_path / "v"


def write_traces_of(folder: Path) -> Path:
    """A trace folder without a response."""
    facts = {"model": "m", "config_sha256": "0" * 64, "moe_layers": [1], "num_experts": 16, "top_k": 4}
    folder.mkdir()
    return write_json(folder / "manifest.json", {"schema": "mote.traces/1", **facts}).parent


def patch_file(path: Path, place: int, data: bytes) -> None:
    with path.open("r+b") as opened:
        opened.seek(place)
        opened.write(data)


def test_verify_finds_a_changed_byte_anywhere(models: Path, variant: Path, mote_verify: Command) -> None:
    model = GgufSet.open(variant)
    for tensor, said in (("blk.2.ffn_down_exps.weight", "differs from the base"), (bias_name(1), "planned bytes")):
        entry = model.find((tensor,))
        assert entry is not None
        path = variant / entry.shard
        old = path.read_bytes()[entry.offset : entry.offset + 1]
        patch_file(path, entry.offset, bytes([old[0] ^ 1]))
        assert said in mote_verify(variant, "--base", models).error
        patch_file(path, entry.offset, old)
    assert mote_verify(variant, "--base", models).code == 0


def test_verify_finds_changed_metadata(models: Path, variant: Path, mote_verify: Command) -> None:
    first = variant / "tiny-00001-of-00003.gguf"
    data = first.read_bytes()
    token = data.index(b"t299")  # a word of the vocabulary
    patch_file(first, token, b"t298")
    assert "its header differs from the base's beyond the edit's mark" in mote_verify(variant, "--base", models).error
    patch_file(first, token, b"t299")
    at = GgufSet.open(variant).first.metadata[f"{ARCHITECTURE}.expert_used_count"].end - 4
    patch_file(first, at, struct.pack("<I", 3))
    assert "expert_used_count is 3, expected 4" in mote_verify(variant, "--base", models).error


def test_verify_finds_another_base(models: Path, variant: Path, tmp_path: Path, mote_verify: Command) -> None:
    write_split(tmp_path / "other", tensors=model_tensors(seed=1))
    assert "was made from another base" in mote_verify(variant, "--base", tmp_path / "other").error


def test_verify_finds_a_foreign_fingerprint_and_a_missing_file(
    models: Path, variant: Path, mote_verify: Command
) -> None:
    record = GgufSet.open(variant).config["mote"]
    name = next(name for name in record["changed_files"] if name != "tiny-00001-of-00003.gguf")
    at = (variant / name).read_bytes().index(record["fingerprint"].encode())
    patch_file(variant / name, at, b"0" * 64)
    assert f"{name}: its header's mote mark is" in mote_verify(variant, "--base", models).error
    (variant / name).unlink()
    assert "no such file" in mote_verify(variant, "--base", models).error


def test_verify_wants_a_variant_and_two_of_a_kind(
    models: Path, base: Path, variant: Path, mote_verify: Command
) -> None:
    assert "has no mote block" in mote_verify(models, "--base", models).error
    assert "is gguf, but the base" in mote_verify(variant, "--base", base).error
    assert "give --base" in mote_verify(variant).error


def test_verify_checks_the_counts_of_an_imatrix(
    models: Path, variant: Path, tmp_path: Path, mote_verify: Command
) -> None:
    counts = {layer: np.full(16, 100.0) for layer in range(1, 5)}
    (tmp_path / "base.gguf").write_bytes(imatrix_bytes(counts, top_k=4))
    for layer, experts in ((1, [3, 8]), (3, [0])):
        counts[layer][experts] = 0
        counts[layer][15] += 100 * len(experts)  # who stepped in
    (tmp_path / "ours.gguf").write_bytes(imatrix_bytes(counts, top_k=4))
    arguments = (variant, "--base", models, "--imatrix", tmp_path / "ours.gguf")
    assert "layer 1 expert 3: 0 of 400 tokens, not given" in mote_verify(*arguments).stdout
    shown = mote_verify(*arguments, "--base-imatrix", tmp_path / "base.gguf")
    assert "layer 3 expert 0: 0 of 400 tokens, 25.00% of tokens" in shown.stdout
    document = json.loads(mote_verify(*arguments, "--base-imatrix", tmp_path / "base.gguf", "--json").stdout)
    assert [(line["layer"], line["expert"], line["count"]) for line in document["selections"]] == [
        (1, 3, 0), (1, 8, 0), (3, 0, 0),
    ]  # fmt: skip
    sentence = mote_verify(variant, "--base", models, "--imatrix", tmp_path / "base.gguf").error
    assert "layer 1 expert 3 was selected 100 times by 400 tokens, expected 0" in sentence
    (tmp_path / "few.gguf").write_bytes(imatrix_bytes({1: [4, 4]}, top_k=2))
    assert "counts 2 experts in layer 1, expected 16" in mote_verify(
        variant, "--base", models, "--imatrix", tmp_path / "few.gguf"
    ).error  # fmt: skip


def test_an_imatrix_says_nothing_of_dropped_experts(
    single: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    out = tmp_path / "out"
    assert mote_rewrite("--suppress", refusal, "--model", single, "-o", out, "--semantics", "drop").code == 0
    (tmp_path / "i.gguf").write_bytes(imatrix_bytes({layer: np.full(16, 4.0) for layer in range(1, 5)}, top_k=4))
    sentence = mote_verify(out, "--base", single, "--imatrix", tmp_path / "i.gguf").error
    assert "a dropped one is still selected" in sentence
