"""SGLang's expert distribution dumps, in all of its recorder's modes (python/sglang/srt/eplb/expert_distribution.py).

per_token           {records, last_physical_to_logical_map}: forward passes without request ids, topk_ids_of_layer
                    [layers, T, slots] of physical experts. Requests are put together again by their tokens' positions.
per_pass            the same without tokens: global_physical_count [layers, physical experts] a forward pass.
stat, stat_approx   {logical_count [steps, layers, E]}, summed over the ranks and mapped back to the checkpoint's experts by
                    SGLang itself when it dumps. The buffer of steps is a ring.

Letters of shapes: T tokens, L MoE layers, K selected experts, E routed experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.prompts.rendering import decoded_prompt
from ftri.served import Served, routing_record
from ftri.traces.reader import TraceRecord
from rewriter.checkpoint.gguf.imatrix import SelectionCounts
from rewriter.errors import InputError
from rewriter.families.family import RouterLayout

IntRows = npt.NDArray[np.integer]
RECORDER = "SGLang's expert distribution recorder"
RECORDS, MAP, TOTALS, PER_PASS = "records", "last_physical_to_logical_map", "logical_count", "global_physical_count"
AS_CLASS = "mote-ftri import CLASS=FILE CLASS=FILE --model MODEL -o totals.json"


@dataclass(eq=False)
class _Request:
    """A request that is being put together from forward passes; another of the same tokens is another request."""

    token_ids: list[int]
    rows: list[IntRows]
    num_prompt_tokens: int
    decoded: bool = False

    @property
    def next_position(self) -> int:
        return len(self.token_ids)


def dumped_requests(path: Path, layout: RouterLayout, tokenizer: Any, notes: list[str]) -> Iterator[TraceRecord]:
    """Requests put together from SGLang's forward passes."""
    dump = load_dump(path)
    if TOTALS in dump:
        raise InputError(
            f"{path.name}: adds up all that was answered (SGLang's mode stat); give each dump its class: {AS_CLASS}"
        )
    table = np.asarray(dump["last_physical_to_logical_map"])
    finished: list[_Request] = []
    running: list[_Request] = []
    num_lost = num_ambiguous = 0
    for one in sorted(dump["records"], key=lambda record: int(record["forward_pass_id"])):
        if "topk_ids_of_layer" not in one:
            raise InputError(
                f"{path.name}: has no topk_ids_of_layer, so its mode is not per_token; give each dump its class:"
                f" {AS_CLASS}"
            )
        token_ids, positions = (np.asarray(one[key]).reshape(-1).tolist() for key in ("input_ids", "positions"))
        rows = logical_rows(np.asarray(one["topk_ids_of_layer"]), table, layout)
        lengths = one.get("extend_seq_lens")
        lengths = [] if lengths is None else np.asarray(lengths).reshape(-1).tolist()
        start = 0
        for length in lengths if sum(lengths) <= len(token_ids) else []:
            part = slice(start, start + length)
            start += length
            begun = next((r for r in running if not r.decoded and r.next_position == positions[part.start]), None)
            if positions[part.start] == 0 and length:
                running.append(_Request(token_ids[part], [rows[part]], length))
            elif begun is not None:
                begun.token_ids += token_ids[part]
                begun.rows.append(rows[part])
                begun.num_prompt_tokens += length
            else:
                # The beginning came from the prefix cache, whose routing is in another request.
                num_lost += 1
        if start == len(token_ids):
            continue
        used: list[_Request] = []
        for place in range(start, len(token_ids)):
            fits = [r for r in running if r not in used and r.next_position == positions[place]]
            num_ambiguous += len(fits) > 1
            if not fits:
                continue
            fits[0].token_ids.append(token_ids[place])
            fits[0].rows.append(rows[place : place + 1])
            fits[0].decoded = True
            used.append(fits[0])
        # A request that takes no part in a decoding step has ended: batches keep their order.
        finished += [request for request in running if request not in used]
        running = used
    for number, request in enumerate(finished + running):
        served = _as_served(request, tokenizer)
        prompt = decoded_prompt(f"{path.stem}-{number:05d}", request.token_ids[: request.num_prompt_tokens], tokenizer)
        yield routing_record(layout, prompt, 0, served)
    notes.append(
        f"{path.name}: has no request ids, texts or ends; ids are made up, texts are decoded, and the last token that was run"
        " stands for the one that was only sampled. Give labels with mote-ftri --labels where the texts do not decide"
    )
    if num_lost:
        notes.append(f"{path.name}: {num_lost} requests begin in the prefix cache and are left out")
    if num_ambiguous:
        notes.append(
            f"{path.name}: {num_ambiguous} decoding steps fitted several requests of one length; the batch's order decided"
        )


def _as_served(request: _Request, tokenizer: Any) -> Served:
    rows = np.concatenate(request.rows)
    completion = request.token_ids[request.num_prompt_tokens :]
    num_rows = request.num_prompt_tokens + max(len(completion), 1) - 1
    return Served(str(tokenizer.decode(completion)), completion, "unknown", rows[:num_rows])


def logical_rows(selected: IntRows, physical_to_logical: IntRows, layout: RouterLayout) -> IntRows:
    """The checkpoint's expert ids [T, L, K] of physical ones [all layers, T, slots], where -1 is an empty slot.

    Raises:
        InputError: the layers or the slots do not fit the model.
    """
    layers = list(layout.moe_layers)
    if selected.ndim != 3 or len(selected) <= layers[-1] or len(physical_to_logical) <= layers[-1]:
        raise InputError(
            f"the dump has routing of the shape {list(selected.shape)},"
            f" expected [at least {layers[-1] + 1} layers, tokens, slots]"
        )
    kept = selected[layers]
    if (kept >= physical_to_logical.shape[1]).any():
        raise InputError(
            f"the dump names physical expert {int(kept.max())}, of {physical_to_logical.shape[1]} in its map"
        )
    logical = np.where(kept >= 0, physical_to_logical[layers][np.arange(len(layers))[:, None, None], kept], -1)
    # Empty slots last; a row with other than K experts is left to the check that every row passes.
    ordered = -np.sort(-logical, axis=2)[:, :, : layout.top_k]
    return np.ascontiguousarray(ordered.transpose(1, 0, 2))


def class_selections(paths: Sequence[Path], layout: RouterLayout, notes: list[str]) -> SelectionCounts:
    """The selections of one class, of one dump or the sum of several (of ranks, or of sittings), in model layers.

    A token counts once in each rank that routes it, so under tensor parallelism num_tokens is a multiple of the tokens;
    shares are not touched by that.

    Raises:
        InputError: a file is no dump, holds no counts, or counts that are not this model's.
    """
    if layout.num_other_choices:
        raise InputError(
            f"the model's routers also select {layout.num_other_choices} experts that compute nothing, which SGLang's counts"
            " have no place for; record it with mote-record"
        )
    layers = list(layout.moe_layers)
    total = np.zeros((len(layers), layout.num_experts), np.int64)
    for path in paths:
        counted = _counted(path, load_dump(path), notes)
        if counted.shape[1] != layout.num_experts or len(counted) <= layers[-1]:
            raise InputError(
                f"{path.name}: counts [layers, experts] {list(counted.shape)}, expected"
                f" [at least {layers[-1] + 1}, {layout.num_experts}] as --model has"
            )
        total += counted[layers]
    name = ", ".join(path.name for path in paths)
    sums = total.sum(axis=1)
    empty = [layer for layer, number in zip(layers, sums.tolist(), strict=True) if not number]
    if (total < 0).any() or empty:
        where = f"counts nothing in layers {', '.join(map(str, empty))}" if empty else "holds negative counts"
        raise InputError(
            f"{name}: {where}; between /start_expert_distribution_record and"
            " /dump_expert_distribution_record the server has to answer the prompts of the class"
        )
    if (sums % layout.top_k).any():
        layer = layers[int(np.argmax(sums % layout.top_k != 0))]
        raise InputError(
            f"{name}: layer {layer} counts {int(total[layers.index(layer)].sum())} selections, expected a multiple of"
            f" {layout.top_k}, the experts of a token; start SGLang with --disable-shared-experts-fusion and record in the mode"
            " stat, since stat_approx only estimates"
        )
    return SelectionCounts(
        name,
        {layer: row.astype(np.float64) for layer, row in zip(layers, total, strict=True)},
        {layer: int(number) // layout.top_k for layer, number in zip(layers, sums, strict=True)},
        None,
    )


def _counted(path: Path, dump: dict[str, Any], notes: list[str]) -> npt.NDArray[np.int64]:
    """[all layers, E] selections of logical experts that a dump holds."""
    if TOTALS in dump:
        steps = np.asarray(dump[TOTALS])
        if steps.ndim != 3 or not steps.size or steps.dtype.kind not in "iu":
            raise InputError(
                f"{path.name}: {TOTALS} has the shape {list(steps.shape)}, expected integers [steps, layers, experts]"
            )
        if steps.any(axis=(1, 2)).all():
            notes.append(
                f"{path.name}: each of the buffer's {len(steps)} steps holds counts; unless the server was started with"
                " --expert-distribution-recorder-buffer-size -1, earlier ones were overwritten"
            )
        return steps.sum(axis=0, dtype=np.int64)
    table = np.asarray(dump[MAP], np.int64)
    counted = np.zeros((len(table), int(table.max(initial=0)) + 1), np.int64)
    for one in dump[RECORDS]:
        physical = np.asarray(one[PER_PASS], np.int64) if PER_PASS in one else np.zeros(0)
        if physical.shape != table.shape:
            raise InputError(
                f"{path.name}: a forward pass has {PER_PASS} of the shape {list(physical.shape)}, expected {list(table.shape)} as"
                f" its map; record in the mode stat, or give it without CLASS= if its mode is per_token"
            )
        np.add.at(counted, (np.arange(len(table))[:, None], table), physical)
    return counted


def load_dump(path: Path) -> dict[str, Any]:
    """What SGLang's recorder wrote: a dump of single passes, or one of totals.

    Raises:
        InputError: the file is neither.
    """
    import pickle

    import torch

    try:
        dump = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise InputError(f"{path.name}: is no dump of SGLang's recorder ({first})") from None
    if isinstance(dump, dict) and TOTALS in dump:
        return dump
    missing = [key for key in (RECORDS, MAP) if not isinstance(dump, dict) or key not in dump]
    if missing or not isinstance(dump[RECORDS], list):
        raise InputError(
            f"{path.name}: has no {', '.join(missing) or 'list of records'}, expected a dump of SGLang's recorder"
        )
    return dump
