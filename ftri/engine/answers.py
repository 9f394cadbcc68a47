"""What is asked of an engine and what comes back: how completions are drawn, responses, scores.

Letters of shapes: T tokens run through the model, L MoE layers, K selected experts, N most likely tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.engine.edits import PlannedEdit, ServedChoice
from ftri.prompts.rendering import RenderedPrompt, first_line
from ftri.traces.rows import Experts, Weights
from ftri.worker import internals
from rewriter.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn; temperature 0 takes the most likely token, `top_k` 0 considers all."""

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def seed_of(self, prompt_id: str, sample: int) -> int | None:
        """The seed of one response, so that the order of requests changes nothing; None where nothing is drawn."""
        if self.temperature <= 0:
            return None
        return int.from_bytes(hashlib.sha256(f"{self.seed}\n{sample}\n{prompt_id}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Generation:
    """One finished response; `experts` [T, L, K] uint8 or uint16, ascending within K, or None when not recorded; `weights`
    [T, L, K] float16 or float32, theirs as the router hands them to the kernels, or None when not kept."""

    prompt: RenderedPrompt
    index: int  # position of the prompt among those given
    sample: int
    token_ids: list[int]
    text: str  # raw: special tokens kept, no reasoning parser; without the end-of-text token
    finish_reason: str
    experts: Experts | None
    weights: Weights | None = None


@dataclass(frozen=True)
class Score:
    """Teacher-forced log-probabilities (natural logarithm) of one token sequence of length T.

    token_logprobs: [T - 1] float32, of token t + 1 given all tokens up to t. logprobs: [T - 1, N] float32 with token_ids
    [T - 1, N] int32, most likely first; or [T - 1, V] in vocabulary order with token_ids None. remainder: [T - 1]
    float32, the probability of all other tokens. experts: [T, L, K] when recording, else None.
    """

    token_logprobs: npt.NDArray[np.float32]
    logprobs: npt.NDArray[np.float32]
    token_ids: npt.NDArray[np.int32] | None
    remainder: npt.NDArray[np.float32]
    experts: Experts | None


@dataclass(frozen=True)
class Request:
    """Tokens to run; `label` comes back with the result, `name` is what a failure calls it."""

    label: Any
    token_ids: Sequence[int]
    name: str
    params: Any  # vllm.SamplingParams
    edit: PlannedEdit | ServedChoice | None = None


# Whether a response's text so far, of the prompt at a position among those given, decides all that is wanted of it.
Until = Callable[[int, str], bool]
DECIDED = "decided"


def sampling_params(sampling: Sampling, prompt: RenderedPrompt, sample: int, watched: bool = False) -> Any:
    """vLLM's parameters for one response; each has a seed of its own, so the order of requests changes nothing.

    A watched response is handed out after every step, with all of its text so far.

    Raises:
        InputError: vLLM refuses a value, as a temperature above 2.
    """
    from vllm import SamplingParams

    kinds = internals.load("RequestOutputKind")
    seed = sampling.seed_of(prompt.prompt_id, sample)
    try:
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed,
            # <think> is a special token in some tokenizers, and the labels need it.
            skip_special_tokens=False,
            output_kind=kinds.CUMULATIVE if watched else kinds.FINAL_ONLY,
        )
    except (ValueError, internals.load("VLLMError")) as error:
        raise InputError(f"vLLM refuses the sampling: {first_line(error)}") from error


def read_score(logprobs: Any, token_ids: Sequence[int], num_logprobs: int | None, experts: Experts | None) -> Score:
    """Arrays from vLLM's flat prompt log-probabilities: per position the token's own entry, then the most likely."""
    num_positions = len(token_ids) - 1
    starts = np.asarray(logprobs.start_indices[1:], np.int64)
    ids = np.asarray(logprobs.token_ids, np.int32)
    values = np.asarray(logprobs.logprobs, np.float32)
    own = values[starts]
    width = int(logprobs.end_indices[-1] - logprobs.start_indices[-1]) - 1 if num_positions else 0
    columns = starts[:, None] + 1 + np.arange(width)
    top_ids, top = ids[columns], values[columns]
    if num_logprobs is None:
        full = np.empty((num_positions, width), np.float32)
        np.put_along_axis(full, top_ids.astype(np.int64), top, axis=-1)
        return Score(own, full, None, np.zeros(num_positions, np.float32), experts)
    remainder = np.clip(1.0 - np.exp(top.astype(np.float64)).sum(axis=-1), 0.0, 1.0).astype(np.float32)
    return Score(own, top, top_ids, remainder, experts)
