"""The edits in force, as tensors that a compiled or captured graph reads: one slot an edit, one slot a token.

A request brings its whole edit (`RequestEdit`). Before a step, every distinct edit of the step's requests has a slot of the
tables, and every token the number of its request's slot; slot 0 is the base and changes nothing. So any number of requests
with edits of their own share a batch, nothing is installed or taken back, and there are as many slots as a step can have
requests. Which experts an edit names and how strongly is all in its slot: named sets and the few pairs that a request brings
for screening single experts are the same thing here.

Letters of shapes: L MoE layers of this rank, S slots, E experts, K selected experts, N tokens of a step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ftri.worker.request import RequestEdit

# What an edit does in a layer; the parts of a step's computation that no edit of the step needs are left out in eager mode.
REROUTES, WEIGHS, STIMULATES = 1, 2, 4
EVERYTHING = REROUTES | WEIGHS | STIMULATES


@dataclass
class EditTables:
    """All slots of one worker's model, and which slot every token of the step has."""

    layers: list[int]  # model layers, ascending; a layer's row in the tables is its place here
    num_experts: int
    top_k: int
    num_slots: int
    num_tokens: int  # a step's most
    device: torch.device
    is_eager: bool  # Python runs in every layer of every step, so that what no edit needs can be left out
    factor: torch.Tensor = field(init=False)  # [L, S, E] float32
    bias: torch.Tensor = field(init=False)  # [L, S, E] float32, NaN where the router's own stays
    is_centroid: torch.Tensor = field(init=False)  # [L, S, E] bool, whose logit becomes the others' mean
    is_rerouted: torch.Tensor = field(init=False)  # [L, S] bool
    stimulated: torch.Tensor = field(init=False)  # [L, S, K] int64, -1 behind a layer's last
    strength: torch.Tensor = field(init=False)  # [S] float32, of stimulation
    renormalizes: torch.Tensor = field(init=False)  # [S] bool
    slots: torch.Tensor = field(init=False)  # [N of the largest step] int64: every token's slot
    # What of a slot every layer asks for, by token: where its factors begin, [N, 1] int64, and [N, 1] bool.
    starts: torch.Tensor = field(init=False)
    token_renormalizes: torch.Tensor = field(init=False)
    needed: list[int] = field(init=False)  # what the step's edits do in each layer: REROUTES | WEIGHS | STIMULATES

    def __post_init__(self) -> None:
        """Allocate the tables; every slot is the base."""
        device, by_slot = self.device, (len(self.layers), self.num_slots)
        # A model is constructed under its own default type.
        number = {"dtype": torch.float32, "device": device}
        self.factor = torch.ones(*by_slot, self.num_experts, **number)
        self.bias = torch.full((*by_slot, self.num_experts), float("nan"), **number)
        self.is_centroid = torch.zeros(*by_slot, self.num_experts, dtype=torch.bool, device=device)
        self.is_rerouted = torch.zeros(by_slot, dtype=torch.bool, device=device)
        self.stimulated = torch.full((*by_slot, self.top_k), -1, dtype=torch.int64, device=device)
        self.strength = torch.ones(self.num_slots, **number)
        self.renormalizes = torch.zeros(self.num_slots, dtype=torch.bool, device=device)
        self.slots = torch.zeros(self.num_tokens, dtype=torch.int64, device=device)
        self.starts = torch.zeros(self.num_tokens, 1, dtype=torch.int64, device=device)
        self.token_renormalizes = torch.zeros(self.num_tokens, 1, dtype=torch.bool, device=device)
        # Indexing a tensor of all layers costs as much as what is then done with one.
        self._factor_of_row = [factor.view(-1) for factor in self.factor]
        self.needed = [0 if self.is_eager else EVERYTHING] * len(self.layers)
        self._row = {layer: row for row, layer in enumerate(self.layers)}
        # The edit of each slot but 0, the least recently used first, and what it does by row.
        self._slot_of: OrderedDict[Hashable, int] = OrderedDict()
        self._free = list(range(self.num_slots - 1, 0, -1))
        self._needs: dict[int, dict[int, int]] = {0: {}}
        self._is_base = True
        self._is_fixed = False
        self._last_step: tuple[Sequence[Any], Sequence[int]] = ((), ())

    def slots_of(self, num_tokens: int) -> torch.Tensor:
        """The slots [N] of a step's tokens; with one slot every token has it, also those of other ranks, which the step does not
        know of."""
        if self.num_slots == 1:
            return torch.zeros(num_tokens, dtype=torch.int64, device=self.device)
        return self.slots[:num_tokens]

    def factor_of(self, row: int, ids: torch.Tensor) -> torch.Tensor:
        """The factors [N, K] float32 of the experts `ids` [N, K] int that a layer's tokens selected; anything for ids of -1."""
        wide = ids if ids.dtype in (torch.int32, torch.int64) else ids.to(torch.int64)
        if self.num_slots == 1:
            return self._factor_of_row[row][wide.to(torch.int64)]
        return self._factor_of_row[row][self.starts[: ids.shape[0]] + wide]

    def renormalizes_of(self, num_tokens: int) -> torch.Tensor:
        """Whether the weights of each token keep their sum, [N, 1] bool, or [1] for all of them."""
        return self.renormalizes if self.num_slots == 1 else self.token_renormalizes[:num_tokens]

    def write_step(self, edits: Sequence[tuple[Hashable, RequestEdit] | None], counts: Sequence[int]) -> None:
        """Make the tables those of a step: an edit (with the key that it is known by) or None for the base, and the number
        of tokens, of each of its requests in batch order. Tokens behind them, which pad a step, are the base's."""
        if self._is_base and not any(edits):
            return
        # Most steps are of the same requests as the one before, a token each.
        if edits == self._last_step[0] and counts == self._last_step[1]:
            return
        self._last_step = edits, counts
        wanted = {edit[0] for edit in edits if edit is not None}
        slot_numbers = [0 if edit is None else self._slot(edit, wanted) for edit in edits]
        self._is_base = not any(slot_numbers)
        used = torch.repeat_interleave(torch.tensor(slot_numbers), torch.tensor(counts))
        count = len(used)
        self.slots[:count] = used.to(self.slots.device)
        self.slots[count:] = 0
        self.starts[:count, 0] = self.slots[:count] * self.num_experts
        self.starts[count:] = 0
        self.token_renormalizes[:count, 0] = self.renormalizes[self.slots[:count]]
        self.token_renormalizes[count:] = False
        if self.is_eager and not self._is_fixed:
            self.needed = [0] * len(self.layers)
            for slot in set(slot_numbers):
                for row, need in self._needs[slot].items():
                    self.needed[row] |= need

    def _slot(self, edit: tuple[Hashable, RequestEdit], wanted: set[Hashable]) -> int:
        key, content = edit
        if key in self._slot_of:
            self._slot_of.move_to_end(key)
            return self._slot_of[key]
        if self._free:
            slot = self._free.pop()
        else:
            # A step has at most as many edits as there are slots, so one that it does not need is there.
            oldest = next(known for known in self._slot_of if known not in wanted)
            slot = self._slot_of.pop(oldest)
            self._clear(slot)
        self.fill(slot, content)
        self._slot_of[key] = slot
        return slot

    def fill(self, slot: int, edit: RequestEdit) -> None:
        """Write an edit into an empty slot; what it says of layers on other ranks is left out."""
        self.renormalizes[slot] = edit.renormalize
        self.strength[slot] = edit.strength
        for table, entries, need in ((self.bias, edit.bias, REROUTES), (self.factor, edit.factor, WEIGHS)):
            here = [(self._row[layer], expert, value) for layer, expert, value in entries if layer in self._row]
            if not here:
                continue
            rows, experts, values = zip(*here, strict=True)
            where = torch.tensor([rows, experts], device=table.device)
            table[where[0], slot, where[1]] = torch.tensor(values, dtype=table.dtype, device=table.device)
            if need == REROUTES:
                self.is_rerouted[where[0], slot] = True
        for layer, expert in edit.centroid:
            if layer in self._row:
                row = self._row[layer]
                self.is_centroid[row, slot, expert] = self.is_rerouted[row, slot] = True
        stimulated: dict[int, list[int]] = {}
        for layer, expert in edit.stimulate:
            if layer in self._row:
                stimulated.setdefault(self._row[layer], []).append(expert)
        for row, chosen in stimulated.items():
            self.stimulated[row, slot, : len(chosen)] = torch.tensor(sorted(chosen), device=self.stimulated.device)
        self._needs[slot] = self._needs_of(edit)

    def allow(self, edits: Sequence[RequestEdit]) -> None:
        """Say which edits there can be, where they are known beforehand: layers and parts that none of them has are never
        computed, in any mode. A part of an edit needs what the whole needs."""
        self.needed = [0] * len(self.layers)
        for edit in edits:
            for row, need in self._needs_of(edit).items():
                self.needed[row] |= need
        self._is_fixed = True

    def _needs_of(self, edit: RequestEdit) -> dict[int, int]:
        """What an edit does in each row."""
        needs: dict[int, int] = {}
        # Stimulation is followed by the weighing, which renormalises.
        parts = (
            (edit.bias, REROUTES),
            (edit.centroid, REROUTES),
            (edit.factor, WEIGHS),
            (edit.stimulate, STIMULATES | WEIGHS),
        )
        for entries, need in parts:
            for entry in entries:
                if entry[0] in self._row:
                    needs[self._row[entry[0]]] = needs.get(self._row[entry[0]], 0) | need
        return needs

    def _clear(self, slot: int) -> None:
        """Make a slot the base's again."""
        rows = list(self._needs.pop(slot))
        if not rows:
            return
        self.factor[rows, slot] = 1.0
        self.bias[rows, slot] = float("nan")
        self.is_centroid[rows, slot] = False
        self.is_rerouted[rows, slot] = False
        self.stimulated[rows, slot] = -1
