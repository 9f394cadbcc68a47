"""The rows for GGUF: one architecture in one row, and names that llama.cpp's own Python package knows."""

import pytest

from rewriter.families.gguf import BY_ARCHITECTURE, GGUF_FAMILIES


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
