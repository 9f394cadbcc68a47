"""What to be careful about with a result: each check has a measured number and a threshold that is said along with it."""

from __future__ import annotations

from statistics import fmean, median

from ftri.analysis.findings import Findings

FEW_PROMPTS = 20
LARGE_SHARE = 0.5
SIGNIFICANT = 0.05
UNSTABLE = 0.5
SMALL_GAP = 0.01
LOW_OVERLAP = 0.5
MANY_LEFT_OUT = 0.1


def warnings_of(findings: Findings) -> list[str]:
    """One sentence per reason to doubt the ranking."""
    return [*_too_few(findings), *_confounded(findings), *_uncertain(findings)]


def _too_few(findings: Findings) -> list[str]:
    sentences = []
    for labels in (findings.contrast.target, findings.contrast.others):
        number = sum(findings.prompt_counts.get(label, 0) for label in labels)
        if number < FEW_PROMPTS:
            sentences.append(f"too few prompts: {' + '.join(labels)} has {number}, at least {FEW_PROMPTS} are advised")
    left_out = sum(findings.maps.dropped.values())
    total = left_out + len(findings.maps.observations)
    if left_out > MANY_LEFT_OUT * total:
        kinds = ", ".join(f"{label} {number}" for label, number in sorted(findings.maps.dropped.items()))
        sentences.append(f"{left_out} of {total} responses take no part: {kinds}")
    if findings.maps.num_repeated:
        sentences.append(f"{findings.maps.num_repeated} responses stand in more than one folder and are counted once")
    return sentences


def _confounded(findings: Findings) -> list[str]:
    top = findings.top
    sentences = []
    by_length = median(found.length_share for found in top)
    if by_length >= LARGE_SHARE:
        sentences.append(
            f"prompt length explains the ranking: the classes' difference in length predicts {by_length:.0%} of the"
            f" resonance (median of the top {len(top)}); compare --statistic rate or --positions shared"
        )
    by_tokens = median(found.token_share for found in top)
    one_token = [found for found in top if found.top_token_share >= LARGE_SHARE]
    # Longer prompts hold more of every token: that is the caution above, unless single tokens stand out.
    if (by_tokens >= LARGE_SHARE > by_length) or 2 * len(one_token) >= len(top):
        strongest = max(top, key=lambda found: found.top_token_share)
        sentences.append(
            f"token identity explains the ranking: which tokens the prompts hold predicts {by_tokens:.0%} of the resonance"
            f" (median of the top {len(top)}), a single token at least half of it for {len(one_token)} of {len(top)}"
            f" experts (token id {strongest.top_token} most); compare --positions shared"
        )
    return sentences


def _uncertain(findings: Findings) -> list[str]:
    top = findings.top
    sentences = []
    uncertain = [found for found in top if found.p_max_t > SIGNIFICANT]
    if uncertain:
        sentences.append(
            f"{len(uncertain)} of the top {len(top)} experts are not distinguishable from chance (max-T p > {SIGNIFICANT})"
        )
    stability = fmean(found.stability for found in top)
    if stability < UNSTABLE:
        sentences.append(
            f"the list is not stable: its experts are in the top {len(top)} of {stability:.0%} of bootstrap samples"
        )
    if findings.gap < SMALL_GAP:
        sentences.append(f"there is no gap at rank {len(top)}: the next expert scores {findings.gap:.2%} lower")
    for factor, folds in findings.folds.items():
        lowest = min(
            (fold for fold in folds if fold.overlap is not None), key=lambda fold: fold.overlap or 0.0, default=None
        )
        if lowest is not None and lowest.overlap is not None and lowest.overlap < LOW_OVERLAP:
            sentences.append(
                f"the list depends on one {factor}: without {lowest.value!r} only {lowest.overlap:.0%} of the top {len(top)} stay"
            )
    return sentences
