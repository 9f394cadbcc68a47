"""A dropped expert's output is zero in every storage format, and one dropped in part the part, as the format's own library or a
slow reference decodes it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import write_json, write_set
from commands import Command
from safetensors.torch import load_file
from weight_formats import (
    CASES,
    GROUP,
    IN,
    MODULE,
    NUM_EXPERTS,
    OUT,
    STACK,
    Case,
    expert_tensors,
    random_bytes,
    same,
    write_base,
)

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.formats import WEIGHT_FORMATS
from rewriter.edit.zero import find_weight, zero_weight
from rewriter.errors import CheckpointError

DROPPED = 2
STRENGTH = 0.3
# Half a unit in the last place of a scale's own type; decoding in float32 rounds more than a float32 scale.
SCALE_ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-9}
POWERS_ONLY = {"compressed-tensors MXFP4", "MXFP4 (OCP microscaling)", "DeepSeek FP4"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_drop_is_zero_as_the_format_decodes_it(
    case: Case, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    torch.manual_seed(0)
    weights = {expert: case.encode(torch.randn(OUT, IN)) for expert in range(NUM_EXPERTS)}
    base = write_base(
        tmp_path / "base",
        {f"{MODULE.format(at)}{suffix}": tensor for at, stored in weights.items() for suffix, tensor in stored.items()},
    )
    checkpoint = Checkpoint.open(base)
    found = find_weight(checkpoint, f"{MODULE.format(DROPPED)}.weight")
    assert found is not None and found.format.name == case.format
    before = case.decode(expert_tensors(base, DROPPED))
    assert before.abs().mean() > 0.001, "the test has no power: the base's weight is zero"

    experts = write_set(tmp_path / "set.json", [(0, DROPPED)])
    variant = tmp_path / "variant"
    made = mote_rewrite("--suppress", experts, "--model", base, "-o", variant, "--semantics", "drop")
    assert made.code == 0, made.stderr
    after = case.decode(expert_tensors(variant, DROPPED))
    assert after.shape == before.shape and (after == 0).all()
    for expert in set(range(NUM_EXPERTS)) - {DROPPED}:
        assert same(expert_tensors(variant, expert), expert_tensors(base, expert))
    checked = mote_verify(variant, "--base", base, "--full")
    assert checked.code == 0, checked.stderr


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_part_is_kept_as_the_format_decodes_it(
    case: Case, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    torch.manual_seed(0)
    weights = {expert: case.encode(torch.randn(OUT, IN)) for expert in range(NUM_EXPERTS)}
    base = write_base(
        tmp_path / "base",
        {f"{MODULE.format(at)}{suffix}": tensor for at, stored in weights.items() for suffix, tensor in stored.items()},
    )
    strength = 0.75 if case.format in POWERS_ONLY else STRENGTH
    experts = write_set(tmp_path / "set.json", [(0, DROPPED)])
    variant = tmp_path / "variant"
    asked = ("--suppress", experts, "--model", base, "-o", variant, "--strength", strength)
    if "nested" in case.name:
        assert (
            "whose output cannot be scaled: model.layers.0.mlp.experts.2.down_proj.weight.absmax is U8"
            in mote_rewrite(*asked).error
        )
        return
    made = mote_rewrite(*asked)
    assert made.code == 0, made.stderr
    (row,) = [row for row in WEIGHT_FORMATS if row.name == case.format]
    before, after = expert_tensors(base, DROPPED), expert_tensors(variant, DROPPED)
    written = next(suffix for suffix in row.scales if suffix in before)
    others = before.keys() - {written, ".bias"}
    assert same({name: before[name] for name in others}, {name: after[name] for name in others}), "a code was changed"
    # Some libraries decode to bfloat16 or float16, which rounds both.
    tolerance = SCALE_ROUNDING.get(before[written].dtype, 2.0**-22) + 2.0**-7 * (case.name.startswith(("bnb", "ct-")))
    expected, found = case.decode(before).double() * (1 - strength), case.decode(after).double()
    assert ((found - expected).abs() <= tolerance * expected.abs() + 1e-9).all()
    for expert in set(range(NUM_EXPERTS)) - {DROPPED}:
        assert same(expert_tensors(variant, expert), expert_tensors(base, expert))
    assert mote_verify(variant, "--base", base, "--full").code == 0


def test_zero_bytes_are_not_zero_in_nf4(tmp_path: Path, mote_rewrite: Command, mote_verify: Command) -> None:
    """A variant whose NF4 codes were filled with zero bytes, which decode to -absmax, does not pass verification."""
    torch.manual_seed(0)
    case = CASES[0]
    stored = {at: case.encode(torch.randn(OUT, IN)) for at in range(NUM_EXPERTS)}
    base = write_base(
        tmp_path / "base",
        {f"{MODULE.format(at)}{suffix}": tensor for at, part in stored.items() for suffix, tensor in part.items()},
    )
    experts = write_set(tmp_path / "set.json", [(0, DROPPED)])
    variant = tmp_path / "variant"
    assert mote_rewrite("--suppress", experts, "--model", base, "-o", variant, "--semantics", "drop").code == 0
    name = f"{MODULE.format(DROPPED)}.weight"
    entry = Checkpoint.open(variant).find((name,))
    assert entry is not None
    with (variant / "model.safetensors").open("r+b") as opened:
        opened.seek(entry.offset)
        opened.write(bytes(entry.size_bytes))
    wrong = case.decode(expert_tensors(variant, DROPPED))
    assert (wrong.abs() > 0).all(), "zero bytes are -absmax"
    assert "does not hold the planned bytes" in mote_verify(variant, "--base", base).error


def test_stacked_mxfp4_and_its_bias(tmp_path: Path, mote_rewrite: Command, mote_verify: Command) -> None:
    """gpt-oss as published: only the expert's row of blocks and of the bias becomes zero, decoded by transformers."""
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    torch.manual_seed(0)
    tensors = {
        f"{STACK}_blocks": random_bytes(NUM_EXPERTS, OUT, IN // GROUP, GROUP // 2),
        f"{STACK}_scales": torch.randint(118, 124, (NUM_EXPERTS, OUT, IN // GROUP), dtype=torch.uint8),
        f"{STACK}_bias": torch.rand(NUM_EXPERTS, OUT).bfloat16() + 1,
        "model.layers.0.mlp.router.bias": torch.zeros(NUM_EXPERTS).bfloat16(),
    }
    base = write_base(tmp_path / "base", tensors)
    config = {"model_type": "gpt_oss", "num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    write_json(base / "config.json", config)
    experts = write_set(tmp_path / "set.json", [(0, DROPPED)])
    variant = tmp_path / "variant"
    made = mote_rewrite("--suppress", experts, "--model", base, "-o", variant, "--semantics", "drop")
    assert made.code == 0, made.stderr
    assert mote_verify(variant, "--base", base, "--full").code == 0
    stored = load_file(variant / "model.safetensors")
    decoded = mxfp4.convert_moe_packed_tensors(stored[f"{STACK}_blocks"], stored[f"{STACK}_scales"])
    for part, whole in (("_blocks", decoded), ("_bias", stored[f"{STACK}_bias"])):
        zero = [expert for expert in range(NUM_EXPERTS) if (whole[expert] == 0).all()]
        assert zero == [DROPPED], part


@pytest.mark.parametrize(
    ("suffixes", "name"),
    [
        (["codes", "codebooks", "scales"], "AQLM"),
        (["q_weight", "q_scale"], "EXL2"),
        (["trellis", "suh", "svh"], "EXL3"),
        (["W_q", "meta"], "HQQ"),
        (["indices", "centroids"], "VPTQ"),
        (["Qidxs"], "QuIP#"),
        (["B", "s"], "Marlin"),
        (["_weight_qdata", "_weight_scale"], "torchao"),
        (["weight", "weight_scale"], "ModelOpt int4 or BitNet"),
        (["weight", "weight.absmax", "weight.quant_map"], "a quantised format without a row"),
        (["weight", "lora_A.weight"], "a quantised format without a row"),
    ],
)
def test_a_format_that_cannot_be_zeroed_is_named(
    suffixes: list[str], name: str, tmp_path: Path, refuse: Callable[..., str]
) -> None:
    data = torch.ones(8, 8, dtype=torch.uint8)
    tensors = {f"{MODULE.format(at)}.{suffix}": data.clone() for at in range(NUM_EXPERTS) for suffix in suffixes}
    if name == "ModelOpt int4 or BitNet":
        tensors |= {f"{MODULE.format(at)}.weight_scale": torch.ones(1) for at in range(NUM_EXPERTS)}
    base = write_base(tmp_path / "base", tensors)
    experts = write_set(tmp_path / "set.json", [(0, DROPPED)])
    sentence = refuse(base, "--suppress", experts, "--semantics", "drop")
    assert name in sentence and len(sentence) < 400, sentence


def test_a_code_book_without_zero_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stored = CASES[0].encode(torch.randn(OUT, IN))
    stored[".weight.quant_map"] = torch.linspace(0.1, 1, 16)
    base = write_base(tmp_path / "base", {f"{MODULE.format(0)}{suffix}": part for suffix, part in stored.items()})
    checkpoint = Checkpoint.open(base)
    weight = find_weight(checkpoint, f"{MODULE.format(0)}.weight")
    assert weight is not None
    with pytest.raises(CheckpointError, match="holds 16 numbers of which 0 are zero, expected 16 with a zero among"):
        zero_weight(checkpoint, weight, None, NUM_EXPERTS)


def test_rows_are_consistent() -> None:
    """Every row that is not refused names the tensor it writes, and no two rows could be taken for one another's."""
    for row in WEIGHT_FORMATS:
        assert row.tensors and (row.zeroed is None) == bool(row.refused)
        assert row.zeroed is None or (row.zeroed in row.tensors and row.source)
        assert row.code_book is None or row.code_book in row.tensors
    decoded = {case.format for case in CASES} | {"MXFP4, experts stacked"}
    written = {row.name for row in WEIGHT_FORMATS if row.zeroed is not None}
    stacked = {name for name in written if name.endswith("experts stacked")}
    assert written - stacked <= decoded, "a format without a decoding test"
