"""From traces to findings: counts, ranks, tests and checks, and says what to be careful about.

Letters of shapes: P responses, L MoE layers, E experts, M experts shown (the top k and some that follow).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.analysis import confounds, maps, resonance
from ftri.analysis import significance as statistics
from ftri.analysis.cautions import warnings_of
from ftri.analysis.findings import Findings, FindOptions, FoundExpert
from ftri.analysis.tokens import TokenStudy, study_tokens
from ftri.labels import contrast
from ftri.labels.think_formats import ThinkFormat, choose_format
from ftri.prompts.sets import without_path
from ftri.traces.reader import TraceReader, check_one_model
from ftri.traces.schema import INDEX_NAME, MANIFEST_NAME
from rewriter.errors import InputError

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.int64]
StepProgress = Callable[[str, int], statistics.Progress]

MIN_RESPONSES_PER_CLASS = 2
# How many experts are shown and looked at token by token: the top k, and at least this many to see the gap at k.
MIN_SHOWN = 20
WITHOUT_TOKENS = (
    "the traces hold no token ids: answers count along with prompts, and whether single tokens explain the ranking is not"
    " checked; import responses with their tokens (mote-ftri import FILE.jsonl) to have both"
)


def open_traces(folders: Sequence[str | Path]) -> list[TraceReader]:
    """The readers of one or several folders.

    Raises:
        TraceError: one of them is no trace folder, or they are not of one model and template.
    """
    readers = [TraceReader(folder) for folder in folders]
    check_one_model(readers)
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
    has_token_ids = readers[0].facts.has_token_ids
    if not has_token_ids:
        _check_without_tokens(options)
    compared, labeller, labels_sha256 = _labelling(readers, options)
    activation = maps.read_maps(readers, compared, labeller, options.positions)
    unjudged = labeller.warning() if isinstance(labeller, contrast.RuleLabeller) else None
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
        p_max_t=significance.p_max_t.reshape(activation.shape),
        experts=_found_experts(activation, scores, shown, moments, significance, stability, study, has_token_ids),
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
    findings.warnings = [
        *warnings_of(findings),
        *([unjudged] if unjudged else []),
        *([] if has_token_ids else [WITHOUT_TOKENS]),
    ]
    return findings


def _check_without_tokens(options: FindOptions) -> None:
    """What cannot be asked of rows alone."""
    if options.positions not in ("prompt", "all"):
        raise InputError(
            f"--positions {options.positions}: the traces were imported without token ids, so nothing tells where prompts end;"
            " expected prompt or all, which are the same there"
        )
    if options.labels is None:
        raise InputError(
            f"--behavior {options.behavior}: the traces were imported without texts, so responses cannot be labelled by them;"
            " give --labels FILE with prompt_id (the array's file name) and label"
        )


def _labelling(
    readers: Sequence[TraceReader], options: FindOptions
) -> tuple[contrast.Contrast, contrast.Labeller, str | None]:
    if options.labels is None:
        compared = contrast.parse_contrast(options.behavior)
        told = think_format_of(readers[0].manifest, options.think_format)
        return compared, contrast.RuleLabeller(compared, options.label_cut, told), None
    labels = contrast.read_labels(options.labels)
    contrast.check_labels_known(labels, maps.response_keys(readers), Path(options.labels).name)
    compared = contrast.parse_contrast(options.behavior, labels.values())
    digest = hashlib.sha256(Path(options.labels).read_bytes()).hexdigest() if Path(options.labels).is_file() else None
    return compared, contrast.file_labeller(labels), digest


def think_format_of(manifest: Mapping[str, Any], name: str | None = None) -> ThinkFormat | None:
    """The row that splits the traces' responses: the one that is told, or the one of the model's family."""
    return choose_format(name, manifest.get("model_type"))


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
                f" the traces hold {found}; record other --prompts or more --samples, or give your own --labels FILE"
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
    has_token_ids: bool,
) -> list[FoundExpert]:
    p_welch, q_value = statistics.benjamini_hochberg(activation, significance.p_value)
    lengths = confounds.length_share(activation, moments.resonance)
    num_class = int((activation.groups == 0).sum())
    token_shares, top_tokens, top_token_shares = confounds.token_share(
        study, num_class, len(activation.observations) - num_class
    )
    if not has_token_ids:
        token_shares, top_token_shares = np.zeros_like(token_shares), np.zeros_like(top_token_shares)
    found = []
    for number, flat in enumerate(shown.tolist()):
        row, expert = divmod(flat, activation.num_experts)
        found.append(
            FoundExpert(
                layer=activation.moe_layers[row],
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
    """What names a trace folder's exact content, without saying where it lies, or its prompts."""
    prompts = reader.manifest.get("prompts")
    if prompts is not None and isinstance(prompts.get("spec"), str):
        prompts = prompts | {"spec": without_path(prompts["spec"])}
    return {
        "manifest_sha256": _file_sha256(reader.folder / MANIFEST_NAME),
        "index_sha256": _file_sha256(reader.folder / INDEX_NAME),
        "num_responses": len(reader),
        "prompts": prompts,
        "sampling": reader.manifest.get("sampling"),
        "capture": reader.manifest.get("capture"),
        "versions": reader.manifest.get("versions"),
    }


def _file_sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
