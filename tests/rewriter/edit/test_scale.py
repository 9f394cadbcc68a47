"""An expert's output times a number: what is written, what is said of it, what is refused. test_zero.py has all formats.

Legend: OUT outputs, IN inputs of the matrix.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from checkpoints import (
    bias_name,
    build_checkpoint,
    down_proj_name,
    read_tensors,
    shard_of,
    values_of,
    write_json,
    write_set,
)
from commands import Command
from gguf_files import NUM_EXPERTS as GGUF_EXPERTS
from gguf_files import gguf_bytes, model_metadata, model_tensors, outputs_name
from safetensors.torch import load_file
from weight_formats import (
    CASES,
    IN,
    MODULE,
    NUM_EXPERTS,
    OUT,
    STACK,
    expert_tensors,
    random_bytes,
    write_base,
)

from rewriter.checkpoint.gguf.files import GgufSet
from rewriter.checkpoint.gguf.types import BLOCK_SCALES, TENSOR_TYPES
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.formats import WEIGHT_FORMATS
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.edit.record import Recipe, VariantRecord, expert_set_of
from rewriter.edit.scale import EXPONENT, NUMBER_DTYPES, Packing, Scaling, rounded
from rewriter.errors import ExpertSetError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.variant import write

Refuse = Callable[..., str]
CHOSEN = 2


def test_fp8_blocks_are_scaled_by_their_scale_tensor_alone(base: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    """DeepSeek-R1's form: no fp8 code changes, and each float32 scale is the one product that float32 can hold."""
    torch.manual_seed(0)
    case = CASES[-1]
    assert case.name == "fp8-blocks"
    stored = {
        f"{MODULE.format(at)}{name}": tensor
        for at in range(4)
        for name, tensor in case.encode(torch.randn(OUT, IN)).items()
    }
    model = write_base(tmp_path / "base", stored)
    experts = write_set(tmp_path / "set.json", [(0, CHOSEN)])
    made = mote_rewrite("--suppress", experts, "--model", model, "-o", tmp_path / "out", "--strength", 0.3, "--json")
    block = json.loads((tmp_path / "out" / "config.json").read_text())["mote"]
    assert made.code == 0 and [one["name"] for one in block["tensors"]] == [f"{MODULE.format(CHOSEN)}.weight_scale_inv"]
    was, now = (expert_tensors(folder, CHOSEN)[".weight_scale_inv"].numpy() for folder in (model, tmp_path / "out"))
    assert (now == (was.astype(np.float64) * (1 - 0.3)).astype(np.float32)).all()
    halved = mote_rewrite("--suppress", experts, "--model", model, "-o", tmp_path / "half", "--strength", 0.5)
    assert "note: Scaled outputs are stored exactly." in halved.stdout
    (scales,) = [expert_tensors(tmp_path / "half", CHOSEN)[".weight_scale_inv"].numpy()]
    assert (scales * 2 == was).all()


@pytest.mark.parametrize("kind", sorted(BLOCK_SCALES))
def test_every_block_type_of_gguf_is_scaled_as_its_own_library_decodes_it(kind: str) -> None:
    """gguf-py dequantises blocks of random codes and moderate scales; a product with a power of two is exact."""
    gguf = pytest.importorskip("gguf")
    from gguf.quants import dequantize

    size = next(one.block_bytes for one in TENSOR_TYPES.values() if one.name == kind)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (50, size), dtype=np.uint8)
    for offset in BLOCK_SCALES[kind]:
        if kind == "MXFP4":
            blocks[:, offset] = rng.integers(100, 120, 50)
        else:
            scales = rng.uniform(0.25, 4, 50).astype("<f2")
            blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
    packing = Packing(size, BLOCK_SCALES[kind], EXPONENT if kind == "MXFP4" else "F16")
    after = np.frombuffer(Scaling(packing, 4.0).apply(blocks.tobytes()), np.uint8).reshape(blocks.shape)
    decoded = [dequantize(data, gguf.GGMLQuantizationType[kind]) for data in (blocks, after)]
    assert np.abs(decoded[0]).mean() > 1e-4
    np.testing.assert_array_equal(decoded[1], decoded[0] * 4)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3"])
def test_plain_numbers_are_rounded_and_the_plan_says_by_how_much(dtype: str, tmp_path: Path) -> None:
    base = build_checkpoint(tmp_path / "base", expert_dtype=dtype)
    chosen = ExpertSet(layer_index="model", behavior="x", experts=[ExpertEntry(layer=1, expert=3, gain=1.7)])
    plan = make_plan(Checkpoint.open(base), None, chosen, EditOptions())
    before = values_of(read_tensors(base)[down_proj_name(1, 3)])
    expected = (before.astype(np.float64) * 1.7).astype(before.dtype)
    patch = next(one for one in plan.patches if one.tensor == down_proj_name(1, 3))
    assert patch.scaling is not None and patch.scaling.apply(before.tobytes()) == expected.tobytes()
    exact = before.astype(np.float64) * 1.7
    rounding = np.sqrt(((expected.astype(np.float64) - exact) ** 2).sum() / (exact**2).sum())
    assert plan.layers[0].scaled[0].rounding == pytest.approx(rounding)
    assert any(f"by {rounding:.1e} of them at most" in note for note in plan.notes)
    assert plan.record.experts[0].gain == 1.7 and plan.record.experts[0].edits_bias


def test_what_a_type_cannot_hold_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    base = build_checkpoint(tmp_path / "base", expert_dtype="F16")
    chosen = write_set(tmp_path / "set.json", [(1, 3)])
    assert (
        "layer 1 expert 3: its output times 1e+06 does not fit model.layers.1.mlp.experts.3.down_proj.weight (a product is no"
        " finite number of its type F16)" in refuse(base, "--stimulate", chosen, "--gain", "1e6")
    )
    assert "is stored as the bytes that are there already" in refuse(base, "--stimulate", chosen, "--gain", "1.0000001")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("--suppress", "--strength", "0"),
            "--strength is 0, expected a number above 0 and at most 1; 0 would be the base",
        ),
        (("--suppress", "--strength", "1.5"), "--strength is 1.5, expected a number above 0 and at most 1"),
        (("--suppress", "--strength", "nan"), "--strength is nan, expected a number above 0"),
        (
            ("--stimulate", "--strength", "0.5"),
            "--strength is one of suppressed experts, expected --suppress FILE with it",
        ),
        (("--suppress", "--gain", "2"), "--gain is one of stimulated experts, expected --stimulate FILE with it"),
        (("--stimulate", "--gain", "0"), "--gain is 0, expected auto, mean or a finite number above 0"),
        (("--stimulate", "--gain", "-2"), "--gain is -2, expected auto, mean or a finite number above 0"),
        (("--stimulate", "--gain", "inf"), "--gain is inf, expected auto, mean or a finite number above 0"),
        (("--stimulate", "--gain", "much"), "--gain is 'much', expected auto, mean or a finite number above 0"),
        (
            ("--stimulate", "--gain", "auto"),
            "--gain auto is worked out from traces with weights, expected --traces DIR with it",
        ),
        (
            ("--suppress", "--strength", "0.5", "--semantics", "reroute"),
            "layer 1 expert 3 has a strength of 0.5, of which a reroute has no part",
        ),
        (
            ("--suppress", "--strength", "0.5", "--semantics", "drop-renorm"),
            "--strength changes tensors, which --dial and --semantics drop-renorm leave as they are",
        ),
        (
            ("--stimulate", "--gain", "2", "--semantics", "drop-renorm"),
            "--gain changes tensors, which --dial and --semantics drop-renorm leave as they are",
        ),
    ],
)
def test_what_means_nothing_is_refused_in_a_sentence(
    base: Path, tmp_path: Path, refuse: Refuse, arguments: tuple[str, ...], sentence: str
) -> None:
    chosen = write_set(tmp_path / "set.json", [(1, 3)])
    assert sentence in refuse(base, arguments[0], chosen, *arguments[1:])


@pytest.mark.parametrize(
    ("action", "number", "sentence"),
    [
        ("--suppress", {"gain": 2.0}, "has experts with a gain, which only stimulated ones can have"),
        ("--stimulate", {"strength": 0.5}, "has experts with a strength, which only suppressed ones can have"),
        ("--suppress", {"strength": 0}, "experts.0.strength is 0: input should be greater than 0"),
        ("--suppress", {"strength": 1.01}, "experts.0.strength is 1.01: input should be less than or equal to 1"),
        ("--stimulate", {"gain": -1}, "experts.0.gain is -1: input should be greater than 0"),
        ("--stimulate", {"gain": "2"}, 'experts.0.gain is "2"'),
        ("--suppress", {"strength": 0.5, "bias_shift": -0.5}, "which a drop has no place for"),
    ],
)
def test_a_set_with_numbers_that_are_none_is_refused(
    base: Path, tmp_path: Path, refuse: Refuse, action: str, number: dict[str, Any], sentence: str
) -> None:
    chosen = write_set(tmp_path / "set.json", [], experts=[{"layer": 1, "expert": 3} | number])
    assert sentence in refuse(base, action, chosen)


def test_gain_without_a_router_bias_is_refused_and_strength_is_not(
    tmp_path: Path, refuse: Refuse, mote_rewrite: Command
) -> None:
    bias_free = {"model_type": "deepseek_v2", "n_group": 1, "topk_group": 1, "topk_method": None, "scoring_func": None}
    base = build_checkpoint(tmp_path / "base", num_experts_per_tok=2, expert_dtype="BF16", **bias_free)
    chosen = write_set(tmp_path / "set.json", [(1, 3)])
    assert "has no router bias, so its checkpoints cannot stimulate" in refuse(base, "--stimulate", chosen, "--gain", 2)
    assert "of which a reroute has no part" in refuse(
        base, "--suppress", chosen, "--strength", 0.5, "--semantics", "reroute"
    )
    made = mote_rewrite("--model", base, "--suppress", chosen, "--strength", 0.5, "-o", tmp_path / "out")
    assert made.code == 0 and "1 suppressed (drop in part)" in made.stdout
    was, now = (values_of(read_tensors(at)[down_proj_name(1, 3)]) for at in (base, tmp_path / "out"))
    assert (now.astype(np.float32) * 2 == was.astype(np.float32)).all()


def test_plan_result_card_verify_and_json_say_strength_and_gain(
    base: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    down = write_set(
        tmp_path / "down.json", [], experts=[{"layer": 1, "expert": 3, "strength": 0.25}, {"layer": 3, "expert": 0}]
    )
    up = write_set(
        tmp_path / "up.json", [], experts=[{"layer": 1, "expert": 5, "gain": 2.5}, {"layer": 1, "expert": 6}]
    )
    out = tmp_path / "out"
    asked = ("--model", base, "--suppress", down, "--stimulate", up, "-o", out)
    plan = mote_rewrite(*asked, "--dry-run").stdout
    assert "suppress 3 (drop in part: output x 0.75); stimulate 6 (bias " in plan
    assert "stimulate 5 (bias " in plan and ", output x 2.5)" in plan and "layer 3: suppress 0 (output zeroed)" in plan
    assert "note: drop in part: the weights of the other selected experts stay" in plan
    result = mote_rewrite(*asked).stdout
    assert "2 suppressed (drop, some a drop in part), 2 stimulated" in result
    card = (out / "README.md").read_text()
    assert "**Drop.**" in card and "**Drop in part.**" in card and "**Gain.**" in card
    assert "| `scaled output`, output x 0.75 |" in card and ", output x 2.5 |" in card and "`zero output`" in card
    block = json.loads((out / "config.json").read_text())["mote"]
    assert block["semantics"] == "drop"
    assert [one.get("strength") for one in block["experts"]] == [0.25, None, None, None]
    assert [one.get("gain") for one in block["experts"]] == [None, 2.5, None, None]
    assert "gain" not in block["experts"][0] and "strength" not in block["experts"][3]
    verified = mote_verify(out, "--base", base)
    assert verified.code == 0, verified.stderr
    assert "proved from the bytes: drop in part: the output of such an expert is the base's times" in verified.stdout
    assert "proved from the bytes: gain: the output of such a stimulated expert" in verified.stdout
    assert "not proved: gain: how far that is from the paper's largest weight" in verified.stdout
    tensors, before = read_tensors(out), read_tensors(base)
    for expert, factor in ((3, 0.75), (5, 2.5)):
        was = values_of(before[down_proj_name(1, expert)])
        assert tensors[down_proj_name(1, expert)].data == (was.astype(np.float64) * factor).astype(was.dtype).tobytes()
    assert not any(tensors[down_proj_name(3, 0)].data)
    changed = {name for name in before if tensors[name] != before[name]}
    assert changed == {bias_name(1), down_proj_name(1, 3), down_proj_name(1, 5), down_proj_name(3, 0)}


@pytest.mark.parametrize(("place", "key"), [(0, "strength"), (1, "gain")])
def test_a_record_or_bytes_with_another_scale_do_not_verify(
    base: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command, place: int, key: str
) -> None:
    down, up = write_set(tmp_path / "down.json", [(1, 3)]), write_set(tmp_path / "up.json", [(1, 5)])
    out = tmp_path / "out"
    asked = ("--model", base, "--suppress", down, "--stimulate", up, "-o", out, "--strength", 0.25, "--gain", 2)
    assert mote_rewrite(*asked).code == 0
    text = (out / "config.json").read_text()
    config = json.loads(text)
    config["mote"]["experts"][place][key] *= 1.5
    write_json(out / "config.json", config)
    assert "of its mote block is not what its experts come to on this base" in mote_verify(out, "--base", base).error
    (out / "config.json").write_text(text)
    assert mote_verify(out, "--base", base).code == 0
    name = down_proj_name(1, (3, 5)[place])
    entry = Checkpoint.open(out).find((name,))
    assert entry is not None
    wrong = Scaling(Packing(1, (0,), entry.dtype), 0.5).apply(Checkpoint.open(out).read(entry))
    with shard_of(out, name).open("r+b") as opened:
        opened.seek(entry.offset)
        opened.write(wrong)
    assert f"{name} does not hold the planned bytes" in mote_verify(out, "--base", base).error


def test_a_recipe_carries_strength_and_gain_and_makes_the_same_bytes(
    base: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    down, up = write_set(tmp_path / "down.json", [(1, 3), (1, 8)]), write_set(tmp_path / "up.json", [(1, 5)])
    out, again = tmp_path / "out", tmp_path / "again"
    asked = ("--model", base, "--suppress", down, "--stimulate", up, "-o", out, "--strength", 0.25, "--gain", 1.3)
    assert mote_rewrite(*asked).code == 0
    record = VariantRecord.model_validate(json.loads((out / "config.json").read_text())["mote"])
    text = Recipe.of(record).to_json()
    assert text.count('"strength"') == 2 and text.count('"gain"') == 1
    found = expert_set_of(Recipe.read(text, "recipe.json"), "suppress")
    assert found is not None and [one.strength for one in found.experts] == [0.25, 0.25]
    (tmp_path / "recipe.json").write_text(text)
    assert mote_rewrite("--model", base, "--recipe", tmp_path / "recipe.json", "-o", again).code == 0
    assert read_tensors(again) == read_tensors(out)
    recipe = ("--model", base, "--recipe", tmp_path / "recipe.json", "-o", tmp_path / "x")
    assert "so --strength cannot be given with it" in mote_rewrite(*recipe, "--strength", 0.5).error
    assert "so --gain and --traces cannot be given with it" in mote_rewrite(*recipe, "--gain", "2").error


def test_a_variant_of_a_variant_multiplies_what_is_there_and_says_so(
    base: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    chosen = write_set(tmp_path / "set.json", [(1, 3)])
    once, twice, gone = tmp_path / "once", tmp_path / "twice", tmp_path / "gone"
    assert mote_rewrite("--model", base, "--suppress", chosen, "-o", once, "--strength", 0.5).code == 0
    made = mote_rewrite("--model", once, "--suppress", chosen, "-o", twice, "--strength", 0.5)
    assert (
        "The base has scaled the output of layer 1 expert 3 already; what is written now multiplies that."
        in made.stdout
    )
    was, now = (values_of(read_tensors(at)[down_proj_name(1, 3)]).astype(np.float32) for at in (base, twice))
    normal = np.abs(was) >= 2.0**-4  # below that a quarter is no normal float8 number
    assert (now[normal] * 4 == was[normal]).all() and mote_verify(twice, "--base", once).code == 0
    # A drop of what was kept in part is a drop, and of what is zero no part can be kept.
    assert mote_rewrite("--model", twice, "--suppress", chosen, "-o", gone, "--semantics", "drop").code == 0
    assert not any(read_tensors(gone)[down_proj_name(1, 3)].data)
    assert "proved from the bytes: drop: the output" in mote_verify(gone, "--base", twice).stdout
    refused = mote_rewrite("--model", gone, "--suppress", chosen, "-o", tmp_path / "x", "--strength", 0.5).error
    assert "is stored as the bytes that are there already (it is zero" in refused


def test_a_gain_or_strength_of_1_is_none(base: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    chosen = write_set(tmp_path / "set.json", [(1, 3)])
    for action, option in (("--suppress", "--strength"), ("--stimulate", "--gain")):
        asked = ("--model", base, action, chosen, "-o", tmp_path / "out", "--dry-run", "--json")
        plain, with_one = (json.loads(mote_rewrite(*asked, *more).stdout) for more in ((), (option, 1)))
        assert with_one["mote"] == plain["mote"] and with_one["notes"] == plain["notes"]


def test_stacked_mxfp4_and_its_bias_take_powers_of_two(
    tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    """gpt-oss as published: one expert's row of exponents moves, and its bias is scaled, decoded by transformers."""
    mxfp4 = pytest.importorskip("transformers.integrations.mxfp4")
    torch.manual_seed(0)
    tensors = {
        f"{STACK}_blocks": random_bytes(NUM_EXPERTS, OUT, IN // 32, 16),
        f"{STACK}_scales": torch.randint(118, 124, (NUM_EXPERTS, OUT, IN // 32), dtype=torch.uint8),
        f"{STACK}_bias": torch.rand(NUM_EXPERTS, OUT).bfloat16() + 1,
        "model.layers.0.mlp.router.bias": torch.zeros(NUM_EXPERTS).bfloat16(),
    }
    base = write_base(tmp_path / "base", tensors)
    config = {"model_type": "gpt_oss", "num_hidden_layers": 1, "num_local_experts": 4, "num_experts_per_tok": 2}
    write_json(base / "config.json", config)
    experts = write_set(tmp_path / "set.json", [(0, CHOSEN)])
    variant = tmp_path / "variant"
    asked = ("--suppress", experts, "--model", base, "-o", variant)
    assert (
        "whose scales are powers of two: an output times 0.7 cannot be written, expected a power of two"
        in mote_rewrite(*asked, "--strength", 0.3).error
    )
    made = mote_rewrite(*asked, "--strength", 0.75)
    assert made.code == 0 and "note: Scaled outputs are stored exactly." in made.stdout
    assert mote_verify(variant, "--base", base, "--full").code == 0
    stored = load_file(variant / "model.safetensors")
    for decode in (
        lambda one: mxfp4.convert_moe_packed_tensors(one[f"{STACK}_blocks"], one[f"{STACK}_scales"]),
        lambda one: one[f"{STACK}_bias"],
    ):
        before, after = decode(tensors).float(), decode(stored).float()
        assert (after[CHOSEN] * 4 == before[CHOSEN]).all()
        rest = [at for at in range(NUM_EXPERTS) if at != CHOSEN]
        assert (after[rest] == before[rest]).all()


def test_a_scale_that_all_experts_share_is_refused(tmp_path: Path, refuse: Refuse) -> None:
    tensors = {
        STACK: torch.randn(NUM_EXPERTS, OUT, IN).to(torch.float8_e4m3fn),
        f"{STACK}_scale": torch.tensor([0.5]),
    }
    base = write_base(tmp_path / "base", tensors)
    chosen = write_set(tmp_path / "set.json", [(0, CHOSEN)])
    write_json(
        base / "config.json",
        {"model_type": "qwen3_vl_moe", "text_config": json.loads((base / "config.json").read_text())},
    )
    assert "expected one of [4, ...]: what all experts share cannot be changed for one" in refuse(
        base, "--suppress", chosen, "--strength", 0.5
    )


@pytest.mark.parametrize(("dtype", "offsets"), [("F16", None), ("Q8_0", (0,)), ("Q4_K", (0, 2))])
def test_gguf_blocks_are_scaled_by_their_own_scales(
    dtype: str, offsets: tuple[int, ...] | None, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    tensors = model_tensors(expert_dtype=dtype)
    name = outputs_name(2)
    size = {"F16": 2, "Q8_0": 34, "Q4_K": 144}[dtype]
    whole = np.frombuffer(tensors[name].data, np.uint8).reshape(GGUF_EXPERTS, -1, size).copy()
    for offset in offsets or (0,):  # random bytes are no float16 scales
        whole[:, :, offset : offset + 2] = np.frombuffer(
            np.random.default_rng(1).uniform(0.5, 2, whole.shape[:2]).astype("<f2").tobytes(), np.uint8
        ).reshape(*whole.shape[:2], 2)
    tensors[name] = tensors[name]._replace(data=whole.tobytes())
    model = tmp_path / "models" / "tiny.gguf"
    model.parent.mkdir()
    model.write_bytes(gguf_bytes(model_metadata(), tensors))
    chosen = write_set(tmp_path / "set.json", [(2, 3)])
    out = tmp_path / "out"
    made = mote_rewrite("--model", model, "--suppress", chosen, "-o", out, "--strength", 0.5)
    assert made.code == 0, made.stderr
    after = GgufSet.open(out / model.name)
    entry = after.find((name,))
    assert entry is not None
    found = np.frombuffer(after.read(entry), np.uint8).reshape(whole.shape)
    expected = whole.copy()
    for offset in offsets or (0,):
        scales = np.ascontiguousarray(whole[3, :, offset : offset + 2]).view("<f2") * np.float16(0.5)
        expected[3, :, offset : offset + 2] = scales.view(np.uint8)
    assert (found == expected).all()
    assert mote_verify(out, "--base", model.parent).code == 0


def test_a_gguf_type_that_scales_parts_of_blocks_is_refused(tmp_path: Path) -> None:
    from rewriter.checkpoint.source import TensorEntry
    from rewriter.edit.scale import _packing

    for kind in sorted({one.name for one in TENSOR_TYPES.values()} - BLOCK_SCALES.keys() - NUMBER_DTYPES.keys()):
        assert _packing(TensorEntry("x", "f", kind, (1,), 0, 1)) is None


def test_large_outputs_are_multiplied_piece_by_piece(
    base: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = write_set(tmp_path / "set.json", [(1, 3)])
    assert mote_rewrite("--model", base, "--suppress", chosen, "-o", tmp_path / "one", "--strength", 0.5).code == 0
    monkeypatch.setattr(write, "PLAIN_CHUNK_BYTES", 5)
    assert mote_rewrite("--model", base, "--suppress", chosen, "-o", tmp_path / "two", "--strength", 0.5).code == 0
    assert read_tensors(tmp_path / "one") == read_tensors(tmp_path / "two")


def test_scales_that_are_powers_of_two_by_the_config_are_said_to_be_none(tmp_path: Path) -> None:
    """DeepSeek-V3.1 and later say `scale_fmt: ue8m0` of float32 scales."""
    base = build_checkpoint(tmp_path / "base", quantization_config={"scale_fmt": "ue8m0", "quant_method": "fp8"})
    notes = {}
    for gain in (2.0, 1.5):
        chosen = ExpertSet(layer_index="model", behavior="x", experts=[ExpertEntry(layer=1, expert=3, gain=gain)])
        notes[gain] = " ".join(make_plan(Checkpoint.open(base), None, chosen, EditOptions()).notes)
    assert "scale_fmt ue8m0" in notes[1.5] and "scale_fmt ue8m0" not in notes[2.0]


def test_an_exponent_that_leaves_its_range_is_refused() -> None:
    scaling = Scaling(Packing(1, (0,), EXPONENT), 4.0)
    assert scaling.apply(bytes([0, 100, 252])) == bytes([2, 102, 254])
    with pytest.raises(ValueError, match="outside the range"):
        scaling.apply(bytes([253]))


def test_rows_name_scales_that_they_have() -> None:
    for row in WEIGHT_FORMATS:
        assert set(row.scales) <= row.tensors.keys() | set(row.further)
        assert bool(row.scales) == (not row.refused), f"{row.name}: say by which tensor it is scaled"


def test_every_bfloat16_is_rounded_to_a_nearest_one() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(ml_dtypes.bfloat16)
    numbers = every[np.isfinite(every.astype(np.float32)) & (np.abs(every.astype(np.float32)) < 1e37)]
    found = np.frombuffer(Scaling(Packing(2, (0,), "BF16"), 1.7).apply(numbers.tobytes()), ml_dtypes.bfloat16)
    exact = numbers.astype(np.float64) * 1.7
    neighbours = [np.nextafter(found, ml_dtypes.bfloat16(way)).astype(np.float64) for way in (-np.inf, np.inf)]
    nearest = np.abs(found.astype(np.float64) - exact)
    assert all((nearest <= np.abs(other - exact)).all() for other in neighbours if np.isfinite(other).all())


def test_with_each_checks_what_it_is_given() -> None:
    chosen = ExpertSet(layer_index="model", behavior="x", experts=[ExpertEntry(layer=1, expert=3)])
    with pytest.raises(ExpertSetError, match="expert set 'x': gain is -1.0: input should be greater than 0"):
        chosen.with_each(gain=-1.0)


@pytest.mark.parametrize("name", sorted(name for name, dtype in NUMBER_DTYPES.items() if dtype.itemsize <= 2))
def test_products_are_rounded_once(name: str) -> None:
    """A hair beside the middle of two neighbours is nearer to one of them; by way of float32 it became the middle."""
    dtype = NUMBER_DTYPES[name]
    patterns = np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}")
    with np.errstate(invalid="ignore"):
        values = patterns.view(dtype).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    middles = (values[1:] + values[:-1]) / 2
    above, below = np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf)
    assert (rounded(above, dtype).astype(np.float64) == values[1:]).all()
    assert (rounded(below, dtype).astype(np.float64) == values[:-1]).all()
    assert (rounded(values, dtype).astype(np.float64) == values).all()
    # The middle itself goes to the one whose last bit is 0.
    assert not (rounded(middles, dtype).view(patterns.dtype) & 1).any() or name.endswith("FNUZ")
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(rounded(np.array([4 * values[-1], 1e300]), dtype).astype(np.float64)).any()


def test_an_exponent_that_is_no_number_does_not_become_one() -> None:
    """Byte 255 of e8m0 is NaN, and halved it would be 2 ** 127."""
    packing = Packing(1, (0,), EXPONENT)
    assert Scaling(packing, 0.5).apply(bytes([254, 1])) == bytes([253, 0])
    for factor, data in ((0.5, [255, 9]), (0.5, [0, 9]), (2.0, [254, 9])):
        with pytest.raises(ValueError, match="outside the range of its powers of two"):
            Scaling(packing, factor).apply(bytes(data))


@pytest.mark.parametrize(
    ("action", "words", "is_said"),
    [
        ("--suppress", ("--semantics", "drop"), True),
        ("--suppress", ("--strength", "0.5"), False),
        ("--suppress", ("--semantics", "drop", "--top", "1"), False),
        ("--stimulate", (), True),
        ("--stimulate", ("--gain", "2"), False),
        ("--stimulate", ("--top", "1"), False),
    ],
)
def test_what_traces_said_of_other_numbers_is_not_repeated(
    base: Path, tmp_path: Path, mote_rewrite: Command, action: str, words: tuple[str, ...], is_said: bool
) -> None:
    """A set keeps what they said of it; it used to be said of other gains, strengths and experts too."""
    said = {"by_traces": {"sentences": ["traces said this"]}}
    chosen = write_set(tmp_path / "set.json", [(1, 3), (2, 5)], provenance=said)
    planned = mote_rewrite("--model", base, action, chosen, *words, "-o", tmp_path / "out", "--dry-run")
    assert planned.code == 0 and ("note: traces said this" in planned.stdout) == is_said
