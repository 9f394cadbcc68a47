"""How often the experts that a variant suppresses were selected in traces of it, and what that says of further responses.

Letters of shapes: T tokens of a response, L MoE layers, K selected experts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ftri.traces.reader import TraceError, TraceReader
from rewriter.checkpoint.reader import Checkpoint

Pair = tuple[int, int]  # (model layer, expert)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Selections:
    """What traces hold of some experts."""

    num_responses: int
    num_tokens: int
    num_responses_selecting: int  # responses of which at least one token selected at least one of the experts
    tokens_by_expert: dict[Pair, int]

    @property
    def num_selections(self) -> int:
        """Tokens that selected an expert, summed over the experts."""
        return sum(self.tokens_by_expert.values())

    @property
    def bound(self) -> float:
        """The share of responses like these that select one of the experts is below this, with 95 % confidence.

        The one-sided bound of Clopper and Pearson; for none in M it is 1 - 0.05 ** (1 / M). Tokens of one response are not
        independent, so responses are counted.
        """
        if self.num_responses_selecting >= self.num_responses:
            return 1.0
        from scipy.stats import beta

        selecting = self.num_responses_selecting
        return float(beta.ppf(CONFIDENCE, selecting + 1, self.num_responses - selecting))


def count_selections(routings: Iterable[np.ndarray], moe_layers: Sequence[int], pairs: Sequence[Pair]) -> Selections:
    """Count the tokens and responses that select the pairs; routings: arrays int [T, L, K] of selected expert ids."""
    counts = dict.fromkeys(sorted(pairs), 0)
    rows = {layer: row for row, layer in enumerate(moe_layers)}
    num_responses = num_tokens = num_selecting = 0
    for routing in routings:
        num_responses += 1
        num_tokens += len(routing)
        is_selecting = False
        for layer, expert in counts:
            hits = int((routing[:, rows[layer]] == expert).any(axis=-1).sum())
            counts[layer, expert] += hits
            is_selecting |= hits > 0
        num_selecting += is_selecting
    return Selections(num_responses, num_tokens, num_selecting, counts)


def selections_in_traces(folder: Path, variant: Path, pairs: Sequence[Pair]) -> Selections:
    """Count the pairs in a trace folder of a variant.

    Raises:
        TraceError: the folder is none, is damaged, empty, or holds traces of another model than the variant.
        CheckpointError: the variant is no folder with a config.json, as GGUF is none.
    """
    reader = TraceReader(folder)
    config_sha256 = hashlib.sha256(Checkpoint.open(variant).config_text.encode()).hexdigest()
    found = str(reader.manifest["config_sha256"])
    if found != config_sha256:
        raise TraceError(
            f"{folder}: is of a model whose config.json has SHA-256 {found[:16]}, expected that of {variant}"
            f" ({config_sha256[:16]}); record the variant itself"
        )
    counted = count_selections((record.experts for record in reader), reader.manifest["moe_layers"], pairs)
    if not counted.num_responses:
        raise TraceError(
            f"{folder}: holds no response, expected at least one; mote-record with the same -o goes on where it stopped"
        )
    return counted
