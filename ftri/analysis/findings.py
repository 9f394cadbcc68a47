"""What an analysis found: the ranking with its numbers, and the expert set that is made of it.

Letters of shapes: L MoE layers, E experts, M experts shown (the top k and some that follow).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.analysis import maps, resonance
from ftri.analysis import significance as statistics
from ftri.analysis.tokens import TokenStudy
from ftri.labels.contrast import Contrast
from rewriter.errors import InputError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.hub.models import shared_name

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class FindOptions:
    """Everything that changes the result; all of it is kept in the expert set."""

    behavior: str
    k: int = 10
    statistic: str = "paper"
    positions: str = "prompt"
    labels: str | None = None
    label_cut: bool = False
    think_format: str | None = None
    num_permutations: int = 10_000
    num_bootstraps: int = 1_000
    seed: int = 0
    leave_out: tuple[str, ...] = ("place", "time", "subject")


@dataclass(frozen=True)
class FoundExpert:
    """One expert of the ranking. `layer` is the model's layer; means are tokens per prompt; shares are of the resonance."""

    layer: int
    expert: int
    score: float
    resonance: float
    mean_class: float
    mean_others: float
    effect: float
    interval: tuple[float, float]
    p_max_t: float
    p_value: float
    p_welch: float
    q_benjamini_hochberg: float
    stability: float
    length_share: float
    token_share: float
    top_token: int
    top_token_share: float


@dataclass
class Findings:
    """The whole result: the expert set's content, and what the report draws."""

    options: FindOptions
    contrast: Contrast
    manifest: dict[str, Any]
    maps: maps.ActivationMaps
    scores: FloatArray  # [L, E] the statistic
    resonance: FloatArray  # [L, E] the paper's, tokens per prompt
    means: FloatArray  # [2, L, E] tokens per prompt, class and others
    p_max_t: FloatArray  # [L, E] chance that any expert scores as high under shuffled labels
    experts: list[FoundExpert]  # M, by rank; the first k are the result
    folds: dict[str, list[statistics.FoldOverlap]]
    study: TokenStudy
    class_counts: dict[str, int]
    prompt_counts: dict[str, int]
    sources: list[dict[str, Any]]
    labels_sha256: str | None
    warnings: list[str] = field(default_factory=list)

    @property
    def top(self) -> list[FoundExpert]:
        """The k distinctive experts."""
        return self.experts[: self.options.k]

    @property
    def gap(self) -> float:
        """How far the score falls from rank k to rank k + 1, as a share of the score at k."""
        last, following = self.experts[self.options.k - 1].score, self.experts[self.options.k].score
        return (last - following) / abs(last) if last else 0.0


def expert_set_of(findings: Findings) -> ExpertSet:
    """The expert set: the top k with their numbers, and everything needed to find them again."""
    manifest = findings.manifest
    return ExpertSet(
        model=shared_name(manifest["model"]),
        revision=manifest.get("revision"),
        layer_index="model",
        behavior=findings.contrast.name,
        experts=[ExpertEntry(**asdict(found) | {"interval": list(found.interval)}) for found in findings.top],
        provenance={
            "method": "fTRI (arXiv 2502.11096)",
            "tool": "mote-ftri",
            "tool_version": metadata.version("mote-tunable-experts"),
            "options": asdict(findings.options) | {"labels": Path(findings.options.labels or "").name or None},
            "statistic": resonance.STATISTICS[findings.options.statistic].meaning,
            "positions": maps.POSITIONS[findings.options.positions],
            "template_tokens": "counted" if findings.options.positions != "varying" else "not counted",
            "compared": {"class": list(findings.contrast.target), "others": list(findings.contrast.others)},
            "label_rule": findings.contrast.rule,
            "labels_sha256": findings.labels_sha256,
            "num_responses": findings.class_counts,
            "num_prompts": findings.prompt_counts,
            "num_left_out": findings.maps.dropped,
            "gap_at_k": findings.gap,
            "leave_one_out": {factor: fold_summary(folds) for factor, folds in findings.folds.items()},
            "warnings": findings.warnings,
            "config_sha256": manifest.get("config_sha256"),
            "template_sha256": manifest.get("template_sha256"),
            "traces": findings.sources,
            "prompt_sha256": sorted(digest.hex() for digest in findings.maps.prompt_digests),
        },
    )


def fold_summary(folds: Sequence[statistics.FoldOverlap]) -> dict[str, Any]:
    """Mean and lowest overlap of the top k over the folds, with the value left out at the lowest."""
    measured = [fold for fold in folds if fold.overlap is not None]
    if not measured:
        return {"num_folds": 0, "num_without_a_class": len(folds)}
    lowest = min(measured, key=lambda fold: fold.overlap or 0.0)
    return {
        "mean_overlap": float(np.mean([fold.overlap for fold in measured])),
        "lowest_overlap": lowest.overlap,
        "lowest_without": lowest.value,
        "num_folds": len(measured),
        "num_without_a_class": len(folds) - len(measured),
    }


def check_same_model(manifest: dict[str, Any], other: ExpertSet, name: str) -> None:
    """See to it that an expert set is of the model that the traces were recorded from.

    Raises:
        InputError: it is of another model, or names experts that the model lacks.
    """
    theirs, ours = other.provenance.get("config_sha256"), manifest.get("config_sha256")
    if theirs is not None and ours is not None:
        if theirs != ours:
            raise InputError(
                f"{name}: is of the model {other.model} with config SHA-256 {theirs[:12]}..., expected"
                f" {ours[:12]}... of {manifest['model']}, from which the traces were recorded"
            )
    elif other.model is not None and other.model != manifest["model"]:
        raise InputError(f"{name}: is of the model {other.model}, expected {manifest['model']} as the traces")
    pairs = other.model_pairs(manifest["moe_layers"])
    too_high = [expert for _, expert in pairs if expert >= int(manifest["num_experts"])]
    if too_high:
        raise InputError(
            f"{name}: names expert {too_high[0]}, expected experts below {manifest['num_experts']} as in the traces"
        )


def compare(findings: Findings, other: ExpertSet) -> dict[str, Any]:
    """How the result agrees with another expert set of the same model: overlap, and the ranks its experts have here."""
    activation = findings.maps
    ours = [(found.layer, found.expert) for found in findings.top]
    theirs = other.model_pairs(activation.moe_layers)
    rank_of = np.empty(findings.scores.size, np.int64)
    rank_of[resonance.rank(findings.scores)] = np.arange(1, findings.scores.size + 1)
    flat = [activation.row_of(layer) * activation.num_experts + expert for layer, expert in theirs]
    return {
        "behavior": other.behavior,
        "num_experts": len(theirs),
        "num_shared": len(set(ours) & set(theirs)),
        "jaccard": statistics.jaccard(set(ours), set(theirs)),
        "ranks_here": [int(rank_of[number]) for number in flat],
    }
