"""Which tokens, in which contexts, select an expert: a second pass over the traces for the few experts that are looked at.

Letters of shapes: T tokens of a response, V token ids, M experts looked at, L MoE layers, K selected experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ftri.analysis.maps import SharedTokens, counted_span
from ftri.labels.contrast import Contrast, Labeller
from ftri.traces.reader import Responses

if TYPE_CHECKING:
    from ftri.traces.reader import TraceReader, TraceRecord

CONTEXT_TOKENS = 12
MAX_CONTEXTS_PER_TOKEN = 6
MAX_CONTEXTS_KEPT = 600
MIN_OCCURRENCES = 3
# Ids below it have the column of their number, as those of every vocabulary in use; others get one when they occur.
DENSE_IDS = 1 << 18


@dataclass(frozen=True)
class Context:
    """A place where an expert was selected: token ids around it, which of them selected it, and whose response it is."""

    prompt_id: str
    label: str
    token_ids: tuple[int, ...]
    selected: tuple[bool, ...]
    focus: int


@dataclass(frozen=True)
class TokenLift:
    """A token that selects an expert more often than tokens in general do. `rate` and `base_rate` are shares of tokens."""

    token_id: int
    num_occurrences: int
    rate: float
    base_rate: float
    lift: float


@dataclass
class TokenStudy:
    """Counts over the tokens that `positions` counts.

    `num_tokens` [2, V] occurrences of each token id in the class and in the others; `num_selected` [M, 2, V] how many of them
    selected the expert; `contexts` M lists. A column is the token id itself, or one of `far_columns` (id -> column).
    """

    experts: tuple[tuple[int, int], ...]
    num_tokens: npt.NDArray[np.int64]
    num_selected: npt.NDArray[np.int64]
    contexts: list[list[Context]] = field(default_factory=list)
    far_columns: dict[int, int] = field(default_factory=dict)

    def columns(self, token_ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The columns [T] of token ids [T], new ones for ids far out: a table up to the largest id could fill the memory."""
        far = token_ids >= DENSE_IDS
        if not far.any():
            return token_ids
        columns = token_ids.copy()
        columns[far] = [
            self.far_columns.setdefault(token_id, DENSE_IDS + len(self.far_columns))
            for token_id in token_ids[far].tolist()
        ]
        return columns

    def token_ids(self) -> npt.NDArray[np.int64]:
        """The token id [V] of each column."""
        ids = np.arange(self.num_tokens.shape[1])
        for token_id, column in self.far_columns.items():
            ids[column] = token_id
        return ids

    def base_rates(self) -> npt.NDArray[np.floating[Any]]:
        """[M]: the share of all tokens that selected each expert."""
        return self.num_selected.sum(axis=(1, 2)) / max(int(self.num_tokens.sum()), 1)

    def lifts(self, expert: int, count: int = 8) -> list[TokenLift]:
        """The tokens that select expert number `expert` furthest above its base rate, by the Wilson lower bound of their rate."""
        occurrences = self.num_tokens.sum(axis=0)
        selected = self.num_selected[expert].sum(axis=0)
        base = float(self.base_rates()[expert])
        if base == 0:
            return []
        often = np.flatnonzero((occurrences >= MIN_OCCURRENCES) & (selected > 0))
        rates = selected[often] / occurrences[often]
        bound = wilson_lower(rates, occurrences[often])
        order = np.argsort(-bound, kind="stable")
        ids = self.token_ids()
        return [
            TokenLift(int(ids[often[i]]), int(occurrences[often[i]]), float(rates[i]), base, float(rates[i] / base))
            for i in order[:count]
            if bound[i] > base
        ]

    def best_contexts(self, expert: int, count: int = 6) -> list[Context]:
        """Contexts of the tokens with the highest lift, one per token first, then more of the same tokens."""
        by_token: dict[int, list[Context]] = {}
        for context in self.contexts[expert]:
            by_token.setdefault(context.token_ids[context.focus], []).append(context)
        ranked = [by_token[lift.token_id] for lift in self.lifts(expert, 40) if lift.token_id in by_token]
        ranked += [contexts for contexts in by_token.values() if contexts not in ranked]
        rounds = (
            contexts[turn] for turn in range(MAX_CONTEXTS_PER_TOKEN) for contexts in ranked if turn < len(contexts)
        )
        return [context for context, _ in zip(rounds, range(count), strict=False)]


def wilson_lower(rates: npt.NDArray[Any], counts: npt.NDArray[Any], z: float = 1.96) -> npt.NDArray[Any]:
    """Lower end of Wilson's 95 % interval of each rate."""
    centre = rates + z * z / (2 * counts)
    spread = z * np.sqrt(rates * (1 - rates) / counts + z * z / (4 * counts * counts))
    return (centre - spread) / (1 + z * z / counts)


def study_tokens(
    readers: Sequence[TraceReader],
    contrast: Contrast,
    labeller: Labeller,
    positions: str,
    shared: SharedTokens,
    experts: Sequence[tuple[int, int]],
) -> TokenStudy:
    """Count which tokens select `experts`, given as (row of the map, expert), at the counted positions."""
    study = TokenStudy(
        tuple(experts), np.zeros((2, 0), np.int64), np.zeros((len(experts), 2, 0), np.int64), [[] for _ in experts]
    )
    kept: list[dict[int, int]] = [{} for _ in experts]
    for record in Responses(readers):
        label = labeller(record)
        group = contrast.group(label)
        if group is not None:
            _add(study, kept, record, label, min(group, 1), positions, shared)
    return study


def _add(
    study: TokenStudy,
    kept: list[dict[int, int]],
    record: TraceRecord,
    label: str,
    side: int,
    positions: str,
    shared: SharedTokens,
) -> None:
    rows: npt.NDArray[Any] = record.experts
    num_prompt = len(record.prompt_token_ids)
    start, end = counted_span(num_prompt, len(rows), positions, shared)
    token_ids = np.array([*record.prompt_token_ids, *record.completion_token_ids][: len(rows)], np.int64)
    counted = np.zeros(len(rows), bool)
    counted[start:end] = True
    if positions == "shared":
        counted[shared.prefix : num_prompt - shared.suffix] = False
    if not counted.any():
        return
    columns = study.columns(token_ids)
    _grow(study, int(columns.max()) + 1)
    layers, numbers = np.array(study.experts).reshape(-1, 2).T
    selected = (rows[:, layers, :] == numbers[None, :, None]).any(axis=2) & counted[:, None]
    np.add.at(study.num_tokens[side], columns[counted], 1)
    tokens, hits = np.nonzero(selected)
    np.add.at(study.num_selected[:, side], (hits, columns[tokens]), 1)
    for token, hit in zip(tokens.tolist(), hits.tolist(), strict=True):
        token_id = int(token_ids[token])
        seen = kept[hit].get(token_id, 0)
        if seen < MAX_CONTEXTS_PER_TOKEN and len(study.contexts[hit]) < MAX_CONTEXTS_KEPT:
            kept[hit][token_id] = seen + 1
            study.contexts[hit].append(_context(record, label, token_ids, selected[:, hit], token))


def _grow(study: TokenStudy, size: int) -> None:
    missing = size - study.num_tokens.shape[1]
    if missing > 0:
        # In steps, so that ids that arrive in rising order do not copy the tables each time.
        missing = max(missing, study.num_tokens.shape[1])
        study.num_tokens = np.pad(study.num_tokens, ((0, 0), (0, missing)))
        study.num_selected = np.pad(study.num_selected, ((0, 0), (0, 0), (0, missing)))


def _context(
    record: TraceRecord, label: str, token_ids: npt.NDArray[np.int64], selected: npt.NDArray[np.bool_], focus: int
) -> Context:
    start, end = max(0, focus - CONTEXT_TOKENS), focus + CONTEXT_TOKENS + 1
    return Context(
        record.prompt_id,
        label,
        tuple(token_ids[start:end].tolist()),
        tuple(selected[start:end].tolist()),
        focus - start,
    )
