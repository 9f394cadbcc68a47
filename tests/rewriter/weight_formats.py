"""Ways to store an expert's weight, each with what its own library or a slow reference makes of what is stored.

Legend: OUT outputs, IN inputs of the matrix; GROUP inputs that share a scale.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_json
from safetensors.torch import load_file, save_file

NUM_EXPERTS = 4
OUT, IN, GROUP = 64, 128, 32
MODULE = "model.layers.0.mlp.experts.{}.down_proj"
STACK = "model.layers.0.mlp.experts.down_proj"
CONFIG = {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 1,
    "num_experts": NUM_EXPERTS,
    "num_experts_per_tok": 2,
}
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
Tensors = dict[str, torch.Tensor]  # suffix -> tensor


@dataclass(frozen=True)
class Case:
    """A way to store a weight: what is written for each expert, and what its library makes of that."""

    name: str
    format: str
    encode: Callable[[torch.Tensor], Tensors]  # weight [OUT, IN] float32
    decode: Callable[[Tensors], torch.Tensor]  # -> [OUT, IN] float32


def bitsandbytes_4bit(kind: str, nested: bool) -> Case:
    def encode(weight: torch.Tensor) -> Tensors:
        functional = pytest.importorskip("bitsandbytes.functional")
        # 64 rows of 128 are 128 blocks of absmax, of which the nested state makes one block.
        codes, state = functional.quantize_4bit(
            weight.bfloat16(), quant_type=kind, compress_statistics=nested, blocksize=64
        )
        return {".weight": codes} | {f".weight.{name}": value for name, value in state.as_dict(packed=True).items()}

    def decode(stored: Tensors) -> torch.Tensor:
        functional = pytest.importorskip("bitsandbytes.functional")
        parts = {name.removeprefix(".weight."): value for name, value in stored.items() if name != ".weight"}
        state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
        return functional.dequantize_4bit(stored[".weight"], state).float()

    return Case(f"bnb-{kind}{'-nested' if nested else ''}", f"bitsandbytes {kind.upper()}", encode, decode)


def bitsandbytes_8bit() -> Case:
    def encode(weight: torch.Tensor) -> Tensors:
        largest = weight.abs().amax(dim=1)
        codes = (weight * 127 / largest[:, None]).round().to(torch.int8)
        return {".weight": codes, ".SCB": largest, ".weight_format": torch.zeros((), dtype=torch.uint8)}

    def decode(stored: Tensors) -> torch.Tensor:
        functional = pytest.importorskip("bitsandbytes.functional")
        return functional.int8_vectorwise_dequant(stored[".weight"], stored[".SCB"]).float()

    return Case("bnb-int8", "bitsandbytes int8", encode, decode)


def compressed(name: str, row: str, kind: str, **arguments: Any) -> Case:
    """A format of compressed-tensors, encoded and decoded by its compressor."""

    def compressor() -> tuple[Any, Any]:
        pytest.importorskip("compressed_tensors")
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments))
        return BaseCompressor.get_value_from_registry(kind), scheme

    def encode(weight: torch.Tensor) -> Tensors:
        made, scheme = compressor()
        group = arguments.get("group_size", IN)
        blocks = weight.reshape(OUT, IN // group, group)
        top = 6.0 if arguments.get("type") == "float" else 2.0 ** (arguments["num_bits"] - 1) - 1
        scale = blocks.abs().amax(dim=2) / top
        state = {"weight": weight, "weight_scale": scale}
        if kind == "nvfp4-pack-quantized":
            state["weight_global_scale"] = (448 / scale.max()).reshape(1)
            state["weight_scale"] = (scale * state["weight_global_scale"]).to(torch.float8_e4m3fn).float()
        if kind == "mxfp4-pack-quantized":
            state["weight_scale"] = torch.exp2(scale.log2().ceil())
        if not arguments.get("symmetric", True):
            low, high = blocks.amin(dim=2), blocks.amax(dim=2)
            state["weight_scale"] = (high - low) / (2 * top)
            state["weight_zero_point"] = (-low / state["weight_scale"] - top - 1).round().to(torch.int8)
        return {f".{name}": value for name, value in made.compress(state, scheme).items()}

    def decode(stored: Tensors) -> torch.Tensor:
        made, scheme = compressor()
        state = {name.removeprefix("."): value for name, value in stored.items()}
        return made.decompress(state, scheme)["weight"].float()

    return Case(name, row, encode, decode)


def e2m1(data: torch.Tensor) -> torch.Tensor:
    """Two numbers a byte [.., n] -> [.., 2n], the low half first."""
    data = data.view(torch.uint8).long()
    return E2M1[torch.stack([data & 15, data >> 4], dim=-1)].flatten(-2)


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def nvfp4_of_modelopt() -> Case:
    def encode(weight: torch.Tensor) -> Tensors:
        scales = torch.rand(OUT, IN // 16).to(torch.float8_e4m3fn)
        return {
            ".weight": random_bytes(OUT, IN // 2),
            ".weight_scale": scales,
            ".weight_scale_2": torch.tensor(0.01),
            ".input_scale": torch.tensor(0.5),
        }

    def decode(stored: Tensors) -> torch.Tensor:
        scales = stored[".weight_scale"].float() * stored[".weight_scale_2"]
        return e2m1(stored[".weight"]) * scales.repeat_interleave(16, dim=1)

    return Case("modelopt-nvfp4", "ModelOpt NVFP4", encode, decode)


def ocp_mxfp4(name: str, row: str, scale: str, codes: torch.dtype, exponents: torch.dtype) -> Case:
    """AMD Quark's and DeepSeek-V4's layout; a byte e of the scales stands for 2 ** (e - 127)."""

    def encode(weight: torch.Tensor) -> Tensors:
        powers = torch.randint(118, 124, (OUT, IN // GROUP), dtype=torch.uint8)
        return {".weight": random_bytes(OUT, IN // 2).view(codes), scale: powers.view(exponents)}

    def decode(stored: Tensors) -> torch.Tensor:
        powers = torch.exp2(stored[scale].view(torch.uint8).float() - 127)
        return e2m1(stored[".weight"]) * powers.repeat_interleave(GROUP, dim=1)

    return Case(name, row, encode, decode)


def integers(words: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    """Eight 4-bit codes of each 32-bit word [.., n] -> [.., 8n], `order` naming the place of each in the word."""
    return torch.stack([(words >> (4 * place)) & 15 for place in order], dim=-1).flatten(-2)


def awq() -> Case:
    """Codes packed along the outputs, interleaved; zero points packed alike."""

    def encode(weight: torch.Tensor) -> Tensors:
        return {
            ".qweight": random_bytes(IN, OUT // 2).view(torch.int32),
            ".qzeros": random_bytes(IN // GROUP, OUT // 2).view(torch.int32),
            ".scales": torch.rand(IN // GROUP, OUT).half() + 0.1,
        }

    def decode(stored: Tensors) -> torch.Tensor:
        order = (0, 4, 1, 5, 2, 6, 3, 7)
        codes = integers(stored[".qweight"], order) - integers(stored[".qzeros"], order).repeat_interleave(GROUP, dim=0)
        return (codes * stored[".scales"].float().repeat_interleave(GROUP, dim=0)).T

    return Case("awq", "AWQ", encode, decode)


def gptq(permuted: bool) -> Case:
    """Codes packed along the inputs; zero points, less one, along the outputs; g_idx says each input's group."""

    def encode(weight: torch.Tensor) -> Tensors:
        groups = torch.arange(IN) // GROUP
        return {
            ".qweight": random_bytes(IN // 2, OUT).view(OUT, IN // 8, 4).view(torch.int32).reshape(IN // 8, OUT),
            ".qzeros": random_bytes(IN // GROUP, OUT // 2).view(torch.int32),
            ".scales": torch.rand(IN // GROUP, OUT).half() + 0.1,
            ".g_idx": (groups[torch.randperm(IN)] if permuted else groups).int(),
            ".bias": torch.rand(OUT).half() + 0.1,
        }

    def decode(stored: Tensors) -> torch.Tensor:
        order = tuple(range(8))
        codes = integers(stored[".qweight"].T.contiguous(), order)  # [OUT, IN]
        groups = stored[".g_idx"].long()
        zeros = integers(stored[".qzeros"], order).T[:, groups] + 1
        weight = (codes - zeros) * stored[".scales"].float().T[:, groups]
        return torch.cat([weight, stored[".bias"].float()[:, None]], dim=1)  # the bias is part of the output

    return Case(f"gptq{'-act-order' if permuted else ''}", "GPTQ", encode, decode)


def fp8_blocks() -> Case:
    def encode(weight: torch.Tensor) -> Tensors:
        return {
            ".weight": weight.to(torch.float8_e4m3fn),
            ".weight_scale_inv": torch.rand(OUT // GROUP, IN // GROUP) + 0.1,
        }

    def decode(stored: Tensors) -> torch.Tensor:
        scales = stored[".weight_scale_inv"].repeat_interleave(GROUP, dim=0).repeat_interleave(GROUP, dim=1)
        return stored[".weight"].float() * scales

    return Case("fp8-blocks", "floating point", encode, decode)


CASES = (
    *(bitsandbytes_4bit(kind, nested) for kind in ("nf4", "fp4") for nested in (False, True)),
    bitsandbytes_8bit(),
    compressed("ct-int4", "compressed-tensors packed integers", "pack-quantized", num_bits=4, strategy="group",
               group_size=GROUP),
    compressed("ct-int4-asymmetric", "compressed-tensors packed integers", "pack-quantized", num_bits=4,
               strategy="group", group_size=GROUP, symmetric=False),
    compressed("ct-int8-packed", "compressed-tensors packed integers", "pack-quantized", num_bits=8,
               strategy="channel"),
    compressed("ct-nvfp4", "compressed-tensors NVFP4", "nvfp4-pack-quantized", num_bits=4, type="float",
               strategy="tensor_group", group_size=16),
    compressed("ct-mxfp4", "compressed-tensors MXFP4", "mxfp4-pack-quantized", num_bits=4, type="float",
               strategy="group", group_size=GROUP),
    compressed("ct-w8a8", "int8 (W8A8)", "int-quantized", num_bits=8, strategy="channel"),
    compressed("ct-w8a8-asymmetric", "int8 with zero points", "int-quantized", num_bits=8, strategy="channel",
               symmetric=False),
    nvfp4_of_modelopt(),
    ocp_mxfp4("quark-mxfp4", "MXFP4 (OCP microscaling)", ".weight_scale", torch.uint8, torch.uint8),
    ocp_mxfp4("deepseek-fp4", "DeepSeek FP4", ".scale", torch.int8, torch.float8_e8m0fnu),
    awq(),
    gptq(permuted=False),
    gptq(permuted=True),
    fp8_blocks(),
)  # fmt: skip


def write_base(folder: Path, tensors: Tensors) -> Path:
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    save_file(tensors, folder / "model.safetensors")
    return folder


def expert_tensors(folder: Path, expert: int) -> Tensors:
    prefix = MODULE.format(expert)
    tensors = load_file(folder / "model.safetensors")
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def same(first: Tensors, second: Tensors) -> bool:
    def raw(tensor: torch.Tensor) -> bytes:
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

    return first.keys() == second.keys() and all(raw(first[name]) == raw(second[name]) for name in first)
