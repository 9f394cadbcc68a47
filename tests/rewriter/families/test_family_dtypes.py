"""Edits of quantised and narrow tensors: R1's fp8 shards, GPT-OSS's mxfp4 blocks, biases in bf16 and fp16."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from family_models import NUM_EXPERTS, TINY_MODELS, TinyModel, build_tiny_model, raw_tensors
from routing_capture import capture, expert_output, experts_modules, load, prompt_ids
from safetensors.torch import load_file, save_file

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.errors import CheckpointError, ExpertSetError, PlanError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.variant.verify import verify
from rewriter.variant.write import write_variant

BLOCK = 16  # fp8 scales stand for blocks of this size here; R1's stand for 128 by 128
LAYER = 1
EXPERT = 5
MXFP4_KEEPS = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]


def tiny_model(model_type: str) -> TinyModel:
    return next(tiny for tiny in TINY_MODELS if str(tiny) == model_type)


def expert_set(behavior: str, *experts: int) -> ExpertSet:
    entries = [ExpertEntry(layer=LAYER, expert=expert) for expert in experts]
    return ExpertSet(layer_index="model", behavior=behavior, experts=entries)


def rewrite(
    folder: Path, target: Path, suppress: tuple[int, ...], stimulate: tuple[int, ...] = (), **options: Any
) -> None:
    plan = make_plan(
        Checkpoint.open(folder),
        expert_set("suppressed", *suppress) if suppress else None,
        expert_set("stimulated", *stimulate) if stimulate else None,
        EditOptions(**options),
    )
    write_variant(plan, folder, target)
    verify(target, folder, full=True)


def transform_shards(folder: Path, change: Any) -> None:
    """Save every shard again with `change` applied to each tensor: (name, tensor) -> new tensors by name."""
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    weight_map = {}
    for shard in sorted(set(index["weight_map"].values())):
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in load_file(folder / shard).items():
            tensors |= change(name, tensor)
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index_path.write_text(json.dumps({"metadata": index["metadata"], "weight_map": weight_map}))


def edit_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def quantise_fp8(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A matrix as R1 stores it: F8_E4M3 and a float32 scale for each block, named weight_scale_inv."""
    if not name.endswith("proj.weight") or tensor.dim() != 2 or any(size % BLOCK for size in tensor.shape):
        return {name: tensor}
    rows, columns = (size // BLOCK for size in tensor.shape)
    blocks = tensor.view(rows, BLOCK, columns, BLOCK)
    scale = blocks.abs().amax((1, 3)) / 448
    quantised = (blocks / scale[:, None, :, None]).view(tensor.shape).to(torch.float8_e4m3fn)
    return {name: quantised, f"{name}_scale_inv": scale}


def dequantised(folder: Path, target: Path) -> Path:
    """A float32 copy of an fp8 folder, its scales multiplied in, since transformers reads fp8 on a GPU only."""
    shutil.copytree(folder, target)
    scales: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        scales |= {name: tensor for name, tensor in load_file(shard).items() if name.endswith("_scale_inv")}

    def dequantise(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if name in scales:
            return {}
        if tensor.dtype != torch.float8_e4m3fn:
            return {name: tensor}
        scale = scales[f"{name}_scale_inv"].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        return {name: tensor.float() * scale}

    transform_shards(target, dequantise)
    edit_config(target, quantization_config=None)
    return target


@pytest.fixture(scope="module")
def fp8_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DeepSeek-V3 as R1 is published: model_type deepseek_v3, fp8 shards with block scales, float32 bias."""
    folder = build_tiny_model(tiny_model("deepseek_v3"), tmp_path_factory.mktemp("fp8") / "base")
    transform_shards(folder, quantise_fp8)
    edit_config(
        folder,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        quantization_config={
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        },
    )
    tensors = raw_tensors(folder)
    assert tensors[f"model.layers.{LAYER}.mlp.experts.{EXPERT}.down_proj.weight"][0] == "F8_E4M3"
    assert tensors[f"model.layers.{LAYER}.mlp.experts.{EXPERT}.down_proj.weight_scale_inv"][0] == "F32"
    assert tensors[f"model.layers.{LAYER}.mlp.gate.e_score_correction_bias"][0] == "F32"
    return folder


def test_drop_in_fp8_shards_byte_for_byte(fp8_folder: Path, tmp_path: Path) -> None:
    """The fp8 matrix becomes zero bytes; its scales and all else stay, so it dequantises to zeros."""
    rewrite(fp8_folder, tmp_path / "variant", (EXPERT,), semantics="drop")
    expected = raw_tensors(fp8_folder)
    name = f"model.layers.{LAYER}.mlp.experts.{EXPERT}.down_proj.weight"
    dtype, shape, data = expected[name]
    assert any(data)
    expected[name] = (dtype, shape, bytes(len(data)))
    assert raw_tensors(tmp_path / "variant") == expected
    scale = np.frombuffer(expected[f"{name}_scale_inv"][2], "<f4")
    values = np.frombuffer(expected[name][2], ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.isfinite(scale).all() and scale.all() and not values.any()


@pytest.mark.parametrize("suppress_bias", ["-inf", "margin"])
def test_reroute_in_fp8_shards_byte_for_byte(fp8_folder: Path, tmp_path: Path, suppress_bias: str) -> None:
    """Two float32 numbers of one bias change, by runtimes' formula for the margins; every other byte stays."""
    stimulated = NUM_EXPERTS - 1
    rewrite(fp8_folder, tmp_path / "variant", (EXPERT,), (stimulated,), suppress_bias=suppress_bias)
    expected = raw_tensors(fp8_folder)
    name = f"model.layers.{LAYER}.mlp.gate.e_score_correction_bias"
    dtype, shape, data = expected[name]
    bias = list(struct.unpack(f"<{NUM_EXPERTS}f", data))
    others = [value for expert, value in enumerate(bias) if expert not in (EXPERT, stimulated)]
    spread = max(others) - min(others)
    written = struct.unpack(f"<{NUM_EXPERTS}f", raw_tensors(tmp_path / "variant")[name][2])
    suppress_at = float("-inf") if suppress_bias == "-inf" else min(others) - (spread + 2 + 1)
    assert written[EXPERT] == pytest.approx(suppress_at)
    assert written[stimulated] == pytest.approx(max(others) + 2 * spread + 4 + 2)
    bias[EXPERT], bias[stimulated] = written[EXPERT], written[stimulated]
    expected[name] = (dtype, shape, struct.pack(f"<{NUM_EXPERTS}f", *bias))
    assert raw_tensors(tmp_path / "variant") == expected


def test_edits_of_fp8_shards_hold_once_dequantised(fp8_folder: Path, tmp_path: Path) -> None:
    """Loaded from the edited fp8 shards, the dropped expert's output is zero, the rerouted one is never selected."""
    tiny = tiny_model("deepseek_v3")
    base = load(tiny, dequantised(fp8_folder, tmp_path / "base-f32"))
    seen = capture(base, prompt_ids())[0][LAYER]
    often = int(seen.selected.flatten().bincount().argmax())
    rewrite(fp8_folder, tmp_path / "drop", (often,), semantics="drop")
    rewrite(fp8_folder, tmp_path / "reroute", (often,))
    dropped = load(tiny, dequantised(tmp_path / "drop", tmp_path / "drop-f32"))
    rerouted = load(tiny, dequantised(tmp_path / "reroute", tmp_path / "reroute-f32"))
    assert expert_output(experts_modules(base)[LAYER], seen, often).any()
    assert not expert_output(experts_modules(dropped)[LAYER], seen, often).any()
    assert torch.equal(capture(dropped, prompt_ids())[0][LAYER].selected, seen.selected)
    assert (seen.selected == often).any()
    assert not (capture(rerouted, prompt_ids())[0][LAYER].selected == often).any()


def test_fp8_config_keeps_its_quantisation(fp8_folder: Path, tmp_path: Path) -> None:
    rewrite(fp8_folder, tmp_path / "variant", (EXPERT,))
    base, variant = (json.loads((folder / "config.json").read_text()) for folder in (fp8_folder, tmp_path / "variant"))
    assert variant.pop("mote")
    assert variant == base and list(variant) == list(base)


def quantise_mxfp4(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """Stacked expert matrices as GPT-OSS publishes them: two e2m1 numbers a byte, a power-of-two scale for 32 of them."""
    if not name.endswith(("experts.down_proj", "experts.gate_up_proj")):
        return {name: tensor}
    experts, inner, outer = tensor.shape
    grid = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    groups = tensor.transpose(1, 2).reshape(experts, outer, inner // 32, 32)
    exponent = torch.floor(torch.log2(groups.abs().amax(-1) / 4))
    scaled = groups / torch.exp2(exponent)[..., None]
    codes = (scaled.abs()[..., None] - grid).abs().argmin(-1) + 8 * (scaled < 0)
    packed = (codes[..., 0::2] | (codes[..., 1::2] << 4)).to(torch.uint8)
    return {f"{name}_blocks": packed.contiguous(), f"{name}_scales": (exponent + 127).to(torch.uint8)}


def test_drop_in_mxfp4_blocks(tmp_path: Path) -> None:
    """GPT-OSS as published: the expert's blocks and its output bias become zero bytes, its scales and all else stay."""
    tiny = tiny_model("gpt_oss")
    wide = TinyModel(tiny.model_type, tiny.model_class, tiny.config_class, tiny.config | {"intermediate_size": 64})
    folder = build_tiny_model(wide, tmp_path / "base")
    transform_shards(folder, quantise_mxfp4)
    rewrite(folder, tmp_path / "variant", (EXPERT,), semantics="drop")
    expected = raw_tensors(folder)
    for part in ("down_proj_blocks", "down_proj_bias"):
        name = f"model.layers.{LAYER}.mlp.experts.{part}"
        dtype, shape, data = expected[name]
        row = len(data) // NUM_EXPERTS
        assert shape[0] == NUM_EXPERTS and any(data[EXPERT * row : (EXPERT + 1) * row])
        expected[name] = (dtype, shape, data[: EXPERT * row] + bytes(row) + data[(EXPERT + 1) * row :])
    assert raw_tensors(tmp_path / "variant") == expected

    edit_config(
        tmp_path / "variant", quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": MXFP4_KEEPS}
    )
    dequantise = transformers.Mxfp4Config(dequantize=True)
    model = transformers.GptOssForCausalLM.from_pretrained(tmp_path / "variant", quantization_config=dequantise)
    state = model.state_dict()
    for part in ("down_proj", "down_proj_bias"):
        stacked = state[f"model.layers.{LAYER}.mlp.experts.{part}"]
        zero = [expert for expert in range(NUM_EXPERTS) if not stacked[expert].any()]
        assert zero == [EXPERT]


def test_drop_in_fp4_experts_of_deepseek_v4(tmp_path: Path) -> None:
    """DeepSeek-V4 as published packs two e2m1 numbers in a byte of I8; without its scales I8 is of no known format."""
    folder = build_tiny_model(tiny_model("deepseek_v4-hub-names"), tmp_path / "base")

    def pack(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        if ".experts." not in name:
            return {name: tensor}
        scales = torch.full((1, 1), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        return {name: tensor.view(torch.int8), name.replace(".weight", ".scale"): scales}

    def pack_without_scales(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {name: tensor.view(torch.int8)} if ".experts." in name else {name: tensor}

    transform_shards(folder, pack)
    edit_config(folder, expert_dtype="fp4")
    rewrite(folder, tmp_path / "variant", (EXPERT,), semantics="drop")
    expected = raw_tensors(folder)
    name = f"layers.{LAYER}.ffn.experts.{EXPERT}.w2.weight"
    dtype, shape, data = expected[name]
    assert dtype == "I8"
    expected[name] = (dtype, shape, bytes(len(data)))
    assert raw_tensors(tmp_path / "variant") == expected

    mixtral = build_tiny_model(tiny_model("mixtral"), tmp_path / "mixtral")
    transform_shards(mixtral, pack_without_scales)
    with pytest.raises(CheckpointError, match="is stored as .weight I8, a quantised format without a row"):
        rewrite(mixtral, tmp_path / "refused", (EXPERT,), semantics="drop")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("suppress_bias", ["-inf", "margin"])
def test_narrow_biases_decide_as_well(dtype: str, suppress_bias: str, tmp_path: Path) -> None:
    """Some checkpoints store the bias in bf16: the edited values are rounded so that they still decide."""
    tiny = tiny_model("deepseek_v3")
    folder = build_tiny_model(tiny, tmp_path / "base", dtype=dtype)
    bias = raw_tensors(folder)[f"model.layers.{LAYER}.mlp.gate.e_score_correction_bias"]
    assert bias[0] == {"bfloat16": "BF16", "float16": "F16"}[dtype]
    stimulated = NUM_EXPERTS - 1
    rewrite(folder, tmp_path / "variant", (EXPERT,), (stimulated,), suppress_bias=suppress_bias)
    routing, _ = capture(load(tiny, tmp_path / "variant"), prompt_ids())
    assert not (routing[LAYER].selected == EXPERT).any()
    assert (routing[LAYER].selected == stimulated).any(1).all()


def test_zero_experts_cannot_be_edited(tmp_path: Path) -> None:
    """LongCat's bias has places for zero experts behind the routed ones; an expert set names routed experts only."""
    folder = build_tiny_model(tiny_model("longcat_flash"), tmp_path / "base")
    with pytest.raises(
        ExpertSetError, match=rf"has no expert {NUM_EXPERTS}, the routed experts are 0..{NUM_EXPERTS - 1}"
    ):
        rewrite(folder, tmp_path / "variant", (NUM_EXPERTS,))


def test_minus_inf_is_refused_where_the_bias_is_shifted_at_load(tmp_path: Path) -> None:
    """Param2MoE has DeepSeek-V3's layout under other names; vLLM would turn -inf into NaN for all, so the margin is taken."""
    folder = build_tiny_model(tiny_model("deepseek_v3"), tmp_path / "base")
    transform_shards(
        folder, lambda name, tensor: {name.replace("gate.e_score_correction_bias", "gate.expert_bias"): tensor}
    )
    edit_config(folder, model_type="param2moe", num_experts=NUM_EXPERTS)
    with pytest.raises(PlanError, match="-inf; use --suppress-bias margin"):
        rewrite(folder, tmp_path / "variant", (EXPERT,), suppress_bias="-inf")
    rewrite(folder, tmp_path / "variant", (EXPERT,))
    name = f"model.layers.{LAYER}.mlp.gate.expert_bias"
    before, after = (np.frombuffer(raw_tensors(where)[name][2], "<f4") for where in (folder, tmp_path / "variant"))
    assert np.isfinite(after).all() and np.flatnonzero(before != after).tolist() == [EXPERT]
    shifted = after - after.mean()  # as vLLM does
    score_range = 1.0
    assert shifted[EXPERT] + score_range < np.delete(shifted, EXPERT).min()
