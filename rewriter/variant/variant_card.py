"""The model card of a variant, from its plan."""

from pathlib import Path
from typing import Any

from rewriter import __version__
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.plan import Plan
from rewriter.variant.card import CardFacts, EditedExpert, build_card

CARD_NAME = "README.md"
# From here on one GPU does not hold the weights, and the serve line shards them over the usual eight.
ONE_GPU_BYTES = 70 * 10**9


def variant_card(plan: Plan, checkpoint: Checkpoint, base: Path, target: Path) -> str:
    """The variant's model card."""
    record = plan.record
    size_bytes = sum(map(checkpoint.shard_size, checkpoint.shards))
    facts = CardFacts(
        name=target.name,
        semantics=record.semantics,
        experts=[EditedExpert(one.layer, one.expert, one.action, str(one.value)) for one in record.experts],
        serve_line=serve_line(f"./{target.name}", plan.config, size_bytes),
        tool_version=__version__,
        base_model=record.base_model,
        base_revision=record.base_revision,
        behavior=record.behavior,
        model_type=plan.config.get("model_type"),
        renormalize=plan.renormalizes,
        notes=[*plan.notes, record.renormalization],
    )
    source = base / CARD_NAME
    return build_card(facts, base_card=source.read_text("utf-8", errors="replace") if source.exists() else None)


def serve_line(target: str, config: dict[str, Any], size_bytes: int) -> str:
    """The command that serves the variant with unmodified vLLM."""
    parts = ["vllm", "serve", target]
    if "auto_map" in config:
        parts.append("--trust-remote-code")
    if size_bytes > ONE_GPU_BYTES:
        parts.append("--tensor-parallel-size 8")
    return " ".join(parts)
