"""The fTRI map from one file of llama-imatrix per class: for those who run GGUF files and have no vLLM.

Such a file adds up a whole class, so only what follows from class totals can be computed: a ranking by the share of tokens that
select an expert. What needs counts per prompt is not: see LIMITS. Letters of shapes: L MoE layers, E experts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.analysis import resonance
from ftri.labels.contrast import Contrast, parse_contrast
from rewriter.checkpoint.gguf.imatrix import SelectionCounts, read_counts
from rewriter.errors import InputError
from rewriter.expert_set import ExpertEntry, ExpertSet

FloatArray = npt.NDArray[np.floating[Any]]

STATISTICS = ("risk-difference", "npmi", "log-odds")
"""The rankings that class totals suffice for; the first is the one to begin with."""
LIMITS = (
    "an imatrix holds one total per class, so there are no p-values, intervals, stability, checks for prompt length or single"
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
    sources: list[dict[str, Any]]
    warnings: tuple[str, ...]


def find_by_counts(files: Mapping[str, Path], behavior: str, k: int, statistic: str) -> CountFindings:
    """Rank the experts by files of llama-imatrix, one a class.

    Raises:
        InputError: an unknown class or statistic, or files of different models.
        CheckpointError: a file that is not llama-imatrix's.
    """
    if statistic not in STATISTICS:
        raise InputError(
            f"--statistic {statistic}: needs counts per prompt, expected one of {', '.join(STATISTICS)} with --imatrix"
        )
    contrast = parse_contrast(behavior, files)
    counted = {name: read_counts(path) for name, path in files.items() if name in contrast.target + contrast.others}
    for side in (contrast.target, contrast.others):
        if not side:
            raise InputError("--imatrix: expected a file for at least two classes")
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
        sources=[_source(name, files[name], counts) for name, counts in counted.items()],
        warnings=tuple(_warnings(counted)),
    )


def expert_set_of_counts(findings: CountFindings) -> ExpertSet:
    """The expert set: the top k with their shares, and what they were found with."""
    contrast = findings.contrast
    return ExpertSet(
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
            "method": "fTRI from class totals of llama-imatrix",
            "tool": "mote-ftri",
            "tool_version": metadata.version("mote-tunable-experts"),
            "statistic": resonance.STATISTICS[findings.statistic].meaning,
            "compared": {"class": list(contrast.target), "others": list(contrast.others)},
            "num_tokens": findings.num_tokens,
            "imatrix": findings.sources,
            "not_computed": LIMITS,
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


def _source(name: str, path: Path, counts: SelectionCounts) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"class": name, "file": path.name, "sha256": digest, "context_tokens": counts.context_tokens}
