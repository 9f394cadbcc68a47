"""Keeps the prompts that found the experts apart from those that test them. Paper: silent; selecting and testing
on the same flatters."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel

from ftri.prompts.sets import PromptRecord
from rewriter.errors import InputError

# The key under which an expert set's provenance lists the SHA-256 of every prompt that found it.
PROVENANCE_KEY = "prompt_sha256"
# The factors of the additions, each pair of which comes in six wordings.
NUMBER_PAIR = frozenset({"a", "b"})


class HeldOut(BaseModel):
    """Whether the test prompts were held out: `unknown` when the expert set does not say what found it."""

    status: Literal["held-out", "overlap", "unknown", "split"]
    num_overlapping: int = 0
    num_prompts: int
    sentence: str


def prompt_sha256(text: str) -> str:
    """SHA-256 (hexadecimal) of a prompt's UTF-8 text."""
    return hashlib.sha256(text.encode()).hexdigest()


def prompts_sha256(prompts: Sequence[PromptRecord]) -> str:
    """SHA-256 (hexadecimal) of all prompts' ids and texts, whatever their order and the file they came from."""
    pairs = sorted((prompt.prompt_id, prompt_sha256(prompt.text)) for prompt in prompts)
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def check_held_out(provenances: Sequence[Mapping[str, Any]], prompts: Sequence[PromptRecord]) -> HeldOut:
    """Compare the prompts under test with those that the provenances of all expert sets under test name."""
    finding = [provenance.get(PROVENANCE_KEY) for provenance in provenances]
    known = {str(digest) for digests in finding if isinstance(digests, list) for digest in digests}
    overlap = sum(prompt_sha256(prompt.text) in known for prompt in prompts)
    if overlap:
        return HeldOut(
            status="overlap",
            num_overlapping=overlap,
            num_prompts=len(prompts),
            sentence=f"{overlap} of the {len(prompts)} prompts also found the experts, which flatters the result; use"
            " other prompts or --split.",
        )
    if not finding or not all(isinstance(digests, list) for digests in finding):
        lacking = "The expert set does not say" if len(finding) <= 1 else "Not every expert set says"
        return HeldOut(
            status="unknown",
            num_prompts=len(prompts),
            sentence=f"{lacking} which prompts found its experts, so it cannot be told whether these are held out.",
        )
    return HeldOut(
        status="held-out",
        num_prompts=len(prompts),
        sentence=f"None of the {len(prompts)} prompts was used to find the experts.",
    )


def split_prompts(
    prompts: Sequence[PromptRecord], finding_share: float, *, by: str | None = None, seed: int = 0
) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """(finding part, testing part), each in the order of `prompts`; `by` a factor keeps all prompts of one value on one side,
    and prompts of the same text are always on one.

    Raises: InputError when the share is not between 0 and 1, the factor is missing, or a part would be empty.
    """
    if not 0 < finding_share < 1:
        raise InputError(f"--split is {finding_share:g}, expected a share between 0 and 1 such as 0.5")
    if by is not None:
        lacking = [prompt.prompt_id for prompt in prompts if by not in prompt.factors]
        if lacking:
            known = ", ".join(sorted({name for prompt in prompts for name in prompt.factors})) or "none"
            raise InputError(
                f"--split-by {by!r}: prompt {lacking[0]!r} has no such factor; the prompts' factors are {known}"
            )
    group_of = _groups(prompts, by)
    groups = sorted(set(group_of.values()))
    random.Random(f"split/{seed}").shuffle(groups)
    finding_groups = set(groups[: round(finding_share * len(groups))])
    finding = [prompt for prompt in prompts if group_of[prompt.text] in finding_groups]
    testing = [prompt for prompt in prompts if group_of[prompt.text] not in finding_groups]
    if not finding or not testing:
        raise InputError(
            f"--split {finding_share:g} of {len(groups)} {by or 'prompts'} leaves {len(finding)} prompts to find the experts and"
            f" {len(testing)} to test them, expected some of both"
        )
    return finding, testing


def cluster_of(prompt: PromptRecord) -> str:
    """The unit that the bootstrap resamples: the prompt's subject or place, where it has one, else itself."""
    for factor in ("subject", "place"):
        if factor in prompt.factors:
            return prompt.factors[factor]
    if prompt.factors.keys() >= NUMBER_PAIR:
        return "+".join(prompt.factors[name] for name in sorted(NUMBER_PAIR))
    return prompt.prompt_id


def _groups(prompts: Sequence[PromptRecord], by: str | None) -> dict[str, str]:
    """A prompt's text -> what it is split with: the factor's value of the first prompt of that text, or that prompt's id."""
    groups: dict[str, str] = {}
    for prompt in prompts:
        groups.setdefault(prompt.text, prompt.factors[by] if by is not None else prompt.prompt_id)
    return groups


def cluster_words(prompts: Sequence[PromptRecord]) -> str:
    """What the bootstrap resamples, in one word."""
    for factor in ("subject", "place"):
        if prompts and factor in prompts[0].factors:
            return factor
    return "number pair" if prompts and prompts[0].factors.keys() >= NUMBER_PAIR else "prompt"
