"""Recordings of other recorders as trace folders: SGLang's expert distribution dumps, and responses saved from servers.

expert_distribution_recorder_*.pt   SGLang's `per_token` mode: records of forward passes without request ids. Requests
                                    are put together again by their tokens' positions; physical expert ids are mapped
                                    back to the experts that the checkpoint names.
*.jsonl                             answers of a server that returns routing, one a line: vLLM's /v1/completions (or its
                                    choices alone), SGLang's /generate. They need the prompt's token ids beside them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.endpoints import EndpointError
from ftri.prompts.rendering import RenderedPrompt, load_tokenizer
from ftri.served import Served, read_choice, read_generate, routing_record
from ftri.traces.reader import TraceRecord
from ftri.traces.writer import TraceWriter
from rewriter.checkpoint.reader import Checkpoint
from rewriter.errors import InputError
from rewriter.families.family import RouterLayout
from rewriter.hub.models import resolve_description

IntRows = npt.NDArray[np.integer]
DUMP_KEYS = ("records", "last_physical_to_logical_map")


@dataclass
class ImportSummary:
    """What was imported, and in words what the files could not tell."""

    output: str
    responses: int = 0
    tokens: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class _Request:
    """A request that is being put together from forward passes."""

    token_ids: list[int]
    rows: list[IntRows]
    num_prompt_tokens: int
    decoded: bool = False

    @property
    def next_position(self) -> int:
        return len(self.token_ids)


def import_recordings(
    files: Sequence[Path], output: Path, model: str, revision: str | None, say: Callable[[str], None]
) -> ImportSummary:
    """Write the responses of all files into a new trace folder.

    Raises:
        InputError: a file is of no known kind, or holds nothing that fits the model.
        TraceError: rows that cannot be a recording, or a folder that is in use or of something else.
    """
    resolved = resolve_description(model, revision, say)
    checkpoint = Checkpoint.open(resolved.folder)
    layout = checkpoint.layout
    tokenizer = load_tokenizer(resolved.folder)
    manifest = {
        "model": resolved.repo_id or resolved.folder.resolve().name,
        "revision": resolved.revision,
        "model_type": checkpoint.config.get("model_type"),
        "config_sha256": hashlib.sha256(checkpoint.config_text.encode()).hexdigest(),
        "moe_layers": list(layout.moe_layers),
        "num_experts": layout.num_experts,
        **({"num_other_choices": layout.num_other_choices} if layout.num_other_choices else {}),
        "top_k": layout.top_k,
        "template_sha256": None,
        "imported_from": [path.name for path in files],
    }
    summary = ImportSummary(str(output))
    with TraceWriter(output, manifest) as writer:
        if writer.completed:
            raise InputError(f"{output} holds {len(writer.completed)} responses already, expected a new folder")
        for path in files:
            before = summary.responses
            for record in _records(path, layout, tokenizer, summary):
                writer.append(record)
                summary.responses += 1
                summary.tokens += record.num_rows
            if summary.responses == before:
                raise InputError(f"{path.name}: holds no whole response, expected a recording of {model}")
    return summary


def _records(path: Path, layout: RouterLayout, tokenizer: Any, summary: ImportSummary) -> Iterator[TraceRecord]:
    if path.suffix == ".pt":
        return _dumped(path, layout, tokenizer, summary)
    if path.suffix in (".jsonl", ".json"):
        return _answered(path, layout, tokenizer)
    raise InputError(f"{path.name}: expected SGLang's dump (.pt) or responses with their routing (.jsonl)")


def _answered(path: Path, layout: RouterLayout, tokenizer: Any) -> Iterator[TraceRecord]:
    """Responses as servers gave them, one JSON object a line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}: cannot be read ({error}), expected JSONL") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            entry = json.loads(line)
        except (json.JSONDecodeError, RecursionError):
            raise InputError(f"{where}: is not JSON, expected a server's answer") from None
        if not isinstance(entry, dict):
            raise InputError(f"{where}: is no object, expected a server's answer")
        choices = entry.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else entry
        prompt_ids = choice.get("prompt_token_ids") or entry.get("prompt_token_ids") or entry.get("input_ids")
        if not isinstance(prompt_ids, list) or not all(isinstance(token, int) for token in prompt_ids):
            raise InputError(
                f"{where}: has no prompt_token_ids, expected the prompt's tokens (vLLM sends them with return_token_ids)"
            )
        try:
            served = read_generate(entry, layout.top_k, where) if "meta_info" in entry else read_choice(choice, where)
        except EndpointError as error:
            raise InputError(str(error)) from None
        prompt = _prompt(str(entry.get("prompt_id") or f"{path.stem}-{number:05d}"), prompt_ids, tokenizer)
        yield routing_record(layout, prompt, int(entry.get("sample") or 0), served)


def _dumped(path: Path, layout: RouterLayout, tokenizer: Any, summary: ImportSummary) -> Iterator[TraceRecord]:
    """Requests put together from SGLang's forward passes."""
    dump = _load_dump(path)
    table = np.asarray(dump["last_physical_to_logical_map"])
    finished: list[_Request] = []
    running: list[_Request] = []
    num_lost = num_ambiguous = 0
    for one in sorted(dump["records"], key=lambda record: int(record["forward_pass_id"])):
        if "topk_ids_of_layer" not in one:
            raise InputError(f"{path.name}: has no topk_ids_of_layer, expected SGLang's per_token mode (not stat)")
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
        prompt = _prompt(f"{path.stem}-{number:05d}", request.token_ids[: request.num_prompt_tokens], tokenizer)
        yield routing_record(layout, prompt, 0, served)
    summary.notes.append(
        f"{path.name}: has no request ids, texts or ends; ids are made up, texts are decoded, and the last token that was run"
        " stands for the one that was only sampled. Give labels with mote-ftri --labels where the texts do not decide"
    )
    if num_lost:
        summary.notes.append(f"{path.name}: {num_lost} requests begin in the prefix cache and are left out")
    if num_ambiguous:
        summary.notes.append(
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


def _load_dump(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError(
            f"{path.name}: reading SGLang's dump needs PyTorch; install mote-tunable-experts[torch]"
        ) from None
    import pickle

    try:
        dump = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        first = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise InputError(f"{path.name}: is no dump of SGLang's recorder ({first})") from None
    missing = [key for key in DUMP_KEYS if not isinstance(dump, dict) or key not in dump]
    if missing or not isinstance(dump["records"], list):
        raise InputError(
            f"{path.name}: has no {', '.join(missing) or 'list of records'}, expected a dump of SGLang's recorder"
        )
    return dump


def _prompt(prompt_id: str, token_ids: list[int], tokenizer: Any) -> RenderedPrompt:
    text = str(tokenizer.decode(token_ids))
    return RenderedPrompt(prompt_id, text, text, token_ids)
