"""From traces to an expert set: counts, ranks, tests and checks, and says what to be careful about.

Letters of shapes: P responses, L MoE layers, E experts, M experts shown (the top k and some that follow).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.analysis import confounds, maps, resonance
from ftri.analysis import significance as statistics
from ftri.analysis.cautions import warnings_of
from ftri.analysis.tokens import TokenStudy, study_tokens
from ftri.labels import contrast
from ftri.traces.reader import INDEX_NAME, MANIFEST_NAME, TraceReader
from rewriter.errors import InputError
from rewriter.expert_set import ExpertEntry, ExpertSet

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
StepProgress = Callable[[str, int], statistics.Progress]

MIN_RESPONSES_PER_CLASS = 2
# How many experts are shown and looked at token by token: the top k, and at least this many to see the gap at k.
MIN_SHOWN = 20
# Traces whose manifests differ in these cannot be one analysis.
SAME_MODEL_KEYS = ("config_sha256", "moe_layers", "num_experts", "top_k", "template_sha256")


@dataclass(frozen=True)
class FindOptions:
    """Everything that changes the result; all of it is kept in the expert set."""

    behavior: str
    k: int = 10
    statistic: str = "paper"
    positions: str = "prompt"
    labels: str | None = None
    label_cut: bool = False
    num_permutations: int = 10_000
    num_bootstraps: int = 1_000
    seed: int = 0
    leave_out: tuple[str, ...] = ("place", "time", "subject")


@dataclass(frozen=True)
class FoundExpert:
    """One row of the ranking. `layer` is the row of the map; means are tokens per prompt; shares are of the resonance."""

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
    contrast: contrast.Contrast
    manifest: dict[str, Any]
    maps: maps.ActivationMaps
    scores: FloatArray  # [L, E] the statistic
    resonance: FloatArray  # [L, E] the paper's, tokens per prompt
    means: FloatArray  # [2, L, E] tokens per prompt, class and others
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


def open_traces(folders: Sequence[str | Path]) -> list[TraceReader]:
    """The readers of one or several folders. Raises InputError when they are not of one model and template."""
    readers = [TraceReader(folder) for folder in folders]
    for reader in readers[1:]:
        for key in SAME_MODEL_KEYS:
            first, other = readers[0].manifest.get(key), reader.manifest.get(key)
            if first != other:
                raise InputError(f"{reader.folder} has {key} {other}, expected {first} as in {readers[0].folder}")
    return readers


def find(folders: Sequence[str | Path], options: FindOptions, progress: StepProgress | None = None) -> Findings:
    """Rank the experts of the traces for a behaviour, and test the ranking.

    Raises:
        InputError: options that cannot be met, labels that do not fit the traces, a class without responses.
        TraceError: a damaged folder.
    """
    statistic = resonance.STATISTICS.get(options.statistic)
    if statistic is None:
        raise InputError(f"--statistic {options.statistic}: expected one of {', '.join(resonance.STATISTICS)}")
    if options.positions not in maps.POSITIONS:
        raise InputError(f"--positions {options.positions}: expected one of {', '.join(maps.POSITIONS)}")
    readers = open_traces(folders)
    compared, labeller, labels_sha256 = _labelling(readers, options)
    activation = maps.read_maps(readers, compared, labeller, options.positions)
    num_experts = activation.counts.num_columns
    if not 1 <= options.k < num_experts:
        raise InputError(f"-k {options.k}: expected 1 to {num_experts - 1}, the trace has {num_experts} experts")
    _check_classes(activation, compared)

    scores = statistics.observed_scores(activation, statistic)
    shown = resonance.rank(scores)[: min(max(2 * options.k, MIN_SHOWN), num_experts)]
    pairs = [divmod(int(flat), activation.num_experts) for flat in shown]
    step = progress or (lambda name, total: lambda count: None)
    significance = statistics.permutation_test(
        activation, statistic, options.num_permutations, options.seed, step("permutations", options.num_permutations)
    )
    stability = statistics.bootstrap(
        activation,
        statistic,
        options.k,
        shown,
        options.num_bootstraps,
        options.seed,
        step("bootstraps", options.num_bootstraps),
    )
    folds = {
        factor: statistics.leave_one_out(activation, statistic, factor, options.k)
        for factor in options.leave_out
        if len({observation.factors.get(factor) for observation in activation.observations} - {None}) > 1
    }
    study = study_tokens(readers, compared, labeller, options.positions, activation.shared, pairs)
    moments = class_moments(activation)
    findings = Findings(
        options=options,
        contrast=compared,
        manifest=readers[0].manifest,
        maps=activation,
        scores=scores.reshape(activation.shape),
        resonance=moments.resonance.reshape(activation.shape),
        means=moments.means.reshape(2, *activation.shape),
        experts=_found_experts(activation, scores, shown, moments, significance, stability, study),
        folds=folds,
        study=study,
        class_counts=_count(observation.label for observation in activation.observations),
        prompt_counts=_count(
            label
            for label, _ in {(observation.label, observation.prompt_id) for observation in activation.observations}
        ),
        sources=[describe_source(reader) for reader in readers],
        labels_sha256=labels_sha256,
    )
    findings.warnings = warnings_of(findings)
    return findings


def _labelling(
    readers: Sequence[TraceReader], options: FindOptions
) -> tuple[contrast.Contrast, contrast.Labeller, str | None]:
    if options.labels is None:
        compared = contrast.parse_contrast(options.behavior)
        return compared, contrast.rule_labeller(compared, options.label_cut), None
    labels = contrast.read_labels(options.labels)
    contrast.check_labels_known(labels, maps.response_keys(readers), Path(options.labels).name)
    compared = contrast.parse_contrast(options.behavior, labels.values())
    digest = hashlib.sha256(Path(options.labels).read_bytes()).hexdigest() if Path(options.labels).is_file() else None
    return compared, contrast.file_labeller(labels), digest


def _check_classes(activation: maps.ActivationMaps, compared: contrast.Contrast) -> None:
    groups = activation.groups
    counts = _count([observation.label for observation in activation.observations]) | activation.dropped
    found = ", ".join(f"{label} {number}" for label, number in sorted(counts.items()))
    for name, number in (
        ("+".join(compared.target), int((groups == 0).sum())),
        (" or ".join(compared.others), int((groups > 0).sum())),
    ):
        if number < MIN_RESPONSES_PER_CLASS:
            raise InputError(
                f"{number} responses are {name}, expected at least {MIN_RESPONSES_PER_CLASS} on each side of the comparison;"
                f" the traces hold {found}"
            )


@dataclass(frozen=True)
class ClassMoments:
    """Flat [L * E]: means of the class and the others, their difference (the paper's resonance), and Cohen's d."""

    means: FloatArray
    resonance: FloatArray
    effect: FloatArray


def class_moments(activation: maps.ActivationMaps) -> ClassMoments:
    """Means, resonance and standardised effect of every expert, in float64."""
    statistic = resonance.STATISTICS["welch"]
    own, other = (
        statistics.sums_of_weights(activation, statistic, mask[None], np.float64)
        for mask in statistics.group_masks(activation.groups, statistic)
    )
    means = np.stack([own.counts[0] / own.num_responses[0, 0], other.counts[0] / other.num_responses[0, 0]])
    spread = np.zeros(means.shape[1])
    for group, mean in zip((own, other), means, strict=True):
        assert group.squares is not None
        spread += np.maximum(group.squares[0] - group.num_responses[0, 0] * mean * mean, 0)
    deviation = np.sqrt(spread / max(len(activation.counts) - 2, 1))
    difference = means[0] - means[1]
    effect = np.divide(difference, deviation, out=np.zeros_like(difference), where=deviation > 1e-9)
    return ClassMoments(means, difference, effect)


def _found_experts(
    activation: maps.ActivationMaps,
    scores: FloatArray,
    shown: IntArray,
    moments: ClassMoments,
    significance: statistics.Significance,
    stability: statistics.Stability,
    study: TokenStudy,
) -> list[FoundExpert]:
    p_welch, q_value = statistics.benjamini_hochberg(activation, significance.p_value)
    lengths = confounds.length_share(activation, moments.resonance)
    num_class = int((activation.groups == 0).sum())
    token_shares, top_tokens, top_token_shares = confounds.token_share(
        study, num_class, len(activation.observations) - num_class
    )
    found = []
    for number, flat in enumerate(shown.tolist()):
        layer, expert = divmod(flat, activation.num_experts)
        found.append(
            FoundExpert(
                layer=layer,
                expert=expert,
                score=float(scores[flat]),
                resonance=float(moments.resonance[flat]),
                mean_class=float(moments.means[0, flat]),
                mean_others=float(moments.means[1, flat]),
                effect=float(moments.effect[flat]),
                interval=(float(stability.low[number]), float(stability.high[number])),
                p_max_t=float(significance.p_max_t[flat]),
                p_value=float(significance.p_value[flat]),
                p_welch=float(p_welch[flat]),
                q_benjamini_hochberg=float(q_value[flat]),
                stability=float(stability.in_top[flat]),
                length_share=float(lengths[flat]),
                token_share=float(token_shares[number]),
                top_token=int(top_tokens[number]),
                top_token_share=float(top_token_shares[number]),
            )
        )
    return found


def _count(labels: Any) -> dict[str, int]:
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return dict(sorted(counts.items()))


def describe_source(reader: TraceReader) -> dict[str, Any]:
    """What names a trace folder's exact content, without saying where it lies."""
    return {
        "manifest_sha256": _file_sha256(reader.folder / MANIFEST_NAME),
        "index_sha256": _file_sha256(reader.folder / INDEX_NAME),
        "num_responses": len(reader),
        "prompts": reader.manifest.get("prompts"),
        "sampling": reader.manifest.get("sampling"),
        "capture": reader.manifest.get("capture"),
        "versions": reader.manifest.get("versions"),
    }


def _file_sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expert_set_of(findings: Findings) -> ExpertSet:
    """The expert set: the top k with their numbers, and everything needed to find them again."""
    layers = findings.maps.moe_layers
    manifest = findings.manifest
    return ExpertSet(
        model=manifest["model"],
        revision=manifest.get("revision"),
        layer_index="model",
        behavior=findings.contrast.name,
        experts=[_entry(found, layers) for found in findings.top],
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


def _entry(found: FoundExpert, moe_layers: Sequence[int]) -> ExpertEntry:
    numbers = asdict(found)
    numbers["layer"] = moe_layers[found.layer]
    numbers["interval"] = list(found.interval)
    return ExpertEntry(**numbers)


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
    """Raise InputError when an expert set was found on another model than the traces were recorded from."""
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
    layers = findings.maps.moe_layers
    ours = [(layers[found.layer], found.expert) for found in findings.top]
    theirs = other.model_pairs(layers)
    rank_of = np.empty(findings.scores.size, np.int64)
    rank_of[resonance.rank(findings.scores)] = np.arange(1, findings.scores.size + 1)
    flat = [layers.index(layer) * findings.maps.num_experts + expert for layer, expert in theirs]
    return {
        "behavior": other.behavior,
        "num_experts": len(theirs),
        "num_shared": len(set(ours) & set(theirs)),
        "jaccard": statistics.jaccard(set(ours), set(theirs)),
        "ranks_here": [int(rank_of[number]) for number in flat],
    }
