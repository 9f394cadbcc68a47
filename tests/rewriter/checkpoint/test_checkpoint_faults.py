"""Damaged checkpoints through the command: each is refused with one sentence, and nothing is written."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    INDEX,
    Tensor,
    bias_name,
    build_checkpoint,
    down_proj_name,
    read_header,
    rewrite_header,
    shard_name,
    shard_of,
    write_json,
    write_set,
    write_shard,
)
from commands import Command

Refuse = Callable[..., str]


@pytest.fixture
def shard(base: Path) -> Path:
    """The shard that holds layer 1's bias."""
    return shard_of(base, bias_name(1))


def edit_line(shard: Path, name: str, **changes: Any) -> None:
    """Change one tensor's line of a header."""
    rewrite_header(shard, lambda document: document | {name: document[name] | changes})


def test_truncated_shard(base: Path, shard: Path, refusal: Path, refuse: Refuse) -> None:
    size = shard.stat().st_size
    with shard.open("r+b") as opened:
        opened.truncate(size - 5)
    sentence = refuse(base, "--suppress", refusal)
    assert str(shard) in sentence and f"{size - 5} bytes long, expected {size}" in sentence and "truncated" in sentence


def test_trailing_bytes(base: Path, shard: Path, refusal: Path, refuse: Refuse) -> None:
    with shard.open("ab") as opened:
        opened.write(b"extra")
    sentence = refuse(base, "--suppress", refusal)
    assert str(shard) in sentence and "bytes follow the last tensor" in sentence


@pytest.mark.parametrize("size", [0, 7])
def test_shard_too_short_for_a_header(base: Path, shard: Path, refusal: Path, refuse: Refuse, size: int) -> None:
    shard.write_bytes(bytes(size))
    assert f"{shard}: {size} bytes long" in refuse(base, "--suppress", refusal)


@pytest.mark.parametrize("length", [10**6, 2**63, 100_000_001])
def test_header_length_beyond_the_file(base: Path, shard: Path, refusal: Path, refuse: Refuse, length: int) -> None:
    shard.write_bytes(struct.pack("<Q", length) + shard.read_bytes()[8:])
    sentence = refuse(base, "--suppress", refusal)
    assert f"{shard}: says its header has {length} bytes, but the file has {shard.stat().st_size}" in sentence


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"not json at all", "not a safetensors header"),
        (b"\xff\xfe{}", "not a safetensors header"),
        (b"[1, 2]", "a JSON list, expected an object"),
        (b"[" * 100_000, "not a safetensors header"),
        (b'{"a": 1, "a": 2}', '"a" stands twice'),
        (b'{"a": 1}', "expected dtype, shape and data_offsets"),
        (b'{"__metadata__": "pt"}', "expected an object of strings"),
        (b'{"__metadata__": {"a": 1}}', "expected an object of strings"),
        (b'{"__metadata__": null}', "expected an object of strings"),
    ],
)
def test_header_that_is_no_header(
    base: Path, shard: Path, refusal: Path, refuse: Refuse, header: bytes, expected: str
) -> None:
    rewrite_header(shard, lambda document: header)
    sentence = refuse(base, "--suppress", refusal)
    assert str(shard) in sentence and expected in sentence


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "F31"},
        {"dtype": ["F32"]},
        {"shape": ["sixteen"]},
        {"shape": [16.0]},
        {"shape": 16},
        {"shape": [-16]},
        {"shape": [True, 16]},
        {"data_offsets": [0]},
        {"data_offsets": ["0", "64"]},
        {"data_offsets": None},
    ],
)
def test_header_line_of_wrong_types(
    base: Path, shard: Path, refusal: Path, refuse: Refuse, changes: dict[str, Any]
) -> None:
    edit_line(shard, bias_name(1), **changes)
    sentence = refuse(base, "--suppress", refusal)
    assert f"{shard}: the header's line for {bias_name(1)} is " in sentence


def test_shape_and_offsets_disagree(base: Path, shard: Path, refusal: Path, refuse: Refuse) -> None:
    edit_line(shard, bias_name(1), shape=[17])
    assert "F32 [17], which needs 68 bytes, but its data_offsets are [" in refuse(base, "--suppress", refusal)


def test_overlapping_offsets(base: Path, shard: Path, refusal: Path, refuse: Refuse) -> None:
    begin, end = read_header(shard)[0][bias_name(1)]["data_offsets"]
    edit_line(shard, bias_name(1), data_offsets=[begin - 4, end - 4])
    sentence = refuse(base, "--suppress", refusal)
    assert str(shard) in sentence and "overlaps the tensor before it" in sentence


def test_hole_between_tensors(base: Path, shard: Path, refusal: Path, refuse: Refuse) -> None:
    begin, end = read_header(shard)[0][bias_name(1)]["data_offsets"]
    edit_line(shard, bias_name(1), data_offsets=[begin + 4, end + 4])
    assert "leaves a hole before it" in refuse(base, "--suppress", refusal)


def test_offsets_behind_the_end(base: Path, shard: Path, refusal: Path, refuse: Refuse) -> None:
    begin, end = read_header(shard)[0][bias_name(1)]["data_offsets"]
    edit_line(shard, bias_name(1), data_offsets=[begin + 10**9, end + 10**9])
    sentence = refuse(base, "--suppress", refusal)
    assert str(shard) in sentence and "leaves a hole before it" in sentence


def test_index_names_a_missing_shard(base: Path, refusal: Path, refuse: Refuse) -> None:
    missing = base / shard_name(3)
    missing.unlink()
    assert f"{missing}: no such file, but {INDEX} names it" in refuse(base, "--suppress", refusal)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/inside.safetensors",
        "..",
        "",
        "a\\b.safetensors",
        "a\0b.safetensors",
        "config.json",
        "README.md",
        7,
        None,
        ["list"],
        {"an": "object"},
    ],
)
def test_index_names_what_is_no_shard(base: Path, refusal: Path, refuse: Refuse, name: Any) -> None:
    write_shard(base.parent / "outside.safetensors", {"a": Tensor("F32", (1,), bytes(4))})
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["a"] = name
    write_json(base / INDEX, index)
    sentence = refuse(base, "--suppress", refusal)
    assert f"{base / INDEX}: names the shard {name!r}" in sentence


def test_shard_name_too_long_for_the_filesystem(base: Path, refusal: Path, refuse: Refuse) -> None:
    index = json.loads((base / INDEX).read_text())
    index["weight_map"]["a"] = "n" * 300 + ".safetensors"
    write_json(base / INDEX, index)
    assert "cannot be read (File name too long)" in refuse(base, "--suppress", refusal)


def test_shard_is_a_folder(base: Path, shard: Path, refusal: Path, refuse: Refuse) -> None:
    shard.unlink()
    shard.mkdir()
    assert f"{shard}: is not a regular file" in refuse(base, "--suppress", refusal)


def test_shard_is_a_link_to_itself(base: Path, shard: Path, refusal: Path, refuse: Refuse) -> None:
    shard.unlink()
    shard.symlink_to(shard.name)
    assert f"{shard}: cannot be read (Too many levels of symbolic links)" in refuse(base, "--suppress", refusal)


@pytest.mark.parametrize("text", ["{", "[]", '"weight_map"', '{"metadata": {}}', '{"weight_map": {}}', "\ufeff{}"])
def test_index_that_is_no_index(base: Path, refusal: Path, refuse: Refuse, text: str) -> None:
    (base / INDEX).write_text(text)
    assert str(base / INDEX) in refuse(base, "--suppress", refusal)


def test_index_names_a_tensor_that_its_shard_lacks(base: Path, shard: Path, refusal: Path, refuse: Refuse) -> None:
    rewrite_header(
        shard, lambda document: {key + ("x" if key == bias_name(1) else ""): value for key, value in document.items()}
    )
    assert f"{shard}: has no tensor {bias_name(1)}, but {INDEX} says it is there" in refuse(base, "--suppress", refusal)


def test_missing_bias(base: Path, refusal: Path, refuse: Refuse) -> None:
    index = json.loads((base / INDEX).read_text())
    del index["weight_map"][bias_name(1)]
    write_json(base / INDEX, index)
    sentence = refuse(base, "--suppress", refusal)
    assert f"{base}: has no tensor {bias_name(1)}" in sentence and "expected the selection bias of layer 1" in sentence


@pytest.mark.parametrize("dtype", ["I32", "U32"])
def test_bias_of_wrong_dtype(base: Path, shard: Path, refusal: Path, refuse: Refuse, dtype: str) -> None:
    edit_line(shard, bias_name(1), dtype=dtype)
    assert f"{bias_name(1)} is {dtype}, expected one of F32, F16, BF16, F64" in refuse(base, "--suppress", refusal)


@pytest.mark.parametrize("shape", [[4, 4], [16, 1], [2, 8]])
def test_bias_of_wrong_shape(base: Path, shard: Path, refusal: Path, refuse: Refuse, shape: list[int]) -> None:
    edit_line(shard, bias_name(1), shape=shape)
    assert f"{bias_name(1)} has shape {shape}, expected [16]" in refuse(base, "--suppress", refusal)


@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf")])
def test_bias_that_is_no_number(
    base: Path, shard: Path, refusal: Path, refuse: Refuse, value: float, shown: str
) -> None:
    document, body = read_header(shard)
    data = bytearray(shard.read_bytes())
    struct.pack_into("<f", data, body + document[bias_name(1)]["data_offsets"][0] + 4 * 5, value)
    shard.write_bytes(data)
    assert f"{bias_name(1)} is {shown} for expert 5, expected a finite number" in refuse(base, "--suppress", refusal)


def test_damage_in_a_shard_without_planned_tensors_is_named(base: Path, tmp_path: Path, refuse: Refuse) -> None:
    """What is only copied is part of what the variant says is complete."""
    (base / shard_name(3)).write_bytes(b"damaged")
    chosen = write_set(tmp_path / "one.json", [(1, 3)])
    assert f"{base / shard_name(3)}: 7 bytes long, too short" in refuse(base, "--suppress", chosen)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_config_that_is_no_config(base: Path, refusal: Path, refuse: Refuse, text: str) -> None:
    (base / "config.json").write_text(text)
    assert str(base / "config.json") in refuse(base, "--suppress", refusal)


def test_config_in_another_encoding(base: Path, refusal: Path, refuse: Refuse) -> None:
    (base / "config.json").write_bytes('{"näme": 1}'.encode("latin-1"))
    assert f"{base / 'config.json'}: not UTF-8 text (byte 3)" in refuse(base, "--suppress", refusal)


def test_config_missing(base: Path, refusal: Path, refuse: Refuse) -> None:
    (base / "config.json").unlink()
    assert f"{base / 'config.json'}: no such file" in refuse(base, "--suppress", refusal)


def test_no_safetensors(base: Path, refusal: Path, refuse: Refuse) -> None:
    (base / INDEX).unlink()
    assert "save_pretrained writes safetensors of other weights" in refuse(base, "--suppress", refusal)


def test_no_such_model(tmp_path: Path, refusal: Path, mote_rewrite: Command) -> None:
    sentence = mote_rewrite("--model", tmp_path / "nowhere", "--suppress", refusal).error
    assert str(tmp_path / "nowhere") in sentence


@pytest.mark.parametrize("model_type", ["llama", None, 7])
def test_unknown_family(tmp_path: Path, refusal: Path, refuse: Refuse, model_type: Any) -> None:
    base = build_checkpoint(tmp_path / "other", model_type=model_type)
    sentence = refuse(base, "--suppress", refusal)
    assert f"model_type {json.dumps(model_type)} has no row" in sentence
    assert "tensors are named here as in row deepseek_v3" in sentence
    assert "rewriter/families/biased.py" in sentence


@pytest.mark.parametrize("value", [0, -1, "16", 16.0, True])
def test_config_number_of_wrong_kind(tmp_path: Path, refusal: Path, refuse: Refuse, value: Any) -> None:
    base = build_checkpoint(tmp_path / "other")
    config = json.loads((base / "config.json").read_text())
    write_json(base / "config.json", config | {"n_routed_experts": value})
    assert f"n_routed_experts is {json.dumps(value)}, expected a positive whole number" in refuse(
        base, "--suppress", refusal
    )


def test_drop_with_a_missing_output_tensor(base: Path, refusal: Path, refuse: Refuse) -> None:
    index = json.loads((base / INDEX).read_text())
    del index["weight_map"][down_proj_name(1, 8)]
    write_json(base / INDEX, index)
    sentence = refuse(base, "--suppress", refusal, "--semantics", "drop")
    assert down_proj_name(1, 8) in sentence and "expected the output of expert 8" in sentence


def test_drop_of_a_packed_dtype(base: Path, refusal: Path, refuse: Refuse) -> None:
    """Without scales beside them, whole numbers are of no format whose zero is known."""
    edit_line(shard_of(base, down_proj_name(1, 3)), down_proj_name(1, 3), dtype="I8")
    sentence = refuse(base, "--suppress", refusal, "--semantics", "drop")
    assert f"{down_proj_name(1, 3)} is stored as .weight I8, a quantised format without a row" in sentence


@pytest.mark.parametrize("name", ["config.json", INDEX, "shard"])
def test_a_git_lfs_pointer_is_called_so(name: str, base: Path, refusal: Path, refuse: Refuse) -> None:
    """A clone without git-lfs has small texts in place of its large files."""
    path = shard_of(base, bias_name(1)) if name == "shard" else base / name
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4302373176\n")
    sentence = refuse(base, "--suppress", refusal)
    assert f"{path}: is a Git LFS pointer" in sentence and sentence.endswith("run git lfs pull")


@pytest.mark.parametrize("name", ["config.json", INDEX, "shard"])
def test_a_pipe_or_a_folder_in_a_files_place_is_not_waited_for(
    name: str, base: Path, refusal: Path, mote_rewrite: Command, tmp_path: Path
) -> None:
    path = shard_of(base, bias_name(1)) if name == "shard" else base / name
    path.unlink()
    os.mkfifo(path)
    assert (
        f"{path}: is not a regular file"
        in mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").error
    )
    path.unlink()
    path.mkdir()
    assert (
        f"{path}: is not a regular file"
        in mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").error
    )
