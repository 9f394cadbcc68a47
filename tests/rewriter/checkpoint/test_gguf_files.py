"""GGUF models of one file or of a split: found by any of their files, and each way in which a split can be wrong."""

import os
import shutil
from pathlib import Path

import pytest
from gguf_files import (
    ARCHITECTURE,
    BOOL,
    STRING,
    U16,
    U32,
    Tensor,
    Value,
    bias_name,
    gguf_bytes,
    model_metadata,
    model_tensors,
    outputs_name,
    split_name,
    write_model,
    write_split,
)

from rewriter.checkpoint.gguf.files import GgufSet, is_gguf
from rewriter.errors import CheckpointError, UnknownFamilyError


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        GgufSet.open(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_file_of_a_split_stands_for_it(tmp_path):
    paths = write_split(tmp_path / "set")
    tensors = model_tensors()
    for path in [*paths, tmp_path / "set"]:
        model = GgufSet.open(path)
        assert model.shards == tuple(part.name for part in paths)
        assert model.title == "tiny"
        assert model.weight_map.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert model.read(model.find((name,))) == tensor.data
    assert GgufSet.open(paths[1]).layout.moe_layers == (1, 2, 3, 4)


def test_layout_comes_from_the_files_own_keys(tmp_path):
    layout = GgufSet.open(write_model(tmp_path / "a.gguf")).layout
    assert (layout.num_experts, layout.top_k, layout.num_groups, layout.groups_kept) == (16, 4, 4, 2)
    assert layout.renormalize and layout.has_bias and layout.score_range == 1.0
    assert layout.bias_names(3) == (bias_name(3),)
    assert layout.expert_output_names(3, 0) == ((outputs_name(3),),)


def test_a_file_without_group_keys_routes_ungrouped(tmp_path):
    metadata = model_metadata(expert_group_count=None, expert_group_used_count=None)
    layout = GgufSet.open(write_model(tmp_path / "old.gguf", metadata=metadata)).layout
    assert (layout.num_groups, layout.groups_kept) == (1, 1)


def test_scores_without_bound_are_told_apart_by_the_gating_key(tmp_path):
    for number, score_range in ((1, 1.0), (2, 1.0), (3, None), (4, None)):
        metadata = model_metadata(expert_gating_func=Value(U32, number))
        assert GgufSet.open(write_model(tmp_path / "a.gguf", metadata=metadata)).layout.score_range == score_range


def test_layers_that_predict_further_tokens_are_left_out(tmp_path):
    metadata = model_metadata(nextn_predict_layers=Value(U32, 1))
    assert GgufSet.open(write_model(tmp_path / "a.gguf", metadata=metadata)).layout.moe_layers == (1, 2, 3)


def test_a_model_without_biases_has_none(tmp_path):
    tensors = {name: tensor for name, tensor in model_tensors().items() if "exp_probs_b" not in name}
    path = tmp_path / "v2.gguf"
    path.write_bytes(gguf_bytes(model_metadata(), tensors))
    assert not GgufSet.open(path).layout.has_bias


def test_an_architecture_without_a_row_is_an_error_that_says_how_to_add_one(tmp_path):
    metadata = model_metadata() | {"general.architecture": Value(STRING, "quux"), "quux.block_count": Value(U32, 5)}
    with pytest.raises(UnknownFamilyError, match="'quux' has no row .* rewriter/families/gguf.py"):
        _ = GgufSet.open(write_model(tmp_path / "a.gguf", metadata=metadata)).layout


@pytest.mark.parametrize("key", ["expert_count", "expert_used_count", "block_count"])
def test_a_missing_key_is_named(tmp_path, key):
    path = write_model(tmp_path / "a.gguf", metadata=model_metadata(**{key: None}))
    with pytest.raises(CheckpointError, match=key):
        _ = GgufSet.open(path).layout


def test_a_missing_file_of_a_split_is_named(tmp_path):
    paths = write_split(tmp_path)
    paths[2].unlink()
    assert refused(paths[0]).startswith(f"{paths[2]}: no such file, but {paths[0].name} is of the same split")


def test_a_foreign_file_of_a_split_is_named(tmp_path):
    paths = write_split(tmp_path / "ours")
    shutil.copy(write_split(tmp_path / "theirs", count=4)[1], paths[1])
    assert f"{paths[1]}: says it is file 1 (from 0) of 4" in refused(paths[0])


def test_a_file_that_is_numbered_twice_is_named(tmp_path):
    paths = write_split(tmp_path)
    shutil.copy(paths[1], paths[2])
    assert f"{paths[2]}: says it is file 1 (from 0) of 3" in refused(paths[0])


def test_a_renamed_file_of_a_split_is_refused(tmp_path):
    paths = write_split(tmp_path)
    assert "expected a name that ends in -00002-of-00003.gguf" in refused(paths[1].rename(tmp_path / "model.gguf"))


def test_tensors_in_two_files_are_refused(tmp_path):
    paths = write_split(tmp_path)
    names = {"split.no": Value(U16, 1), "split.count": Value(U16, 3), "split.tensors.count": Value(5, 99)}
    paths[1].write_bytes(gguf_bytes(names, {"token_embd.weight": Tensor("F32", (8,), bytes(32))}))
    total = len(model_tensors())
    assert f"says it is file 1 (from 0) of 3 with 99 tensors in all, expected file 1 of 3 with {total}" in refused(
        paths[0]
    )
    names["split.tensors.count"] = Value(5, total)
    paths[1].write_bytes(gguf_bytes(names, {"token_embd.weight": Tensor("F32", (8,), bytes(32))}))
    assert f"{paths[1]}: has the tensor token_embd.weight, but so has {paths[0].name}" in refused(paths[0])
    paths[1].write_bytes(gguf_bytes(names, {}))
    assert f"says its split has {total} tensors, but the files hold" in refused(paths[0])


def test_a_merged_file_keeps_a_split_count_of_zero(tmp_path):
    metadata = model_metadata() | {"split.count": Value(U16, 0), "split.no": Value(U16, 0)}
    path = write_model(tmp_path / "merged.gguf", metadata=metadata)
    assert GgufSet.open(path).shards == ("merged.gguf",)


def test_a_folder_must_hold_one_model(tmp_path):
    assert "holds 0 GGUF models (none), expected one" in refused(tmp_path)
    write_split(tmp_path, "a")
    write_model(tmp_path / "mmproj-a.gguf")  # an image projector is no model
    assert GgufSet.open(tmp_path).shards[0] == split_name("a", 0, 3)
    write_model(tmp_path / "b.gguf")
    assert f"holds 2 GGUF models ({split_name('a', 0, 3)}, b.gguf), expected one; name a file" in refused(tmp_path)


def test_a_folder_with_safetensors_is_no_gguf(tmp_path):
    write_model(tmp_path / "a.gguf")
    assert is_gguf(tmp_path) and is_gguf(tmp_path / "a.gguf")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert not is_gguf(tmp_path)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes({"x": Value(BOOL, True)}, {}))
    with pytest.raises(CheckpointError, match=f"{path}: has no general.architecture"):
        _ = GgufSet.open(path).config


@pytest.mark.parametrize("name", ["tiny-r1-bf16.gguf", "tiny-r1-Q4_K_M.gguf"])
def test_reads_what_llama_cpps_own_tools_wrote(name):
    folder = Path(os.environ.get("MOTE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "gguf"
    if not (folder / name).exists():
        pytest.skip(f"no {name} under {folder}; set MOTE_DATA to the folder that holds gguf/")
    layout = GgufSet.open(folder / name).layout
    assert (layout.moe_layers, layout.num_experts, layout.top_k) == ((2, 3, 4), 128, 2)
    assert (layout.num_groups, layout.groups_kept) == (8, 4)
    assert ARCHITECTURE in layout.family.model_types
