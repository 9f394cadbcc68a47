"""An edit's expert sets completed by traces that keep weights: gains, and how far the edit is from the paper's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftri.analysis.weights import (
    GAIN_WORDS,
    GainEstimate,
    GainWord,
    WeightedTraces,
    estimate_gains,
    measure_shortfall,
)
from ftri.traces.reader import TraceError
from rewriter.checkpoint.kinds import Model
from rewriter.edit.outputs import RESIDUAL_KEY
from rewriter.errors import InputError
from rewriter.expert_set import ExpertSet
from rewriter.families.family import RouterLayout
from rewriter.hub.models import shared_name
from rewriter.rewrite import Edit
from rewriter.semantics import DROP


def read_gain(text: str | None, traces: Path | None) -> tuple[float | None, GainWord | None]:
    """What --gain says: a number, or which number traces are to say; neither where nothing is said.

    Raises: InputError for anything else, and for a gain of traces without traces.
    """
    if text is None:
        return None, None
    for word in GAIN_WORDS:
        if text == word:
            if traces is None:
                raise InputError(f"--gain {word} is worked out from traces with weights, expected --traces DIR with it")
            return None, word
    try:
        return float(text), None
    except ValueError:
        raise InputError(f"--gain is {text!r}, expected {', '.join(GAIN_WORDS)} or a finite number above 0") from None


@dataclass(frozen=True)
class ByTraces:
    """What completes the sets of an edit once its base is known (`rewriter.rewrite.Measure`); gain: which is worked out, None:
    those that the sets have are looked at."""

    traces: Path
    gain: GainWord | None = None

    def __call__(self, model: Model, edit: Edit) -> Edit:
        """The edit with gains, and with what the traces say of it in its sets' provenance.

        Raises:
            TraceError: the folder is none, keeps no weights, or is of another model.
            InputError: the traces say nothing of such an edit.
        """
        opened = WeightedTraces.open(self.traces)
        is_base = check_model(opened, model)
        suppress, stimulate = edit.suppress, edit.stimulate
        is_drop = suppress is not None and (
            edit.options.semantics == DROP or bool(suppress.strengths(model.layout.moe_layers))
        )
        if self.gain is not None and stimulate is None:
            raise InputError("--gain is one of stimulated experts, expected --stimulate FILE with it")
        if stimulate is None and not is_drop:
            raise InputError(
                "--traces says how far a gain, a strength or a drop is from the paper's edit, expected --stimulate, --strength"
                " or --semantics drop with it"
            )
        if suppress is not None and is_drop:
            suppress = _with_shortfall(suppress, opened, model.layout)
        if stimulate is not None:
            stimulate = _with_gains(stimulate, opened, model.layout, self.gain, is_base=is_base)
        return replace(edit, suppress=suppress, stimulate=stimulate)


def check_model(opened: WeightedTraces, model: Model) -> bool:
    """Whether traces are the model's own, by config.json; those of a variant have another one.

    Raises:
        TraceError: they are of a model with other layers or experts.
    """
    facts, layout = opened.reader.facts, model.layout
    for name, found, expected in (
        ("MoE layers", facts.moe_layers, list(layout.moe_layers)),
        ("experts", facts.num_experts, layout.num_experts),
        ("experts a token", facts.top_k, layout.top_k),
    ):
        if found != expected:
            raise TraceError(
                f"{opened.reader.folder}: is of a model with {found} {name}, expected {expected} as {model.source.name} has"
            )
    return facts.config_sha256 == hashlib.sha256(model.config_text.encode()).hexdigest()


def _with_gains(
    stimulate: ExpertSet, opened: WeightedTraces, layout: RouterLayout, gain: GainWord | None, *, is_base: bool
) -> ExpertSet:
    """A set to stimulate with each expert's gain, and what the traces say of it."""
    pairs = stimulate.model_pairs(layout.moe_layers)
    known = {pair: entry.gain or 1.0 for pair, entry in zip(pairs, stimulate.experts, strict=True)}
    estimates = estimate_gains(opened.routings(), layout.moe_layers, pairs, known if gain is None else gain)
    partial = [one for one in estimates if one.num_counted < one.num_tokens]
    if partial and not is_base:
        one = partial[0]
        raise TraceError(
            f"{opened.reader.folder}: is of a model with another config.json than the base's, in which {one.num_counted:,} of"
            f" {one.num_tokens:,} tokens select layer {one.layer} expert {one.expert}, expected traces of the base or of a"
            " variant that stimulates these experts on every token"
        )
    experts = [
        entry.model_copy(update={"gain": one.gain if one.gain != 1 else None})
        for entry, one in zip(stimulate.experts, estimates, strict=True)
    ]
    sentences = [*_warnings(estimates), *(one.sentence() for one in estimates), *_coverage(partial)]
    found = _found(opened, sentences, estimates)
    return stimulate.model_copy(update={"experts": experts, "provenance": stimulate.provenance | {RESIDUAL_KEY: found}})


def _warnings(estimates: Sequence[GainEstimate]) -> list[str]:
    """Which gains leave the experts no closer to the paper's weight than none would."""
    worse = [one for one in estimates if one.is_no_closer]
    if not worse:
        return []
    places = ", ".join(
        f"layer {one.layer} expert {one.expert} ({one.rms_with:.3f} against {one.rms_without:.3f})" for one in worse
    )
    return [
        f"WARNING: token by token, the gain of {places} is no closer to the paper's weight than no gain: its share is too uneven"
        " for one number. --gain auto takes the closest; --semantics drop-renorm, served, does what the paper does."
    ]


def _coverage(partial: Sequence[GainEstimate]) -> list[str]:
    """What traces of the base cannot say, since its tokens seldom select the experts."""
    if not partial:
        return []
    fewest = min(partial, key=lambda one: one.num_counted)
    return [
        f"These are traces of the base, of which as few as {fewest.num_counted:,} of {fewest.num_tokens:,} tokens select an"
        " expert that is to be stimulated; the others, on which its weight is lower, say nothing. Traces of a variant that"
        " stimulates it without a gain (mote-record --weights float32) count every token."
    ]


def _with_shortfall(suppress: ExpertSet, opened: WeightedTraces, layout: RouterLayout) -> ExpertSet:
    """A set to drop with what the traces say of the weight that is left out."""
    pairs = suppress.model_pairs(layout.moe_layers)
    strengths = {pair: entry.strength or 1.0 for pair, entry in zip(pairs, suppress.experts, strict=True)}
    shortfall = measure_shortfall(opened.routings(), layout.moe_layers, strengths)
    found = _found(opened, [shortfall.sentence()], [shortfall])
    return suppress.model_copy(update={"provenance": suppress.provenance | {RESIDUAL_KEY: found}})


def _found(opened: WeightedTraces, sentences: list[str], numbers: Sequence[Any]) -> dict[str, Any]:
    """What a set's provenance keeps."""
    facts = opened.reader.facts
    return {
        "model": shared_name(facts.model),
        "config_sha256": facts.config_sha256,
        "num_responses": len(opened.reader),
        "numbers": [one.to_json() for one in numbers],
        "sentences": sentences,
    }
