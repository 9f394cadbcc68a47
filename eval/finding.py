"""`--split`: finds the experts on one part of the prompts with the engine that then tests them on the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from eval.answers.arms import BASE, Arm, digest
from eval.answers.collect import Collector
from eval.answers.live import LiveResponder
from eval.measures.held_out import PROVENANCE_KEY, prompt_sha256
from eval.options import RunOptions, requests_for
from ftri.labels.behavior import label_behavior, thinking_language
from ftri.labels.contrast import parse_contrast
from ftri.prompts.sets import PromptRecord
from rewriter.errors import InputError
from rewriter.expert_set import ExpertEntry, ExpertSet

if TYPE_CHECKING:
    from eval.answers.arms import Answer


def find_experts(
    collector: Collector,
    live: LiveResponder,
    prompts: Sequence[PromptRecord],
    options: RunOptions,
    *,
    behavior: str,
    count: int,
    model: str | None,
    revision: str | None,
    config_sha256: str,
    spec: str,
) -> ExpertSet:
    """The `count` experts most distinctive of a behaviour by the paper's fTRI map over these prompts' tokens.

    Raises: InputError when the class or the others have fewer than two answers.
    """
    import numpy as np

    from ftri.analysis.maps import count_selections
    from ftri.analysis.resonance import resonance_map, top_experts

    contrast = parse_contrast(behavior)
    answers = list(collector.answers(Arm(BASE, "base"), requests_for(prompts, options)))
    groups = [
        contrast.group(_label(answer, contrast.rule == "thinking language", options.label_cut)) for answer in answers
    ]
    taking_part = [position for position, group in enumerate(groups) if group is not None]
    in_class = np.array([groups[position] == 0 for position in taking_part], dtype=bool)
    if min(int(in_class.sum()), int((~in_class).sum())) < 2:
        raise InputError(
            f"--split: the finding part has {int(in_class.sum())} answers of {contrast.name} and {int((~in_class).sum())} others,"
            " expected at least 2 of each; give more prompts or another --split"
        )
    key = digest(
        ["found", live.identity(), [answers[p].prompt_token_ids for p in taking_part], in_class.tolist(), count]
    )[:32]
    if key not in collector.journal:
        base = Arm(BASE, "base")
        model_layers = live.model_for(base).moe_layers
        num_experts = live.model_for(base).num_experts
        counts = np.zeros((len(taking_part), len(model_layers), num_experts), dtype=np.int32)
        sequences = [answers[position].prompt_token_ids for position in taking_part]
        for scored in live.score(base, sequences, None, routing=True):
            assert scored.routing is not None
            selected = count_selections(scored.routing[: len(sequences[scored.index])], num_experts)
            counts[scored.index] = selected.reshape(len(model_layers), num_experts)
        resonance = resonance_map(counts, in_class)
        found = [
            {"layer": int(model_layers[row]), "expert": expert, "resonance": float(resonance[row, expert])}
            for row, expert in top_experts(resonance, count)
        ]
        collector.journal.add_value(key, found)
    return ExpertSet(
        model=model,
        revision=revision,
        layer_index="model",
        behavior=contrast.name,
        experts=[ExpertEntry(**entry) for entry in collector.journal.value(key)],
        provenance={
            "source": "mote-eval --split",
            "prompts": spec,
            "config_sha256": config_sha256,
            "statistic": "paper",
            "positions": "prompt",
            "num_in_class": int(in_class.sum()),
            "num_others": int((~in_class).sum()),
            PROVENANCE_KEY: sorted({prompt_sha256(prompt.text) for prompt in prompts}),
        },
    )


def _label(answer: Answer, by_language: bool, label_cut: bool) -> str:
    if by_language:
        return thinking_language(answer.text, answer.starts_inside_think)
    return str(label_behavior(answer.text, answer.finish_reason, answer.starts_inside_think, label_cut))


def save_found(expert_set: ExpertSet, output: Path) -> Path:
    """Keep the set that was found beside the results, ready for mote-rewrite; returns its path."""
    path = output / "found-experts.json"
    expert_set.save(path)
    return path
