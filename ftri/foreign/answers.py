"""Responses that servers or engines returned with their routing, saved by their users.

*.jsonl   an answer a line: vLLM's /v1/completions (or its choices alone), SGLang's /generate, with the prompt's token ids.
*.npy     vLLM's `CompletionOutput.routed_experts` alone, [T, layers, K], a response a file: no tokens, no texts, no prompt's end.

Letters of shapes: T tokens that were run, L MoE layers, K selected experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ftri.endpoint import EndpointError
from ftri.prompts.rendering import RenderedPrompt, decoded_prompt
from ftri.served import Served, read_choice, read_generate, routing_record
from ftri.traces.reader import TraceRecord
from ftri.traces.schema import UNKNOWN_TOKEN_ID
from rewriter.errors import InputError
from rewriter.families.family import RouterLayout
from rewriter.json_text import whole_characters
from rewriter.small_file import MAX_TABLE_BYTES, read_small


def answered(path: Path, layout: RouterLayout, tokenizer: Any) -> Iterator[TraceRecord]:
    """Responses as servers gave them, one JSON object a line."""
    try:
        # Not splitlines(): it also breaks at U+2028 and U+0085, which JSON strings may hold.
        lines = read_small(path, MAX_TABLE_BYTES).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name}: cannot be read ({error}), expected JSONL") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            entry = whole_characters(json.loads(line))
        except (json.JSONDecodeError, RecursionError):
            raise InputError(f"{where}: is not JSON, expected a server's answer") from None
        if not isinstance(entry, dict):
            raise InputError(f"{where}: is no object, expected a server's answer")
        choices = entry.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else entry
        prompt_ids = choice.get("prompt_token_ids") or entry.get("prompt_token_ids") or entry.get("input_ids")
        if not isinstance(prompt_ids, list) or not all(map(_is_count, prompt_ids)):
            raise InputError(
                f"{where}: has no prompt_token_ids, expected the prompt's tokens (vLLM sends them with return_token_ids)"
            )
        sample = entry.get("sample") or 0
        if not _is_count(sample):
            raise InputError(f"{where}: has the sample {str(sample)[:40]}, expected a number of 0, 1, 2 ...")
        try:
            served = read_generate(entry, layout.top_k, where) if "meta_info" in entry else read_choice(choice, where)
        except EndpointError as error:
            raise InputError(str(error)) from None
        prompt = decoded_prompt(str(entry.get("prompt_id") or f"{path.stem}-{number:05d}"), prompt_ids, tokenizer)
        yield routing_record(layout, prompt, sample, served)


def _is_count(value: object) -> bool:
    """Whether a JSON value is a token id, or the number of a sample."""
    return type(value) is int and 0 <= value < 1 << 31


def array(path: Path, layout: RouterLayout) -> Iterator[TraceRecord]:
    """One response of which only the rows are known; all of them count as the prompt's.

    Raises:
        InputError: the file holds no array of integers.
        TraceError: rows that cannot be a recording of this model.
    """
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path.name}: is no .npy array ({error}), expected vLLM's routed_experts") from None
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu" or rows.ndim != 3 or not len(rows):
        found = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise InputError(f"{path.name}: holds {found}, expected integers [tokens, layers, experts of a token]")
    prompt = RenderedPrompt(path.stem, "", "", [UNKNOWN_TOKEN_ID] * len(rows))
    # One token that was sampled and not run, as in every response.
    yield routing_record(layout, prompt, 0, Served("", [UNKNOWN_TOKEN_ID], "unknown", rows))
