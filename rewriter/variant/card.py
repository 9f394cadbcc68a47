"""Writes the model card of a variant: what was edited, what that means, how to serve it, what was measured.

All but `variant_card` and the command that serves it is text in, text out. The front matter follows the Hub's model card metadata
(https://huggingface.co/docs/hub/model-cards); it is written with PyYAML directly because importing
huggingface_hub's card classes takes half a second, and the tests check each card with those classes.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rewriter import __version__
from rewriter.checkpoint.kinds import Format, Model
from rewriter.checkpoint.remote_code import names_remote_code
from rewriter.edit.plan import Plan
from rewriter.edit.record import VariantRecord
from rewriter.semantics import GAIN_MEANING, MEANINGS, PARTIAL_MEANING, SHIFTED_MEANING, SUPPRESS, Action, Semantics
from rewriter.variant.card_parts import RESULTS_BLOCK, SAFETY_BLOCK, SERVE_BLOCK, block, code, join_card, split_card
from rewriter.variant.markdown import inline, inline_code, sentence

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

NUM_TABLE_ROWS = 200
"""Experts listed one by one; the rest is counted, since the variant's record holds them all."""

# Facts about the base that hold for a variant too. Its own scores (model-index, metrics), widgets and the names of its
# quantiser or successor say something about the base's weights or page only, so they stay behind.
CARRIED_KEYS = (
    "license",
    "license_name",
    "license_link",
    "language",
    "library_name",
    "pipeline_tag",
    "tags",
    "datasets",
    "extra_gated_prompt",
    "extra_gated_fields",
    "extra_gated_heading",
    "extra_gated_description",
    "extra_gated_button_content",
    "extra_gated_eu_disallowed",
)

# From here on one GPU does not hold the weights, and the serve line shards them over the usual eight.
ONE_GPU_BYTES = 70 * 10**9

RESULTS_NOT_MEASURED = (
    "Not measured. No evaluation of this variant is attached: neither how often its behavior differs from the base's, "
    "nor what random edits of the same size do, nor its quality on other tasks."
)
SAFETY_NOT_MEASURED = (
    "Not measured. Experts that decide on one kind of refusal may also decide on refusals that protect people (from "
    "violence, self-harm, abuse, fraud). Until it is measured, expect that this variant refuses less of those too, and "
    "put safeguards in front of it."
)


@dataclass(frozen=True)
class EditedExpert:
    """One row of the card's table.

    layer is the model layer (the number in the tensor name), action is "suppress" or "stimulate", value is what was
    written ("-inf", "12.5", "zeros"), resonance is the score that the expert was chosen by, where known; bias_shift is what was
    added to the base's bias, where the expert is selected less often; factor is what its output was multiplied with, where it is
    dropped in part or stimulated with a gain.
    """

    layer: int
    expert: int
    action: Action
    value: str
    resonance: float | None = None
    bias_shift: float | None = None
    factor: float | None = None


@dataclass(frozen=True)
class CardFacts:
    """What a variant's card says of it.

    base_model is the base's Hub id, or None where only a local folder is known; base_revision its commit. renormalize
    tells whether the selected experts' weights are normalised (None where the family has no such flag); notes are
    sentences on anything a reader must know, such as an expert list whose layer convention its source leaves open.
    """

    name: str
    semantics: Semantics
    experts: Sequence[EditedExpert]
    serve_line: str
    tool_version: str
    base_model: str | None = None
    base_revision: str | None = None
    behavior: str | None = None
    model_type: str | None = None
    renormalize: bool | None = None
    provenance: str | None = None
    notes: Sequence[str] = ()
    record_place: str = "the `mote` block of config.json"
    library: str | None = "transformers"


def variant_card(plan: Plan, checkpoint: Model, target: Path) -> str:
    """The variant's model card."""
    record = plan.record
    facts = CardFacts(
        name=target.name,
        semantics=record.semantics,
        experts=[
            EditedExpert(
                one.layer, one.expert, one.action, str(one.value), bias_shift=one.bias_shift, factor=one.factor
            )
            for one in record.experts
        ],
        serve_line=serve_line(f"./{target.name}", checkpoint),
        tool_version=__version__,
        base_model=record.base_model,
        base_revision=record.base_revision,
        behavior=record.behavior,
        model_type=plan.config.get("model_type") or plan.config.get("general.architecture"),
        renormalize=plan.renormalizes,
        notes=[*plan.notes, record.renormalization],
        record_place=RECORD_PLACES[checkpoint.format](record),
        library=LIBRARIES[checkpoint.format],
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
LIBRARIES: dict[Format, str | None] = {"safetensors": "transformers", "gguf": "gguf"}
"""What the Hub calls the library of a variant whose base's card names none."""
RECORD_PLACES: dict[Format, Callable[[VariantRecord], str]] = {
    "safetensors": lambda record: CardFacts.record_place,
    "gguf": lambda record: "`mote.record` of the first file's metadata" if record.stamped else "mote.json",
}
"""Where a variant's record stands, for people."""


def build_card(
    facts: CardFacts, base_card: str | None = None, results: str | None = None, safety: str | None = None
) -> str:
    """Write a variant's model card.

    Args:
        facts: what was done.
        base_card: text of the base's README.md; licence, language, tags and access terms are carried over from it.
        results: Markdown of mote-eval, or None: the card then says that nothing was measured.
        safety: Markdown on refusals that protect people, or None: the card then says that it was not measured.
    """
    notes = list(facts.notes)
    try:
        base_data, _ = split_card(base_card or "")
    except ValueError as error:
        base_data = {}
        notes.append(f"The metadata of the base's card could not be read ({error}); its licence must be added by hand.")
    sections = [
        f"# {inline(facts.name)}",
        _summary(facts),
        "## What was edited",
        expert_table(facts.experts, facts.record_place),
        *([_renormalization(facts.renormalize)] if facts.renormalize is not None else []),
        "## What that means",
        *_meanings(facts),
        "## Serve it",
        block(SERVE_BLOCK, code(facts.serve_line)),
        "No plugin and no patched runtime is needed.",
        "## Results",
        block(RESULTS_BLOCK, results or RESULTS_NOT_MEASURED),
        "## Refusals that protect people",
        block(SAFETY_BLOCK, safety or SAFETY_NOT_MEASURED),
        *(["## Notes", "\n".join(f"- {sentence(note)}" for note in notes)] if notes else []),
        "## Licence and terms",
        licence_words(base_data),
    ]
    return join_card(
        front_matter(base_data, [facts.semantics], facts.base_model, facts.library), "\n\n".join(sections) + "\n"
    )


def front_matter(
    base_data: Mapping[str, Any], semantics: Iterable[Semantics], base_model: str | None, library: str | None
) -> dict[str, Any]:
    """Return a variant's front matter: the base's terms and tags, and where the variant comes from.

    library: what the Hub is to take it for where the base's card does not say.
    """
    data = {key: base_data[key] for key in CARRIED_KEYS if base_data.get(key) is not None}
    data["tags"] = list(
        dict.fromkeys([*data.get("tags", []), "mote", "mixture-of-experts", "expert-routing", *map(_tag, semantics)])
    )
    if library is not None:
        data.setdefault("library_name", library)
    data.setdefault("pipeline_tag", "text-generation")
    if base_model is not None and HUB_ID.fullmatch(base_model):
        data["base_model"] = base_model
        data["base_model_relation"] = "finetune"
    return data


def _tag(semantics: Semantics) -> str:
    """A word for a semantics that the Hub takes as a tag: `reroute-centroid`."""
    return semantics.replace(" (", "-").removesuffix(")")


def expert_table(experts: Sequence[EditedExpert], record_place: str = CardFacts.record_place) -> str:
    """Write the Markdown table of edited experts, with a resonance column where any is known."""
    with_resonance = any(expert.resonance is not None for expert in experts)
    head = ["layer", "expert", "action", "value written", *(["resonance"] if with_resonance else [])]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for expert in experts[:NUM_TABLE_ROWS]:
        shift = "" if expert.bias_shift is None else f" (the base's {expert.bias_shift:+g})"
        scaled = "" if expert.factor is None else f", output x {expert.factor:.6g}"
        row = [str(expert.layer), str(expert.expert), expert.action, f"`{expert.value}`{shift}{scaled}"]
        if with_resonance:
            row.append("" if expert.resonance is None else f"{expert.resonance:.4g}")
        lines.append("| " + " | ".join(row) + " |")
    if len(experts) > NUM_TABLE_ROWS:
        lines.append(f"\n{len(experts) - NUM_TABLE_ROWS} more are listed in {record_place}.")
    layers = "Layers are model layers, numbered as in the tensor names."
    return "\n".join(lines) + f"\n\n{layers}"


def _meanings(facts: CardFacts) -> list[str]:
    """What the edit means: of its semantics, and of finite shifts, strengths and gains where there are any."""
    is_shifted = [one.bias_shift is not None for one in facts.experts]
    is_partial = [one.action == SUPPRESS and one.factor is not None for one in facts.experts]
    are_all_special = all(shifted or partial for shifted, partial in zip(is_shifted, is_partial, strict=True))
    return [
        *([MEANINGS[facts.semantics]] if not are_all_special or not is_shifted else []),
        *([SHIFTED_MEANING] if any(is_shifted) else []),
        *([PARTIAL_MEANING] if any(is_partial) else []),
        *([GAIN_MEANING] if any(one.action != SUPPRESS and one.factor is not None for one in facts.experts) else []),
    ]


def _summary(facts: CardFacts) -> str:
    base = _base_link(facts)
    num_suppressed = sum(expert.action == SUPPRESS for expert in facts.experts)
    counted = (("suppressed", num_suppressed), ("stimulated", len(facts.experts) - num_suppressed))
    counts = " and ".join(f"{action} {_experts(count)}" for action, count in counted if count)
    behavior = f" The experts were chosen for the behavior {inline_code(facts.behavior)}." if facts.behavior else ""
    provenance = f" {sentence(facts.provenance)}" if facts.provenance else ""
    return (
        f"A variant of {base} in which MoTE {facts.tool_version} {counts or 'changed no experts'}. Nothing was trained: "
        f"apart from the values below, every tensor is bit-identical to the base's.{behavior}{provenance}"
    )


def _experts(count: int) -> str:
    return f"{count} routed expert" + ("" if count == 1 else "s")


def _base_link(facts: CardFacts) -> str:
    if facts.base_model is None:
        return "a local checkpoint" + (f" of type {inline_code(facts.model_type)}" if facts.model_type else "")
    revision = f" at revision {inline_code(facts.base_revision)}" if facts.base_revision else ""
    # The edited base's own record may name a base, and it may be a stranger's.
    if not HUB_ID.fullmatch(facts.base_model):
        return f"{inline(facts.base_model)}{revision}"
    return f"[{facts.base_model}](https://huggingface.co/{facts.base_model}){revision}"


def _renormalization(renormalize: bool) -> str:
    if renormalize:
        return "The weights of the selected experts are normalised to sum to one."
    return "The weights of the selected experts are not normalised."


def licence_words(base_data: Mapping[str, Any]) -> str:
    """The base's licence and terms in words, from its card's front matter."""
    licence = base_data.get("license_name") or base_data.get("license")
    lines = [
        f"The licence of the base ({inline(licence)}) applies to this variant."
        if licence
        else "The base's card names no licence; the terms of the base apply to this variant."
    ]
    if base_data.get("license_link"):
        lines.append(f"Its text: {inline(base_data['license_link'])}.")
    if any(key.startswith("extra_gated") for key in base_data):
        lines.append("The base asks for agreement to terms of access; they are carried over in this card's metadata.")
    return " ".join(lines)
