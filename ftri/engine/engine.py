"""An unmodified vLLM engine, with the experts of every token handed out and its routers open to edits.

    with Engine("ORG/NAME", record=True, live_edits=True, engine_arguments={"max_model_len": 4096}) as engine:
        prompts = [engine.render(prompt) for prompt in load_prompts("what-happened:listed")]
        for generation in engine.generate(prompts, Sampling(max_tokens=512)):
            generation.text, generation.experts        # [T, L, K]
        paper = RouterEdit("drop-renorm", suppress=[(48, 176)])
        engine.generate(prompts, Sampling(), edit=paper)                     # all of them edited
        engine.generate(prompts, Sampling(), edit=[None, paper, ...])        # an edit, or the base, for each prompt

A request carries its edit, so prompts of different edits and of the base share batches, nothing is installed or taken back
between sets, and caches are never shared between edits. The base's answers are bit-identical to those of an engine without
live edits. Screening single experts is a list of edits of one pair each:

        screen = [(prompt, RouterEdit("drop", suppress=[pair])) for pair in candidates for prompt in prompts]
        engine.generate((prompt for prompt, _ in screen), Sampling(max_tokens=1), edit=(edit for _, edit in screen))

Routing comes from vLLM's own `enable_return_routed_experts` where the engine accepts it (`engine.capture` is then
"routed_experts"), else, and where `weights` are asked for, which it does not return, from the routers of ftri.worker.routers
("router_hook"). The hook records eagerly, and with vLLM's model runner V1 unless VLLM_USE_V2_MODEL_RUNNER says otherwise: V2 is
built for (the scheduler's own words) but was not run. Live edits work in compiled and captured modes too
(`enforce_eager=False`, with `record=False`).

Letters of shapes: T tokens run through the model, L MoE layers, K selected experts, N most likely tokens, V vocabulary.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ftri.engine.arguments import (
    check_arguments,
    check_slots_stay,
    choose_arguments,
    choose_capture,
    editable_arguments,
    prepare_environment,
    register_plugin,
)
from ftri.engine.edits import PlannedEdit, RouterEdit, ServedChoice, plan_edit
from ftri.engine.rows import Rows, together
from ftri.prompts.rendering import RenderedPrompt, Renderer, first_line
from ftri.prompts.sets import PromptRecord
from ftri.traces.rows import REMEDY, Experts, Weights
from ftri.traces.schema import WeightsName
from ftri.worker import internals
from ftri.worker.request import EDIT_ARGUMENT, Recording
from rewriter.edit.dial import open_described, open_served
from rewriter.errors import InputError, MoteError
from rewriter.families.lookup import router_layout
from rewriter.hub.models import resolve_model

T = TypeVar("T")
# Plans of edits are small; screening every expert of R1 has some 15,000.
NUM_PLANS_KEPT = 50_000
WORKER_EXTENSION = "ftri.worker.extension.MoteWorkerExtension"


class EngineError(MoteError):
    """vLLM cannot load the model, cannot run a request, or is not what the recorder was built for."""


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
# One edit for all prompts, None for the base, or one of these for each prompt.
Edits = RouterEdit | ServedChoice | Iterable[RouterEdit | ServedChoice | None] | None


class Engine:
    """A loaded model; use as a context manager, or call close. One at a time in a process."""

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        record: bool = True,
        live_edits: bool = False,
        chat_template: str | None = None,
        engine_arguments: Mapping[str, Any] | None = None,
        weights: WeightsName | None = None,
    ) -> None:
        """Load a local folder or Hub model; `engine_arguments` are fields of vLLM's EngineArgs. `weights`, "float16" or
        "float32", keeps the weights of the recorded experts too.

        Raises:
            InputError: wrong engine arguments.
            EngineError: vLLM cannot load the model.
            UnknownFamilyError: the model is no known Mixture of Experts.
            HubError: it cannot be found.
        """
        resolved = resolve_model(model, revision)
        self.folder = resolved.folder
        self._checkpoint = open_described(self.folder)
        served = open_served(self.folder)
        if served is not None and live_edits:
            raise InputError(
                f"{self.folder.name}: is a served variant, whose edits are its own, expected its base for live edits"
            )
        self.has_dial = served is not None and served.has_dial
        self.layout = router_layout(self._checkpoint.config)
        given = dict(engine_arguments or {})
        check_arguments(given)
        prepare_environment()
        arguments = choose_arguments(given, str(self.folder))
        if served is not None:
            register_plugin()
        if live_edits:
            arguments |= editable_arguments(arguments, self._checkpoint.config)
        self._num_choices = self.layout.num_experts + self.layout.num_other_choices
        self._weights = weights if record else None
        self.capture = (
            choose_capture(arguments, self.layout.num_experts, self._num_choices, self._weights is not None)
            if record
            else None
        )
        if live_edits or self.capture == "router_hook":
            arguments["worker_extension_cls"] = WORKER_EXTENSION
            # Compiled engines edit alike, but are minutes longer in starting: asked for by enforce_eager=False.
            arguments.setdefault("enforce_eager", True)
        if self.capture == "router_hook":
            check_slots_stay(arguments)
            if not arguments["enforce_eager"]:
                raise InputError(
                    "enforce_eager is false, but recording by the routing hook was only ever run with it true; give"
                    " record=False for live edits alone"
                )
            recording = Recording(self._num_choices, self._weights is not None, live_edits)
            arguments |= editable_arguments(arguments, self._checkpoint.config, recording)
        if self.capture == "routed_experts":
            arguments["enable_return_routed_experts"] = True
        self.has_edits = live_edits
        self._llm = start_engine(arguments)
        self.renderer = Renderer(self._llm.get_tokenizer(), chat_template)
        self.max_model_len: int = self._llm.model_config.max_model_len
        self._in_flight_limit = 2 * self._llm.vllm_config.scheduler_config.max_num_seqs
        self._next_request = 0
        self._is_dead = False
        self._rank_layers: list[list[int]] = []
        self._own_function: set[int] = set()
        self._plans: dict[Any, PlannedEdit | None] = {}
        if self.has_edits or self.capture == "router_hook":
            try:
                self._install()
            except BaseException:
                self.close()
                raise

    def _install(self) -> None:
        try:
            is_hooked = self.capture == "router_hook"
            ranks = self._llm.collective_rpc("mote_install", args=(is_hooked, self._num_choices, self._weights))
        except (RuntimeError, ValueError, ImportError, AttributeError) as error:
            raise EngineError(f"this vLLM's routers cannot be hooked into ({first_line(error)})") from error
        self._rank_layers = [rank["layers"] for rank in ranks]
        found = sorted({layer for layers in self._rank_layers for layer in layers})
        if found != list(self.layout.moe_layers):
            raise EngineError(
                f"vLLM routes in layers {found}, expected those of config.json: {list(self.layout.moe_layers)}"
            )
        inside = sorted({layer for rank in ranks for layer in rank["inside_kernel"]})
        if inside and self.has_edits:
            raise EngineError(
                f"layers {inside} route inside a fused kernel where no live edit reaches, expected a modular one "
                "(choose another with the engine argument moe_backend)"
            )
        self._own_function = {layer for rank in ranks for layer in rank["own_function"]}

    @property
    def is_dead(self) -> bool:
        """Whether vLLM failed while it ran, so that nothing more can be asked of this engine."""
        return self._is_dead

    def render(self, record: PromptRecord, raw: bool = False) -> RenderedPrompt:
        """The prompt as the model gets it: as a user's message in the chat template, or as it is when `raw`."""
        return self.renderer.render(record, raw)

    def generate(
        self,
        prompts: Iterable[RenderedPrompt],
        sampling: Sampling,
        samples: int = 1,
        skip: Container[tuple[str, int]] = (),
        edit: Edits = None,
        until: Until | None = None,
    ) -> Iterator[Generation]:
        """Run every prompt `samples` times, but for the (prompt_id, sample) in `skip`; yields responses as they finish.

        Prompts are taken from the iterable as there is room, so any number of them needs little memory. `edit` is one for
        all of them or, as a list or another iterable, an edit or None for each prompt; where the model is a served variant with
        a dial, a ServedChoice. A response ends, with the finish
        reason "decided", when `until` of the prompt's position and the text so far is true: where a label is wanted, the
        rest need not be written.

        Raises:
            EngineError: when a prompt does not fit into the model's context.
            InputError: when the engine was not started with live_edits, or there are not as many edits as prompts.
            MoteError: as plan_edit does, for an edit that the model cannot bear.
        """
        for finished in self.generate_by_step(prompts, sampling, samples, skip, edit, until):
            yield from finished

    def generate_by_step(
        self,
        prompts: Iterable[RenderedPrompt],
        sampling: Sampling,
        samples: int = 1,
        skip: Container[tuple[str, int]] = (),
        edit: Edits = None,
        until: Until | None = None,
    ) -> Iterator[list[Generation]]:
        """As generate, but the responses that finished in one step of the engine come together."""
        requests = (
            Request(
                (index, sample, prompt),
                prompt.token_ids,
                prompt.prompt_id,
                sampling_params(sampling, prompt, sample, watched=until is not None),
                planned,
            )
            for index, (prompt, planned) in enumerate(self._with_edits(prompts, edit))
            for sample in range(samples)
            if (prompt.prompt_id, sample) not in skip
        )
        watch = None if until is None else lambda label, text: until(label[0], text)
        for finished in self._run(requests, watch):
            yield [
                Generation(
                    prompt=prompt,
                    index=index,
                    sample=sample,
                    token_ids=list(output.outputs[0].token_ids),
                    text=output.outputs[0].text,
                    finish_reason=output.outputs[0].finish_reason or ("unknown" if output.finished else DECIDED),
                    experts=None if rows is None else rows.experts,
                    weights=None if rows is None else rows.weights,
                )
                for (index, sample, prompt), output, rows in finished
            ]

    def score(
        self, token_id_lists: Sequence[Sequence[int]], num_logprobs: int | None = None, edit: Edits = None
    ) -> list[Score]:
        """Teacher-forced log-probabilities of whole token sequences: the `num_logprobs` most likely, or all, per token.

        One list of Scores in the order given; the memory is that of the answer, [T - 1, N or V] floats a sequence. `edit` as
        in generate.
        """
        from vllm import SamplingParams

        count = -1 if num_logprobs is None else num_logprobs
        requests = (
            Request(
                number,
                token_ids,
                f"sequence {number}",
                SamplingParams(
                    max_tokens=1, temperature=0.0, prompt_logprobs=count, flat_logprobs=True, detokenize=False
                ),
                planned,
            )
            for number, (token_ids, planned) in enumerate(self._with_edits(token_id_lists, edit))
        )
        scores: dict[int, Score] = {}
        for finished in self._run(requests):
            for number, output, rows in finished:
                experts = None if rows is None else rows.experts
                scores[number] = read_score(output.prompt_logprobs, token_id_lists[number], num_logprobs, experts)
        return [scores[number] for number in range(len(token_id_lists))]

    def close(self) -> None:
        """Stop the engine and give its memory back."""
        stop_engine(self._llm)

    def __enter__(self) -> Self:
        """The engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop the engine."""
        self.close()

    def _with_edits(self, items: Iterable[T], edit: Edits) -> Iterator[tuple[T, PlannedEdit | ServedChoice | None]]:
        """Each item with its edit worked out."""
        if edit is None or isinstance(edit, RouterEdit | ServedChoice):
            planned = self._planned(edit)
            yield from ((item, planned) for item in items)
            return
        edits = iter(edit)
        for item in items:
            try:
                one = next(edits)
            except StopIteration:
                raise InputError("there are fewer edits than prompts, expected one (or None) for each") from None
            yield item, self._planned(one)
        if next(edits, edits) is not edits:
            raise InputError("there are more edits than prompts, expected one (or None) for each")

    def _planned(self, edit: RouterEdit | ServedChoice | None) -> PlannedEdit | ServedChoice | None:
        """An edit worked out for this model, once for all requests that carry it."""
        if edit is None:
            return None
        if isinstance(edit, ServedChoice):
            if not self.has_dial:
                raise InputError(
                    f"{self.folder.name}: is no served variant with a dial, so {edit.name!r} cannot be chosen"
                )
            return edit
        if not self.has_edits:
            raise InputError("this engine was started without live edits, expected Engine(..., live_edits=True)")
        pairs = tuple(tuple(tuple(pair) for pair in given) for given in (edit.suppress, edit.stimulate))
        shifts = tuple(tuple(entry) for entry in edit.bias_shifts)
        name = (edit.semantics, pairs, edit.suppress_bias, edit.strength, shifts)
        if name not in self._plans:
            if len(self._plans) >= NUM_PLANS_KEPT:
                self._plans.clear()
            planned = plan_edit(edit, self._checkpoint, self.layout)
            if planned is not None:
                self._check_reachable(planned)
            self._plans[name] = planned
        return self._plans[name]

    def _check_reachable(self, planned: PlannedEdit) -> None:
        for layer, expert, value in planned.request.bias:
            if layer in self._own_function and (value != float("-inf") or self.layout.has_bias):
                raise InputError(
                    f"layer {layer} expert {expert}: this model routes by a function of its own, which cannot be rerouted"
                    f" by a bias of {value:g}, expected semantics drop or drop-renorm"
                )

    def _run(
        self, requests: Iterator[Request], until: Callable[[Any, str], bool] | None = None
    ) -> Iterator[list[tuple[Any, Any, Rows | None]]]:
        """Feed requests and yield (label, output, rows) as they finish, those of one step together.

        Outputs that `until` (given a request's label and its text so far) ends are yielded as they are, unfinished; vLLM
        is told to drop them.
        """
        labels: dict[str, Any] = {}
        internal_ids: dict[str, str] = {}
        if self.capture == "router_hook":
            self._llm.collective_rpc("mote_clear")
        try:
            while True:
                for request in itertools.islice(requests, self._in_flight_limit - len(labels)):
                    request_id = str(self._next_request)
                    self._next_request += 1
                    internal_ids[request_id] = self._add(request_id, request)
                    labels[request_id] = request.label
                if not labels:
                    return
                outputs = self._step()
                finished = [output for output in outputs if output.finished]
                decided = [
                    output
                    for output in outputs
                    if until is not None
                    and not output.finished
                    and until(labels[output.request_id], output.outputs[0].text)
                ]
                finished += decided
                if not finished:
                    continue
                rows = self._rows_of(finished, internal_ids)
                if decided:
                    self._llm.abort_request([output.request_id for output in decided])
                for output in finished:
                    del internal_ids[output.request_id]
                yield [
                    (labels.pop(output.request_id), output, of_output)
                    for output, of_output in zip(finished, rows, strict=True)
                ]
        finally:
            # The caller stopped early, or a request was refused; an engine that died can only fail again, and its second
            # failure would hide the first.
            if labels and not self._is_dead:
                self._llm.abort_request(list(labels))
                while self._llm.has_unfinished_requests():
                    self._llm.step()

    def _add(self, request_id: str, request: Request) -> str:
        try:
            prompt = internals.load("TokensPrompt")(prompt_token_ids=list(request.token_ids))
            if isinstance(request.edit, ServedChoice):
                request.params.extra_args = request.edit.as_arguments()  # vLLM's front end keeps its caches apart
            elif request.edit is not None:
                request.params.extra_args = {EDIT_ARGUMENT: request.edit.as_argument()}
                # Keys and values depend on the edit: without this, another edit's prefix would be taken from the cache.
                prompt["cache_salt"] = request.edit.key
            internal_id: str = self._llm.add_request(request_id, prompt, request.params)
        except (ValueError, internals.load("VLLMError")) as error:
            raise EngineError(f"prompt {request.name!r} cannot be run: {first_line(error)}") from error
        return internal_id

    def _step(self) -> list[Any]:
        try:
            outputs: list[Any] = self._llm.step()
        except (RuntimeError, internals.load("VLLMError")) as error:
            self._is_dead = True
            raise EngineError(
                f"vLLM failed while it ran: {first_line(error)}; -v shows what it logs, and the same command goes on from here"
            ) from error
        return outputs

    def _rows_of(self, outputs: Sequence[Any], internal_ids: Mapping[str, str]) -> list[Rows | None]:
        """The rows of finished requests, ascending within K."""
        if self.capture is None or not outputs:
            return [None] * len(outputs)
        counts = [len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1 for output in outputs]
        if self.capture == "routed_experts":
            layers = list(self.layout.moe_layers)
            found = [
                Rows(output.outputs[0].routed_experts[:count, layers])
                for output, count in zip(outputs, counts, strict=True)
            ]
        else:
            request_ids = [internal_ids[output.request_id] for output in outputs]
            answers = self._llm.collective_rpc("mote_take", args=(request_ids, counts))
            found = together(answers, self._rank_layers, counts, self.layout, self._weights)
        rows: list[Rows | None] = []
        for output, one, count in zip(outputs, found, counts, strict=True):
            rows.append(ascending := one.ascending())
            fault = ascending.fault(count, self.layout)
            if fault is not None:
                raise EngineError(f"request {output.request_id} came back with {fault}; {REMEDY}")
        return rows


def start_engine(arguments: Mapping[str, Any]) -> Any:
    """Start vLLM.

    Raises:
        EngineError: with vLLM's own reason, when it does not start.
    """
    from vllm import EngineArgs

    try:
        return internals.load("LLMEngine").from_engine_args(EngineArgs(**arguments))
    except (ValueError, RuntimeError, OSError, KeyError, NotImplementedError, AssertionError) as error:
        raise EngineError(
            f"vLLM cannot load {arguments['model']}: {first_line(error)}; -v shows what it logs"
        ) from error


def stop_engine(llm: Any) -> None:
    """Stop vLLM and free what it holds in this process."""
    import gc

    llm.engine_core.shutdown()
    internals.load("cleanup_dist_env_and_memory")()
    gc.collect()


def sampling_params(sampling: Sampling, prompt: RenderedPrompt, sample: int, watched: bool = False) -> Any:
    """vLLM's parameters for one response; each has a seed of its own, so the order of requests changes nothing.

    A watched response is handed out after every step, with all of its text so far.
    """
    from vllm import SamplingParams

    kinds = internals.load("RequestOutputKind")
    seed = sampling.seed_of(prompt.prompt_id, sample)
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
