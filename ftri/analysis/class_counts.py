"""The fTRI map from one total per class: for those whose recorder adds up (llama-imatrix, SGLang's expert distribution).

Such a file adds up a whole class, so only what follows from class totals can be computed: a ranking by the share of tokens that
select an expert. What needs counts per prompt is not: see LIMITS. Letters of shapes: L MoE layers, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.analysis import resonance
from ftri.labels.contrast import Contrast, parse_contrast
from ftri.traces.class_totals import ClassTotals, describe_source
from rewriter.checkpoint.gguf.imatrix import SelectionCounts, read_counts
from rewriter.errors import InputError
from rewriter.expert_set import ExpertEntry, ExpertSet

FloatArray = npt.NDArray[np.floating[Any]]

STATISTICS = ("risk-difference", "npmi", "log-odds")
"""The rankings that class totals suffice for; the first is the one to begin with."""
LIMITS = (
    "one total per class is all there is, so there are no p-values, intervals, stability, checks for prompt length or single"
    " tokens, and no t-SNE: these need counts per prompt, which mote-record writes"
)
MAX_TOKENS_RATIO = 2.0
MIN_TOKENS = 1000


@dataclass(frozen=True)
class CountedExpert:
    """One expert of the ranking; shares are of the tokens of the class and of the others."""

    layer: int
    expert: int
    score: float
    share_class: float
    share_others: float


@dataclass(frozen=True)
class CountFindings:
    """What class totals say."""

    contrast: Contrast
    statistic: str
    layers: tuple[int, ...]
    scores: FloatArray  # [L, E]
    experts: tuple[CountedExpert, ...]  # the top k
    num_tokens: dict[str, int]  # of each class, in the layer that saw most
    totals: ClassTotals
    warnings: tuple[str, ...]


def imatrix_totals(files: Mapping[str, Path]) -> ClassTotals:
    """The totals in files of llama-imatrix, one a class.

    Raises:
        CheckpointError: a file that is not llama-imatrix's.
    """
    classes = {name: read_counts(path) for name, path in files.items()}
    sources = [describe_source(name, path, context_tokens=classes[name].context_tokens) for name, path in files.items()]
    return ClassTotals("llama-imatrix", classes, sources)


def find_by_counts(totals: ClassTotals, behavior: str, k: int, statistic: str) -> CountFindings:
    """Rank the experts by class totals.

    Raises:
        InputError: an unknown class or statistic, a single class, or totals of different models.
    """
    if statistic not in STATISTICS:
        raise InputError(
            f"--statistic {statistic}: needs counts per prompt, expected one of {', '.join(STATISTICS)} with class totals"
        )
    contrast = parse_contrast(behavior, totals.classes)
    counted = {name: counts for name, counts in totals.classes.items() if name in contrast.target + contrast.others}
    for side in (contrast.target, contrast.others):
        if not side:
            raise InputError(
                f"the totals are of the class {', '.join(totals.classes)} alone, expected those of at least two classes;"
                " give the other as CLASS=FILE too"
            )
    _check_same_model(counted)
    first = next(iter(counted.values()))
    layers = tuple(first.counts)
    num_experts = len(first.counts[layers[0]])
    if not 1 <= k < len(layers) * num_experts:
        raise InputError(f"-k {k}: expected 1 to {len(layers) * num_experts - 1}, the files count that many experts")
    groups = [_sums([counted[name] for name in side]) for side in (contrast.target, contrast.others)]
    setting = resonance.Setting(len(layers), num_experts, first.top_k)
    scores = resonance.STATISTICS[statistic].compute(groups, setting).reshape(len(layers), num_experts)
    shares = [group.counts.reshape(scores.shape) / group.num_tokens.reshape(scores.shape) for group in groups]
    experts = tuple(
        CountedExpert(
            layers[row],
            expert,
            float(scores[row, expert]),
            float(shares[0][row, expert]),
            float(shares[1][row, expert]),
        )
        for row, expert in resonance.top_experts(scores, k)
    )
    return CountFindings(
        contrast=contrast,
        statistic=statistic,
        layers=layers,
        scores=scores,
        experts=experts,
        num_tokens={name: max(counts.num_tokens.values()) for name, counts in counted.items()},
        totals=totals,
        warnings=tuple(_warnings(counted)),
    )


def expert_set_of_counts(findings: CountFindings) -> ExpertSet:
    """The expert set: the top k with their shares, and what they were found with."""
    contrast, totals = findings.contrast, findings.totals
    compared = contrast.target + contrast.others
    return ExpertSet(
        model=totals.model,
        revision=totals.revision,
        layer_index="model",
        behavior=contrast.name,
        experts=[
            ExpertEntry(
                layer=found.layer,
                expert=found.expert,
                **{"score": found.score, "share_class": found.share_class, "share_others": found.share_others},
            )
            for found in findings.experts
        ],
        provenance={
            "method": f"fTRI from class totals of {totals.recorder}",
            "tool": "mote-ftri",
            "tool_version": metadata.version("mote-tunable-experts"),
            "statistic": resonance.STATISTICS[findings.statistic].meaning,
            "compared": {"class": list(contrast.target), "others": list(contrast.others)},
            "num_tokens": findings.num_tokens,
            "totals": [source for source in totals.sources if source["class"] in compared],
            "not_computed": LIMITS,
            "notes": totals.notes,
            "warnings": list(findings.warnings),
        },
    )


def _check_same_model(counted: Mapping[str, SelectionCounts]) -> None:
    first = next(iter(counted.values()))
    for other in counted.values():
        for what, ours, theirs in (
            ("layers", list(first.counts), list(other.counts)),
            ("experts", {len(values) for values in first.counts.values()}, {len(v) for v in other.counts.values()}),
            ("experts a token", first.top_k, other.top_k),
        ):
            if ours != theirs:
                raise InputError(f"{other.name}: counts {what} {theirs}, expected {ours} as in {first.name}")


def _sums(files: Sequence[SelectionCounts]) -> resonance.GroupSums:
    """The totals of one side: counts [1, L * E], and for each of them the tokens that its layer saw, of the same shape."""
    counts = sum(np.stack(list(file.counts.values())) for file in files)
    tokens = sum(
        np.stack([np.full(len(file.counts[layer]), float(file.num_tokens[layer])) for layer in file.counts])
        for file in files
    )
    assert isinstance(counts, np.ndarray) and isinstance(tokens, np.ndarray)
    return resonance.GroupSums(np.ones((1, 1)), tokens.reshape(1, -1), counts.reshape(1, -1))


def _warnings(counted: Mapping[str, SelectionCounts]) -> list[str]:
    """What makes the classes' counts less comparable, each with its numbers."""
    contexts = {name: counts.context_tokens for name, counts in counted.items()}
    tokens = {name: max(counts.num_tokens.values()) for name, counts in counted.items()}
    sentences = []
    if len(set(contexts.values())) > 1:
        listed = ", ".join(f"{name} {value}" for name, value in contexts.items())
        sentences.append(
            f"the files were made with contexts of different length ({listed} tokens), which changes the routing itself; run"
            " llama-imatrix with the same -c for every class"
        )
    if max(tokens.values()) > MAX_TOKENS_RATIO * min(tokens.values()):
        listed = ", ".join(f"{name} {value}" for name, value in tokens.items())
        sentences.append(
            f"the classes hold very different numbers of tokens ({listed}); the smaller ones' shares are rougher"
        )
    for name, value in tokens.items():
        if value < MIN_TOKENS:
            sentences.append(f"{name} counts {value} tokens only, at least {MIN_TOKENS} are advised")
        least = min(counted[name].num_tokens.values())
        if least < value:
            sentences.append(
                f"{counted[name].name}: a layer saw {least} of {value} tokens only, its shares are of those"
            )
    return sentences
