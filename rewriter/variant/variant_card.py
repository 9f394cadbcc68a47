"""The model card of a variant, from its plan."""

import shlex
from collections.abc import Callable
from pathlib import Path

from rewriter import __version__
from rewriter.checkpoint.kinds import Format, Model
from rewriter.checkpoint.remote_code import names_remote_code
from rewriter.edit.plan import Plan
from rewriter.variant.card import CardFacts, EditedExpert, build_card

# From here on one GPU does not hold the weights, and the serve line shards them over the usual eight.
ONE_GPU_BYTES = 70 * 10**9


def variant_card(plan: Plan, checkpoint: Model, target: Path) -> str:
    """The variant's model card."""
    record = plan.record
    facts = CardFacts(
        name=target.name,
        semantics=record.semantics,
        experts=[EditedExpert(one.layer, one.expert, one.action, str(one.value)) for one in record.experts],
        serve_line=serve_line(f"./{target.name}", checkpoint),
        tool_version=__version__,
        base_model=record.base_model,
        base_revision=record.base_revision,
        behavior=record.behavior,
        model_type=plan.config.get("model_type") or plan.config.get("general.architecture"),
        renormalize=plan.renormalizes,
        notes=[*plan.notes, record.renormalization],
    )
    return build_card(facts, base_card=checkpoint.card())


def serve_line(target: str, checkpoint: Model) -> str:
    """The command that serves a variant of this base from the folder `target` with an unmodified runtime."""
    return SERVE_LINES[checkpoint.format](target, checkpoint)


def _vllm_line(target: str, checkpoint: Model) -> str:
    parts = ["vllm", "serve", shlex.quote(target)]
    family = checkpoint.layout.family
    own_config = family.config_by_remote_code and "auto_map" in checkpoint.config
    if own_config or names_remote_code(checkpoint.folder, "tokenizer_config.json"):
        parts.append("--trust-remote-code")
    if sum(map(checkpoint.shard_size, checkpoint.shards)) > ONE_GPU_BYTES:
        parts.append("--tensor-parallel-size 8")
    return " ".join(parts)


def _llama_cpp_line(target: str, checkpoint: Model) -> str:
    return f"llama-server -m {shlex.quote(f'{target}/{checkpoint.shards[0]}')}"


SERVE_LINES: dict[Format, Callable[[str, Model], str]] = {"safetensors": _vllm_line, "gguf": _llama_cpp_line}
