"""The storage formats of weight matrices: which tensors one is made of, which of them must hold what for it to be zero, and by
which of them it is scaled.

A format is told from the tensors beside the weight, not from config.json, which some uploads leave out or stale. Adding a
format is adding a row here; the rewriter knows none by name elsewhere. A matrix is zero where its codes mean zero, which
leaves its scales as they are, or, where codes have a zero point or an order of their own, where its scales are zero.
"""

from dataclasses import dataclass

from rewriter.checkpoint.gguf.types import ZERO_FILL_TYPES

FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
FLOATS_8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
EXPONENTS = frozenset({"U8", "F8_E8M0"})  # a power of two a byte, as e8m0
SCALES = FLOATS | EXPONENTS | FLOATS_8
BYTES = frozenset({"U8", "I8"})
WORDS = frozenset({"I32", "U32"})
ANY: frozenset[str] = frozenset()  # no expectation of the data type

# What may lie beside a weight in every format without a say in what its codes come to: ranges of the activations.
ACTIVATIONS = frozenset(
    {
        *(".input_scale", ".input_global_scale", ".input_zero_point", ".activation_scale", ".pre_quant_scale"),
        *("_input_scale", "_activation_scale"),
    }
)
# The output's own bias, which would survive the zeroing of the matrix alone.
BIASES = frozenset({".bias", "_bias"})


@dataclass(frozen=True)
class WeightFormat:
    """How one format stores a weight matrix.

    Suffixes follow the module's name, `...down_proj` for `...down_proj.weight`; where experts are stacked in one parameter
    [E, ...] they follow the parameter's name, as `_scale_inv` in `...experts.down_proj_scale_inv`.
    """

    name: str
    source: str  # where the meaning of the codes was read, or the library that a test decodes it with
    tensors: dict[str, frozenset[str]]  # suffix -> data types; all of them must be there
    zeroed: str | None = None  # suffix of the tensor that is written; None where the format is refused
    # Suffix of the code book [16] F32 whose entry of zero tells the code to write; None where bytes of zero are zero.
    code_book: str | None = None
    further: tuple[str, ...] = ()  # suffixes that may be there as well
    refused: str = ""  # why the format cannot be zeroed
    # Suffixes of tensors that every number of the weight is a product with, itself among them where it holds plain numbers;
    # the first that is there is what a scaled output is written into. Empty where there is no such tensor.
    scales: tuple[str, ...] = ()
    scale_divides: bool = False  # the weight is the codes divided by that tensor


def _bitsandbytes_4bit(name: str, kind: str, weight: str) -> WeightFormat:
    """NF4 or FP4: two codes a byte, each an index into a code book; the absmax may itself be quantised, with an offset."""
    return WeightFormat(
        name=name,
        source="bitsandbytes 0.50 functional.py (QuantState, dequantize_4bit)",
        tensors={
            weight: ANY,  # bnb_4bit_quant_storage may be a wider type; the bytes are the same
            f"{weight}.absmax": ANY,
            f"{weight}.quant_map": frozenset({"F32"}),
            f"{weight}.quant_state.bitsandbytes__{kind}": ANY,
        },
        zeroed=weight,
        code_book=f"{weight}.quant_map",
        scales=(f"{weight}.absmax",),
        further=(f"{weight}.nested_absmax", f"{weight}.nested_quant_map"),
    )


def _refused(name: str, *suffixes: str, why: str = "") -> WeightFormat:
    """A format that is known by its tensors and not zeroed."""
    reason = why or "which of its bytes mean zero is not known here"
    return WeightFormat(name=name, source="", tensors=dict.fromkeys(suffixes, ANY), refused=reason)


WEIGHT_FORMATS: tuple[WeightFormat, ...] = (
    _bitsandbytes_4bit("bitsandbytes NF4", "nf4", ".weight"),
    _bitsandbytes_4bit("bitsandbytes FP4", "fp4", ".weight"),
    _bitsandbytes_4bit("bitsandbytes NF4, experts stacked", "nf4", ""),
    _bitsandbytes_4bit("bitsandbytes FP4, experts stacked", "fp4", ""),
    WeightFormat(
        name="bitsandbytes int8",
        source="bitsandbytes 0.50 functional.py (int8_vectorwise_dequant)",
        tensors={".weight": frozenset({"I8"}), ".SCB": FLOATS},
        zeroed=".weight",
        further=(".weight_format",),
        scales=(".SCB",),
    ),
    WeightFormat(
        name="ModelOpt NVFP4",
        source="vllm/model_executor/layers/quantization/modelopt.py; two e2m1 numbers a byte",
        tensors={".weight": frozenset({"U8"}), ".weight_scale": FLOATS_8, ".weight_scale_2": FLOATS},
        zeroed=".weight",
        scales=(".weight_scale_2",),
    ),
    WeightFormat(
        name="ModelOpt NVFP4, experts stacked",
        source="vllm/model_executor/models/llama4.py (down_proj_weight_scale); two e2m1 numbers a byte",
        tensors={"": frozenset({"U8"}), "_weight_scale": FLOATS_8, "_weight_scale_2": FLOATS},
        zeroed="",
        scales=("_weight_scale_2",),
    ),
    WeightFormat(
        name="compressed-tensors NVFP4",
        source="compressed_tensors 0.17 compressors/nvfp4",
        tensors={
            ".weight_packed": frozenset({"U8"}),
            ".weight_scale": FLOATS_8,
            ".weight_global_scale": FLOATS,
        },
        zeroed=".weight_packed",
        scales=(".weight_global_scale",),
        scale_divides=True,
    ),
    WeightFormat(
        name="compressed-tensors MXFP4",
        source="compressed_tensors 0.17 compressors/mxfp4",
        tensors={".weight_packed": frozenset({"U8"}), ".weight_scale": EXPONENTS},
        zeroed=".weight_packed",
        scales=(".weight_scale",),
    ),
    WeightFormat(
        name="compressed-tensors packed integers",
        source="compressed_tensors 0.17 compressors/pack_quantized; codes of 1 to 8 bits with an offset",
        tensors={".weight_packed": WORDS, ".weight_scale": FLOATS},
        zeroed=".weight_scale",
        further=(".weight_shape", ".weight_zero_point", ".weight_g_idx"),
        scales=(".weight_scale",),
    ),
    WeightFormat(
        name="MXFP4 (OCP microscaling)",
        source="vllm/model_executor/layers/quantization/quark; two e2m1 numbers a byte, e8m0 scales",
        tensors={".weight": frozenset({"U8"}), ".weight_scale": EXPONENTS},
        zeroed=".weight",
        scales=(".weight_scale",),
    ),
    WeightFormat(
        name="MXFP4, experts stacked",
        source="transformers/integrations/mxfp4.py (convert_moe_packed_tensors)",
        tensors={"_blocks": frozenset({"U8"}), "_scales": EXPONENTS},
        zeroed="_blocks",
        scales=("_scales",),
    ),
    WeightFormat(
        name="DeepSeek FP4",
        source="vllm/models/deepseek_v4; two e2m1 numbers a byte, e8m0 scales",
        tensors={".weight": BYTES, ".scale": EXPONENTS},
        zeroed=".weight",
        scales=(".scale",),
    ),
    WeightFormat(
        name="int8 with zero points",
        source="compressed_tensors 0.17 compressors/naive_quantized",
        tensors={".weight": frozenset({"I8", "U8"}), ".weight_scale": FLOATS, ".weight_zero_point": ANY},
        zeroed=".weight_scale",
        scales=(".weight_scale",),
    ),
    WeightFormat(
        name="int8 (W8A8)",
        source="compressed_tensors 0.17 compressors/naive_quantized",
        tensors={".weight": frozenset({"I8"}), ".weight_scale": FLOATS},
        zeroed=".weight",
        further=(".weight_g_idx",),
        scales=(".weight_scale",),
    ),
    WeightFormat(
        name="GPTQ",
        source="vllm/model_executor/layers/quantization/auto_gptq.py; (code - zero point) x scale",
        tensors={".qweight": WORDS, ".scales": FLOATS, ".g_idx": ANY},
        zeroed=".scales",
        further=(".qzeros",),
        scales=(".scales",),
    ),
    WeightFormat(
        name="AWQ",
        source="vllm/model_executor/layers/quantization/auto_awq.py; (code - zero point) x scale",
        tensors={".qweight": WORDS, ".scales": FLOATS, ".qzeros": WORDS},
        zeroed=".scales",
        scales=(".scales",),
    ),
    WeightFormat(
        name="floating point",
        source="safetensors/src/tensor.rs; a scale, per block or for all, is a factor",
        tensors={".weight": FLOATS | FLOATS_8},
        zeroed=".weight",
        further=(".weight_scale_inv", ".weight_scale", ".scale"),
        scales=(".weight_scale_inv", ".weight_scale", ".scale", ".weight"),
    ),
    WeightFormat(
        name="floating point, experts stacked",
        source="safetensors/src/tensor.rs; a scale, per block or for all, is a factor",
        tensors={"": FLOATS | FLOATS_8},
        zeroed="",
        further=("_scale_inv", "_scale", "_weight_scale"),
        scales=("_scale_inv", "_scale", "_weight_scale", ""),
    ),
    WeightFormat(
        name="GGUF, experts stacked",
        source="llama.cpp: ggml/src/ggml-quants.c; in every type a block of zero bytes decodes to zeros",
        tensors={".weight": ZERO_FILL_TYPES},
        zeroed=".weight",
        further=(".scale",),
        scales=(".scale", ".weight"),
    ),
    _refused(
        "ModelOpt int4 or BitNet",
        ".weight",
        ".weight_scale",
        why="its tensors do not tell the two apart, and byte 0 is zero in one, minus one in the other",
    ),
    _refused("AQLM", ".codes", ".codebooks", ".scales", why="its codes are sums over code books without a zero"),
    _refused("EXL2", ".q_weight"),
    _refused("EXL3", ".trellis"),
    _refused("HQQ", ".W_q"),
    _refused("VPTQ", ".indices", ".centroids"),
    _refused("QuIP#", ".Qidxs"),
    _refused("Marlin", ".B", ".s", why="its codes are laid out for one kernel"),
    _refused("torchao", "._weight_qdata", why="its layout depends on the class named in the file's metadata"),
)
