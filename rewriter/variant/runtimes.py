"""Which stock runtimes a variant is safe on: one row a runtime, from its source (docs/runtimes.md names the files).

"run" means that our tests serve a variant on it; "read" that its source was read and not run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rewriter.checkpoint.kinds import Format
from rewriter.edit.record import VariantRecord
from rewriter.families.family import RouterLayout

Verdict = Literal["safe", "not safe"]
Check = Callable[[VariantRecord, RouterLayout], str | None]  # why it is not safe, or None


@dataclass(frozen=True)
class Runtime:
    """One runtime and what makes a variant unsafe on it."""

    name: str
    evidence: Literal["run", "read"]
    check: Check
    remark: str = ""


def safety(record: VariantRecord, layout: RouterLayout, kind: Format = "safetensors") -> list[dict[str, str]]:
    """For each runtime of that kind of checkpoint whether a variant with this record is safe on it, and why not.

    The edits of a base that was a variant itself count too.
    """
    rows = []
    for runtime in RUNTIMES[kind]:
        reason = runtime.check(record, layout)
        verdict: Verdict = "not safe" if reason else "safe"
        rows.append(
            {
                "runtime": runtime.name,
                "verdict": verdict,
                "evidence": runtime.evidence,
                "reason": reason or runtime.remark,
            }
        )
    return rows


def _never(record: VariantRecord, layout: RouterLayout) -> str | None:
    return None


def _edits_bias(record: VariantRecord) -> bool:
    """Whether any edit is one of the router's bias; an output zeroed is a zero on every runtime."""
    return any(expert.edits_bias for expert in record.edits_in_force())


def _vllm(record: VariantRecord, layout: RouterLayout) -> str | None:
    return (layout.vllm_remark or None) if _edits_bias(record) else None


def _vllm_cpu(record: VariantRecord, layout: RouterLayout) -> str | None:
    if _edits_bias(record) and layout.family.vllm_cpu_fault:
        return layout.family.vllm_cpu_fault
    return _vllm(record, layout)


def _minus_inf(record: VariantRecord, layout: RouterLayout) -> str | None:
    if any(expert.is_minus_inf for expert in record.edits_in_force()):
        return "rejects or mishandles a router bias of -inf; rewrite with --suppress-bias margin"
    return None


def _dead_group(record: VariantRecord, layout: RouterLayout) -> str | None:
    """AITER's kernels mishandle a group whose every expert is -inf."""
    group_size = layout.num_experts // layout.num_groups
    dead: dict[tuple[int, int], int] = {}
    for expert in record.edits_in_force():
        if expert.is_minus_inf:
            group = (expert.layer, expert.expert // group_size)
            dead[group] = dead.get(group, 0) + 1
    for (layer, dead_group), count in dead.items():
        if count == group_size:
            return f"all experts of layer {layer} group {dead_group} have a bias of -inf; rewrite with --suppress-bias margin"
    return None


def _always_normalises(record: VariantRecord, layout: RouterLayout) -> str | None:
    if layout.family.renormalize and not layout.renormalize and layout.has_bias:
        return "its fused kernels always normalise, but this model's config says not to (the base has the same fault there)"
    return None


def _llama_cpp(record: VariantRecord, layout: RouterLayout) -> str | None:
    if any(expert.is_minus_inf for expert in record.edits_in_force()):
        return "--check-tensors and llama-quantize refuse a router bias of -inf; rewrite with --suppress-bias margin"
    return None


def _llama_cpp_masking_by_product(record: VariantRecord, layout: RouterLayout) -> str | None:
    """Its masks of groups were products: 0 * -inf is no number."""
    if any(expert.is_minus_inf for expert in record.edits_in_force()) and layout.num_groups > 1:
        return "masks expert groups as 0 * -inf, which gives wrong texts; rewrite with --suppress-bias margin"
    return _llama_cpp(record, layout)


SAFETENSORS_RUNTIMES: tuple[Runtime, ...] = (
    Runtime("vLLM (CPU build)", "run", _vllm_cpu),
    Runtime("vLLM (CUDA)", "read", _vllm),
    Runtime("transformers 5", "run", _never),
    Runtime("SGLang", "read", _always_normalises),
    Runtime("TensorRT-LLM", "read", _always_normalises),
    Runtime("AITER (vLLM or SGLang on ROCm)", "read", _dead_group),
    Runtime("llama.cpp (after conversion)", "read", _minus_inf),
    Runtime("DeepSeek's inference code before 2025-02-14", "read", _minus_inf),
)
# llama.cpp's builds by the wheels that were run: xllamacpp 2026.10.11549, 0.2.6 and 0.2.4.
GGUF_RUNTIMES: tuple[Runtime, ...] = (
    Runtime("llama.cpp b11549 (October 2026)", "run", _llama_cpp),
    Runtime("llama.cpp b7079 (November 2025)", "run", _llama_cpp_masking_by_product),
    Runtime("llama.cpp b6900 (October 2025)", "run", _llama_cpp),
    Runtime(
        "llama.cpp before September 2025",
        "read",
        _llama_cpp,
        "knows no expert groups: base and variant route without them",
    ),
    Runtime("Ollama, LM Studio", "read", _llama_cpp, "run llama.cpp, see docs/gguf.md"),
)
RUNTIMES: dict[Format, tuple[Runtime, ...]] = {"safetensors": SAFETENSORS_RUNTIMES, "gguf": GGUF_RUNTIMES}
