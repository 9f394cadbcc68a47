"""Records from a server that is running already: vLLM or SGLang, started so that they return which experts were selected.

    vllm serve MODEL --enable-return-routed-experts            choices[].routed_experts, base64 of a .npy [T, layers, K]
    sglang.launch_server --enable-return-routed-experts        meta_info.routed_experts, base64 of int32 [T, layers, K]

Prompts go as token ids of the locally rendered template, so that no template or parser of the server can change them. T is
prompt + completion - 1 tokens, as in traces; layers are all of the model's, of which the MoE layers are kept.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ftri.endpoint import Endpoint, EndpointError
from ftri.endpoints import Connection, call, connect, for_all
from ftri.engine.engine import Sampling
from ftri.probe import other_weights, read_probe, take_probe, untold
from ftri.prompts.rendering import RenderedPrompt
from ftri.record import RecordPlan, RecordSummary, versions
from ftri.traces.reader import TraceError, TraceRecord
from ftri.traces.rows import REMEDY, expert_dtype, fault_of
from ftri.traces.writer import TraceWriter
from rewriter.families.family import RouterLayout

Runtime = Literal["vllm", "sglang"]
# SGLang's own paths, beside /v1.
GENERATE, MODEL_INFO = "/generate", "/get_model_info"
START_WITH = {
    "vllm": "start it with --enable-return-routed-experts (a GPU build of vLLM, without pipeline parallelism)",
    "sglang": "start it with --enable-return-routed-experts",
}
Begin = Callable[[int], None]
Advance = Callable[[int, int], None]
Say = Callable[[str], None]
PROBE_KEY = "server_probe"


@dataclass(frozen=True)
class Served:
    """One response as a server gave it; `experts` [T, layers, K], all layers of the model."""

    text: str
    token_ids: list[int]
    finish_reason: str
    experts: npt.NDArray[np.integer]


def record_served(
    plan: RecordPlan,
    endpoint: Endpoint,
    begin: Begin = lambda responses: None,
    advance: Advance = lambda responses, tokens: None,
    say: Say = lambda message: None,
) -> RecordSummary:
    """Ask a server for what the trace folder still lacks; the folder is the same that mote-record's own engine fills.

    A response is on disk when `advance` is told of it, so the same command goes on after a failure.

    Raises:
        TraceError: the folder is in use, of other settings, or of other weights than the server has now; or the server's rows
            cannot be a recording.
        EndpointError: the server cannot be reached, refuses, or returns no routing.
    """
    began = time.monotonic()
    with TraceWriter(plan.options.output, plan.manifest) as writer:
        resumed = len(writer.completed)
        capture, tokens = writer.manifest.get("capture"), 0
        work = list(_missing(plan, writer.completed))
        if work:

            async def go() -> None:
                nonlocal capture, tokens
                async with connect(endpoint) as connection:
                    await _check_weights(connection, writer, say)
                    runtime = await find_runtime(connection)
                    capture = f"{runtime} server"
                    writer.note(capture=capture, versions=versions())
                    begin(resumed)

                    async def one(position: int, item: tuple[RenderedPrompt, int]) -> None:
                        nonlocal tokens
                        prompt, sample = item
                        served = await ask(connection, runtime, plan.layout, plan.options.sampling, prompt, sample)
                        record = routing_record(plan.layout, prompt, sample, served)
                        writer.append(record)
                        tokens += record.num_rows
                        advance(1, record.num_rows)

                    await for_all(work, one, endpoint.concurrency)

            asyncio.run(go())
            if tokens:
                writer.note(tokens_per_second=tokens / (time.monotonic() - began))
        raw_ids_bytes = writer.raw_ids_bytes
    return RecordSummary(
        output=str(plan.options.output),
        capture=capture,
        responses=plan.num_responses - resumed,
        resumed_responses=resumed,
        tokens=tokens,
        start_seconds=0.0,
        run_seconds=time.monotonic() - began,
        size_bytes=sum(path.stat().st_size for path in plan.options.output.iterdir()),
        raw_ids_bytes=raw_ids_bytes,
    )


async def _check_weights(connection: Connection, writer: TraceWriter, say: Say) -> None:
    """Hold what the server thinks of fixed texts now against what it thought when the folder was begun.

    Raises:
        TraceError: it has other weights.
    """
    probe, shown = await take_probe(connection), connection.endpoint.shown
    if probe is None:
        say(untold(shown))
        return
    then = read_probe(writer.manifest.get(PROBE_KEY)) if writer.completed else None
    reason = other_weights(then, probe, shown) if then is not None else None
    if reason is not None:
        raise TraceError(
            f"{writer.folder} was recorded from other weights: {reason}; choose another output folder, or serve what they were"
        )
    if then is None:
        writer.note(**{PROBE_KEY: probe.model_dump()})


def _missing(plan: RecordPlan, completed: set[tuple[str, int]]) -> Iterator[tuple[RenderedPrompt, int]]:
    for prompt in plan.prompts():
        for sample in range(plan.options.samples):
            if (prompt.prompt_id, sample) not in completed:
                yield prompt, sample


async def find_runtime(connection: Connection) -> Runtime:
    """Which of the two answers: only SGLang has GET /get_model_info.

    Raises:
        EndpointError: it is unreachable.
    """
    info = await call(connection.client, connection.endpoint, "GET", MODEL_INFO, None, missing_is_none=True)
    return "sglang" if "model_path" in info else "vllm"


async def ask(
    connection: Connection,
    runtime: Runtime,
    layout: RouterLayout,
    sampling: Sampling,
    prompt: RenderedPrompt,
    sample: int = 0,
) -> Served:
    """One response with its routing.

    Raises:
        EndpointError: as `Connection.completion`, or the answer lacks tokens or routing.
    """
    seed = sampling.seed_of(prompt.prompt_id, sample)
    shown = connection.endpoint.shown
    if runtime == "vllm":
        # Special tokens are printed, since thinking is marked by them in some formats.
        choice = await connection.completion(
            {
                "prompt": prompt.token_ids,
                "max_tokens": sampling.max_tokens,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "seed": seed,
                "skip_special_tokens": False,
                "return_token_ids": True,
            }
        )
        return read_choice(choice, shown)
    parameters = {
        "max_new_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "sampling_seed": seed,
        "skip_special_tokens": False,
    }
    body = {
        "input_ids": prompt.token_ids,
        "sampling_params": {name: value for name, value in parameters.items() if value is not None},
        "return_routed_experts": True,
        **connection.endpoint.extra_body,
    }
    document = await call(connection.client, connection.endpoint, "POST", GENERATE, body)
    return read_generate(document, layout.top_k, shown)


def read_choice(choice: dict[str, Any], where: str) -> Served:
    """A choice of vLLM's /v1/completions.

    Raises:
        EndpointError: it lacks tokens or routing.
    """
    rows = _npy(_encoded(choice.get("routed_experts"), "vllm", where), where)
    return _served(choice.get("text"), choice.get("token_ids"), choice.get("finish_reason"), rows, where)


def read_generate(document: dict[str, Any], top_k: int, where: str) -> Served:
    """An answer of SGLang's /generate.

    Raises:
        EndpointError: it lacks tokens or routing.
    """
    meta = document.get("meta_info")
    meta = meta if isinstance(meta, dict) else {}
    reason = meta.get("finish_reason")
    reason = reason.get("type") if isinstance(reason, dict) else reason
    rows = _int32(_encoded(meta.get("routed_experts"), "sglang", where), top_k, where)
    return _served(document.get("text"), document.get("output_ids"), reason, rows, where)


def _served(text: Any, token_ids: Any, reason: Any, rows: npt.NDArray[np.integer], where: str) -> Served:
    if not isinstance(token_ids, list) or not all(isinstance(token, int) for token in token_ids):
        raise EndpointError(f"{where} returns no token ids, expected them beside the text (token_ids, or output_ids)")
    return Served(str(text or ""), token_ids, str(reason or "unknown"), rows)


def routing_record(layout: RouterLayout, prompt: RenderedPrompt, sample: int, served: Served) -> TraceRecord:
    """A response of a server or another recorder as the trace keeps it.

    Raises:
        TraceError: its rows are not [T, layers, K] of this model, or cannot be a recording.
    """
    where = f"prompt {prompt.prompt_id!r}, sample {sample}"
    num_rows = len(prompt.token_ids) + max(len(served.token_ids), 1) - 1
    rows = served.experts
    if rows.ndim == 2 and rows.size:
        # SGLang's array comes without its shape: the number of layers follows from that of the tokens.
        rows = rows.reshape(num_rows, -1, layout.top_k) if rows.shape[0] % num_rows == 0 else rows[None]
    layers = list(layout.moe_layers)
    fits = rows.ndim == 3 and rows.shape[2] == layout.top_k
    if not fits or (rows.shape[1] <= layers[-1] and rows.shape[1] != len(layers)):
        raise TraceError(
            f"{where}: the server's routing has the shape {list(rows.shape)}, expected [{num_rows}, at least {layers[-1] + 1},"
            f" {layout.top_k}] (tokens, layers, selected experts) as the model has"
        )
    # Some releases leave the dense layers out.
    kept = rows[:, layers] if rows.shape[1] > layers[-1] else rows
    num_choices = layout.num_experts + layout.num_other_choices
    # Before the ids are narrowed, which would wrap what is out of range.
    outside = (kept < 0) | (kept >= num_choices)
    if outside.any():
        token, layer, slot = np.argwhere(outside)[0].tolist()
        raise TraceError(
            f"{where}: expert {int(kept[token, layer, slot])} (token {token}, layer row {layer}), expected ids from 0 and"
            f" below {num_choices}; {REMEDY}"
        )
    experts = np.sort(kept, axis=-1).astype(expert_dtype(num_choices))
    fault = fault_of(experts, num_rows, (len(layers), layout.top_k), num_choices)
    if fault is not None:
        raise TraceError(f"{where}: {fault}; {REMEDY}")
    return TraceRecord(
        prompt_id=prompt.prompt_id,
        sample=sample,
        prompt=prompt.prompt,
        rendered_prompt=prompt.text,
        prompt_token_ids=prompt.token_ids,
        completion_token_ids=served.token_ids,
        text=served.text,
        finish_reason=served.finish_reason,
        factors=dict(prompt.factors),
        experts=experts,
    )


def _encoded(value: Any, runtime: Runtime, shown: str) -> bytes:
    if value is None:
        raise EndpointError(f"{shown} returns no routed_experts; {START_WITH[runtime]}")
    try:
        return base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise EndpointError(f"{shown} returns routed_experts that are not base64, expected an encoded array") from None


def _npy(data: bytes, shown: str) -> npt.NDArray[np.integer]:
    try:
        rows = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise EndpointError(
            f"{shown} returns routed_experts that are no .npy array, expected vLLM's encoding"
        ) from None
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "iu":
        raise EndpointError(f"{shown} returns routed_experts that are no array of integers")
    return rows


def _int32(data: bytes, top_k: int, shown: str) -> npt.NDArray[np.integer]:
    """[T * layers, K]; the shape is not sent."""
    if len(data) % (4 * top_k):
        raise EndpointError(f"{shown} returns {len(data)} bytes of routing, expected a multiple of 4 x {top_k} (int32)")
    return np.frombuffer(data, "<i4").reshape(-1, top_k)
