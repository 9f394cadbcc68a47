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
("router_hook"). The hook and live edits work with either of vLLM's model runners, and in compiled and captured modes too
(`enforce_eager=False`).

Letters of shapes: T tokens run through the model, L MoE layers, K selected experts, N most likely tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from ftri.engine.answers import DECIDED, Generation, Request, Sampling, Score, Until, read_score, sampling_params
from ftri.engine.arguments import (
    START_ERRORS,
    capture_arguments,
    check_arguments,
    check_slots_stay,
    choose_arguments,
    choose_capture,
    editable_arguments,
    prepare_environment,
    register_plugin,
)
from ftri.engine.edits import PlannedEdit, RouterEdit, ServedChoice, plan_edit
from ftri.engine.errors import EngineError
from ftri.engine.rows import HOOK, OWN_CAPTURE, RowReader
from ftri.engine.run_loop import RunLoop
from ftri.prompts.rendering import RenderedPrompt, Renderer, first_line
from ftri.prompts.sets import PromptRecord
from ftri.traces.schema import WeightsName
from ftri.worker import internals
from ftri.worker.request import Recording
from rewriter.edit.dial import open_described, open_served
from rewriter.errors import InputError
from rewriter.families.lookup import router_layout
from rewriter.hub.models import resolve_model

T = TypeVar("T")
# Plans of edits are small; screening every expert of R1 has some 15,000.
NUM_PLANS_KEPT = 50_000
WORKER_EXTENSION = "ftri.worker.extension.MoteWorkerExtension"


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
        self.capture = None
        if record:
            keeps_weights, is_editable = self._weights is not None, live_edits or served is not None
            sizes = self.layout.num_experts, self._num_choices
            self.capture = choose_capture(arguments, *sizes, keeps_weights, is_editable)
        if live_edits or self.capture == HOOK:
            arguments["worker_extension_cls"] = WORKER_EXTENSION
            # Compiled engines edit and record alike, but are minutes longer in starting: asked for by enforce_eager=False.
            arguments.setdefault("enforce_eager", True)
        if self.capture == HOOK:
            check_slots_stay(arguments)
            recording = Recording(self._num_choices, self._weights is not None, live_edits)
            arguments |= editable_arguments(arguments, self._checkpoint.config, recording)
        if self.capture == OWN_CAPTURE:
            arguments |= capture_arguments()
        self.has_edits = live_edits
        self._llm = start_engine(arguments)
        self.renderer = Renderer(self._llm.get_tokenizer(), chat_template)
        self.max_model_len: int = self._llm.model_config.max_model_len
        self._own_function: set[int] = set()
        self._plans: dict[Any, PlannedEdit | None] = {}
        rank_layers: list[list[int]] = []
        if self.has_edits or self.capture == HOOK:
            try:
                rank_layers = self._install()
            except BaseException:
                self.close()
                raise
        rows = None
        if self.capture is not None:
            rows = RowReader(self._llm, self.capture, self.layout, rank_layers, self._weights)
        self._loop = RunLoop(self._llm, rows, 2 * self._llm.vllm_config.scheduler_config.max_num_seqs)

    def _install(self) -> list[list[int]]:
        """Attach the recorder where it is wanted, and see what every rank holds; returns the MoE layers of each."""
        try:
            is_hooked = self.capture == HOOK
            ranks = self._llm.collective_rpc("mote_install", args=(is_hooked, self._num_choices, self._weights))
        except (RuntimeError, ValueError, ImportError, AttributeError) as error:
            raise EngineError(f"this vLLM's routers cannot be hooked into ({first_line(error)})") from error
        rank_layers = [rank["layers"] for rank in ranks]
        found = sorted({layer for layers in rank_layers for layer in layers})
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
        return rank_layers

    @property
    def is_dead(self) -> bool:
        """Whether vLLM failed while it ran, so that nothing more can be asked of this engine."""
        return self._loop.is_dead

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
        for finished in self._loop.run(requests, watch):
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
        for finished in self._loop.run(requests):
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
        numbers = tuple(tuple(tuple(entry) for entry in given) for given in (edit.bias_shifts, edit.factors))
        name = (edit.semantics, pairs, edit.suppress_bias, edit.strength, numbers)
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


def start_engine(arguments: Mapping[str, Any]) -> Any:
    """Start vLLM.

    Raises:
        EngineError: with vLLM's own reason, when it does not start.
    """
    from vllm import EngineArgs

    try:
        return internals.load("LLMEngine").from_engine_args(EngineArgs(**arguments))
    except START_ERRORS as error:
        raise EngineError(
            f"vLLM cannot load {arguments['model']}: {first_line(error)}; -v shows what it logs"
        ) from error


def stop_engine(llm: Any) -> None:
    """Stop vLLM and free what it holds in this process."""
    import gc

    llm.engine_core.shutdown()
    internals.load("cleanup_dist_env_and_memory")()
    gc.collect()
