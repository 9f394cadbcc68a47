"""The rows for GGUF: one architecture in one row, and names that llama.cpp's own Python package knows."""

import numpy as np
import pytest
from gguf_files import (
    NUM_DENSE,
    NUM_EXPERTS,
    NUM_LAYERS,
    U32,
    Tensor,
    Value,
    gguf_bytes,
    imatrix_bytes,
    model_metadata,
    model_tensors,
)

from rewriter.checkpoint.gguf.files import GgufSet
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.errors import CheckpointError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.families.gguf import BY_ARCHITECTURE, GGUF_FAMILIES
from rewriter.semantics import CENTROID
from rewriter.variant.selections import check_selections


def test_each_architecture_stands_in_one_row_with_a_source():
    assert sum(len(row.model_types) for row in GGUF_FAMILIES) == len(BY_ARCHITECTURE)
    for row in GGUF_FAMILIES:
        assert row.source.startswith("src/models/")
        assert row.minus_inf_warning or not row.bias
        assert row.router or row.bias  # what a reroute is written by


def test_names_and_tensors_are_those_of_the_gguf_package():
    constants = pytest.importorskip("gguf.constants")
    architectures = {name: number for number, name in constants.MODEL_ARCH_NAMES.items()}
    known = [name for name in BY_ARCHITECTURE if name in architectures]
    assert len(known) >= 30  # the package lags behind the newest architectures
    for name in known:
        tensors = constants.MODEL_TENSORS[architectures[name]]
        row = BY_ARCHITECTURE[name]
        assert constants.MODEL_TENSOR.FFN_DOWN_EXP in tensors, name
        if row.router:
            assert constants.MODEL_TENSOR.FFN_GATE_INP in tensors, name
        has_bias = constants.MODEL_TENSOR.FFN_EXP_PROBS_B in tensors
        assert (
            has_bias == any("exp_probs_b" in template for template in row.bias) or name in NOT_IN_THE_PACKAGES_LIST
        ), name


# The package's list of tensors is for its converter; the loader of llama.cpp is what counts.
NOT_IN_THE_PACKAGES_LIST: frozenset[str] = frozenset()


@pytest.mark.parametrize(("selected", "kind"), [(0, "F32"), (7, "F32"), (0, "Q8_0")])
def test_a_centroid_is_written_and_its_selections_are_counted(tmp_path, selected, kind):
    """A file whose routers have no bias: a selection is reported and no error, a packed router is refused by name."""
    tensors = {name: tensor for name, tensor in model_tensors().items() if "exp_probs_b" not in name}
    for layer in range(NUM_DENSE, NUM_LAYERS):
        if kind == "Q8_0":
            tensors[f"blk.{layer}.ffn_gate_inp.weight"] = Tensor("Q8_0", (NUM_EXPERTS, 32), bytes(NUM_EXPERTS * 34))
    metadata = model_metadata(expert_used_count=Value(U32, 1))
    base = tmp_path / "base.gguf"
    base.write_bytes(gguf_bytes(metadata, tensors))
    chosen = ExpertSet(layer_index="model", behavior="b", experts=[ExpertEntry(layer=2, expert=3)])
    if kind == "Q8_0":
        with pytest.raises(CheckpointError, match=r"ffn_gate_inp.weight is quantised \(Q8_0\)"):
            make_plan(GgufSet.open(base), chosen, None, EditOptions())
        return
    plan = make_plan(GgufSet.open(base), chosen, None, EditOptions())
    assert plan.record.semantics == CENTROID
    rows = np.frombuffer(tensors["blk.2.ffn_gate_inp.weight"].data, "<f4").reshape(NUM_EXPERTS, -1)
    row = next(patch for patch in plan.patches if patch.tensor == "blk.2.ffn_gate_inp.weight")
    assert row.data == np.delete(rows, 3, 0).mean(0, dtype=np.float64).astype("<f4").tobytes()
    counts = np.full(NUM_EXPERTS, 10.0)
    counts[3] = selected
    (tmp_path / "counts.gguf").write_bytes(imatrix_bytes(dict.fromkeys(range(NUM_DENSE, NUM_LAYERS), counts), top_k=1))
    (found,) = check_selections(plan.record, GgufSet.open(base).layout, tmp_path / "counts.gguf", None)
    assert found.count == selected
