"""Activation maps: how many tokens of each prompt selected each expert, counted while the traces stream past.

Letters of shapes: T tokens of a response, P responses in the analysis, L MoE layers, E experts, K selected experts.
Paper, "prompt activation map". Which tokens count is `positions`; the paper does not say whether the template's do:
here they do, `varying` and `shared` tell them apart.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from array import array
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ftri.labels.contrast import Contrast, Labeller, ResponseKey
from ftri.traces.reader import Responses
from rewriter.errors import InputError

if TYPE_CHECKING:
    from ftri.traces.reader import TraceReader, TraceRecord

POSITIONS = {
    "prompt": "every token of the rendered prompt",
    "completion": "every generated token but the last, which is never run",
    "all": "prompt and completion tokens",
    "shared": "the prompt's tokens that all prompts begin and end with (template, closing words)",
    "varying": "the prompt's other tokens",
    "last": "the last token of the prompt",
}
# Tokens counted at a time: the 64-bit copy of their ids stays in the processor's cache.
BLOCK_TOKENS = 128
# Rows that are read and worked on at a time.
BLOCK_SIZE_BYTES = 8 * 1024 * 1024
# Above this size the maps go to a temporary file instead of memory.
MAX_MEMORY_BYTES = 64 * 1024 * 1024

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True)
class Observation:
    """A response that takes part: what is known of it besides its map; its texts stay in the traces, being many."""

    prompt_id: str
    sample: int
    label: str
    group: int
    factors: dict[str, str]
    num_prompt_tokens: int


@dataclass(frozen=True)
class SharedTokens:
    """How many tokens all prompts have in common at their start and at their end."""

    prefix: int
    suffix: int


class MapStore:
    """Rows [L * E] float32 (exact up to 16,777,216 tokens per expert), in memory or, when they are many, in a file."""

    def __init__(self, num_columns: int, max_memory_bytes: int = MAX_MEMORY_BYTES) -> None:
        """An empty store for rows of `num_columns`."""
        self.num_columns = num_columns
        self._rows_per_block = max(1, BLOCK_SIZE_BYTES // (4 * num_columns))
        self._max_rows = max(1, max_memory_bytes // (4 * num_columns))
        self._blocks: list[npt.NDArray[np.float32]] = []
        self._num_rows = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        """How many rows there are."""
        return self._num_rows

    def append(self, row: npt.NDArray[Any]) -> None:
        """Add one map."""
        offset = self._num_rows % self._rows_per_block
        if self._file is not None:
            self._file.write(row.astype(np.float32).tobytes())
        else:
            if offset == 0:
                self._blocks.append(np.empty((self._rows_per_block, self.num_columns), np.float32))
            self._blocks[-1][offset] = row
        self._num_rows += 1
        if self._file is None and self._num_rows >= self._max_rows:
            self._spill()

    def _spill(self) -> None:
        # An unnamed file: it disappears with the process, however that ends.
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (kept open as long as the store)
        for _, block in self._memory_blocks():
            self._file.write(block.tobytes())
        self._blocks = []

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """The rows in order as (number of the first row, rows [n, L * E])."""
        if self._file is None:
            yield from self._memory_blocks()
            return
        self._file.flush()
        for start in range(0, self._num_rows, self._rows_per_block):
            count = min(self._rows_per_block, self._num_rows - start)
            self._file.seek(start * self.num_columns * 4)
            rows = np.fromfile(self._file, np.float32, count * self.num_columns)
            yield start, rows.reshape(count, self.num_columns)
        self._file.seek(0, 2)

    def _memory_blocks(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        for number, block in enumerate(self._blocks):
            start = number * self._rows_per_block
            yield start, block[: min(self._rows_per_block, self._num_rows - start)]

    def row(self, number: int) -> npt.NDArray[np.float32]:
        """One map [L * E]."""
        for start, block in self.blocks():
            if start <= number < start + len(block):
                return block[number - start].copy()
        raise IndexError(number)

    def weighted_sums(self, weights: npt.NDArray[Any], dtype: type[np.floating[Any]] = np.float64) -> FloatArray:
        """`weights` [N, P] times the maps: [N, L * E]. In float32 sums of counts are exact below 16,777,216."""
        total = np.zeros((len(weights), self.num_columns), dtype)
        for start, block in self.blocks():
            total += weights[:, start : start + len(block)].astype(dtype) @ block.astype(dtype, copy=False)
        return total


@dataclass
class ActivationMaps:
    """The maps of all responses that take part, and what was left out.

    `counts` [P, L * E] tokens; `num_tokens` [P] tokens that counted; `dropped` label -> number of responses left out;
    `prompt_digests` SHA-256 of the distinct prompts' texts, by which a later test can tell that it reuses one;
    `num_other_choices` ids behind the E experts that routers select too (zero-computation experts), which are not counted;
    `num_repeated` responses that another folder holds as well.
    """

    counts: MapStore
    num_tokens: npt.NDArray[np.int64]
    observations: list[Observation]
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    positions: str
    shared: SharedTokens
    dropped: dict[str, int] = field(default_factory=dict)
    prompt_digests: Set[bytes] = frozenset()
    num_other_choices: int = 0
    num_repeated: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """(L, E)."""
        return len(self.moe_layers), self.num_experts

    def row_of(self, layer: int) -> int:
        """The row of the map, 0 to L - 1, that holds the model's layer `layer`."""
        return self.moe_layers.index(layer)

    @property
    def groups(self) -> npt.NDArray[np.int64]:
        """[P]: 0 for the class, 1, 2, ... for the others."""
        return np.array([observation.group for observation in self.observations], np.int64)


def shared_tokens(prompts: Iterator[Sequence[int]]) -> SharedTokens:
    """The longest common start and, without overlap, the longest common end of all prompts' token ids."""
    first = next(prompts, None)
    if first is None:
        return SharedTokens(0, 0)
    prefix = suffix = shortest = len(first)
    for tokens in prompts:
        shortest = min(shortest, len(tokens))
        prefix = _common(first, tokens, prefix)
        suffix = _common(first[::-1], tokens[::-1], suffix)
    return SharedTokens(prefix, min(suffix, shortest - prefix))


def _common(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    limit = min(limit, len(first), len(second))
    return next((number for number in range(limit) if first[number] != second[number]), limit)


def counted_rows(record: TraceRecord, positions: str, shared: SharedTokens) -> npt.NDArray[Any]:
    """The rows [n, L, K] of a response's experts that `positions` counts."""
    num_prompt = len(record.prompt_token_ids)
    experts: npt.NDArray[Any] = record.experts
    if positions == "shared":
        return np.concatenate([experts[: shared.prefix], experts[num_prompt - shared.suffix : num_prompt]])
    start, end = counted_span(num_prompt, len(experts), positions, shared)
    return experts[start:end]


def counted_span(num_prompt: int, num_rows: int, positions: str, shared: SharedTokens) -> tuple[int, int]:
    """First row and the one after the last that `positions` counts; for `shared` the whole prompt, see `is_counted`."""
    return {
        "prompt": (0, num_prompt),
        "completion": (num_prompt, num_rows),
        "all": (0, num_rows),
        "shared": (0, num_prompt),
        "varying": (shared.prefix, num_prompt - shared.suffix),
        "last": (num_prompt - 1, num_prompt),
    }[positions]


def count_selections(experts: npt.NDArray[Any], num_experts: int, num_other_choices: int = 0) -> npt.NDArray[np.int64]:
    """How many tokens selected each expert: experts [T, L, K] ids -> [L * E] tokens.

    num_other_choices: ids from E on that a router selects too (zero-computation experts); they are passed over.

    Raises:
        InputError: an id that is not below the sum of both.
    """
    num_tokens, num_layers, num_selected = experts.shape
    num_choices = num_experts + num_other_choices
    # One long row per token: adding along K alone would be loops of eight.
    offsets = np.repeat(np.arange(num_layers) * num_choices, num_selected)
    counts = np.zeros(num_layers * num_choices, np.int64)
    if experts.size and num_choices <= np.iinfo(experts.dtype).max and int(experts.max()) >= num_choices:
        raise InputError(f"the trace holds the expert id {int(experts.max())}, expected ids below {num_choices}")
    for start in range(0, num_tokens, BLOCK_TOKENS):
        block = experts[start : start + BLOCK_TOKENS].reshape(-1, offsets.size) + offsets
        counts += np.bincount(block.ravel(), minlength=counts.size)
    return counts.reshape(num_layers, num_choices)[:, :num_experts].reshape(-1)


def read_maps(
    readers: Sequence[TraceReader], contrast: Contrast, labeller: Labeller, positions: str = "prompt"
) -> ActivationMaps:
    """Stream the traces twice (text, then experts) and count; one chunk and one map are in memory at a time.

    Raises:
        InputError: no responses, or none with tokens at these positions.
        TraceError: a damaged folder.
    """
    responses = Responses(readers)
    shared = shared_tokens(record.prompt_token_ids for reader in readers for record in reader.metadata())
    facts = readers[0].facts
    num_experts, moe_layers = facts.num_experts, tuple(facts.moe_layers)
    counts = MapStore(len(moe_layers) * num_experts)
    observations: list[Observation] = []
    num_tokens = array("q")
    dropped: dict[str, int] = {}
    digests: set[bytes] = set()
    # Labels and factors repeat: one object for each serves all the responses that have it.
    same: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    for record in responses:
        label = labeller(record)
        group = contrast.group(label)
        if group is None:
            dropped[label] = dropped.get(label, 0) + 1
            continue
        rows = counted_rows(record, positions, shared)
        counts.append(count_selections(rows, num_experts, facts.num_other_choices))
        num_tokens.append(len(rows))
        digests.add(hashlib.sha256(record.prompt.encode()).digest())
        factors = same.setdefault(tuple(sorted(record.factors.items())), record.factors)
        observations.append(
            Observation(
                record.prompt_id, record.sample, sys.intern(label), group, factors, len(record.prompt_token_ids)
            )
        )
    if not observations and not dropped:
        raise InputError(
            f"{', '.join(str(reader.folder) for reader in readers)}: the traces hold no response;"
            " mote-record with the same -o goes on where it stopped"
        )
    if observations and not any(num_tokens):
        raise InputError(f"--positions {positions}: no response has a token there ({POSITIONS[positions]})")
    return ActivationMaps(
        counts,
        np.array(num_tokens, np.int64),
        observations,
        moe_layers,
        num_experts,
        facts.top_k,
        positions,
        shared,
        dropped,
        digests,
        facts.num_other_choices,
        responses.num_repeated,
    )


def response_keys(readers: Sequence[TraceReader]) -> set[ResponseKey]:
    """(prompt id, sample) of every response in the traces."""
    return {record.key for reader in readers for record in reader.metadata()}
