"""From what the user asked for to results in a folder: the steps of `mote-eval` as a library."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from eval.answers.collect import Collector, Progress
from eval.answers.journal import Journal
from eval.answers.live import LiveModel, LiveResponder
from eval.answers.served import ServedResponder
from eval.errors import IncompleteError
from eval.experts import ModelUnderTest, check_routable, is_routable, load_edit, load_others, open_model
from eval.finding import find_experts, save_found
from eval.measures.held_out import NUMBER_PAIR, HeldOut, check_held_out, split_prompts
from eval.measures.judging import MtBenchOptions
from eval.measures.mt_bench import load_judge_prompts, load_questions
from eval.measures.targets import Direction, find_target
from eval.options import TUNED, NamedEdit, RunOptions, SafetyInput, plan_live, plan_served
from eval.report.outputs import assemble, update_card, write_outputs
from eval.results import Results
from eval.run import Inputs, Run
from ftri.endpoints import Endpoint, without_credentials
from ftri.prompts.rendering import make_render
from ftri.prompts.sets import PromptRecord, PromptSet, load_prompt_set
from rewriter.errors import InputError, OutputError
from rewriter.expert_set import ExpertSet, LayerIndex
from rewriter.semantics import REROUTE

JOURNAL = "journal.jsonl"
Say = Callable[[str], None]


@dataclass(frozen=True)
class EvalRequest:
    """What `mote-eval` was asked for."""

    prompts: str
    output: Path
    options: RunOptions
    model: str | None = None
    revision: str | None = None
    suppress: str | None = None
    stimulate: str | None = None
    variants: Sequence[str] = ()
    layer_index: LayerIndex | None = None
    any_model: bool = False
    target: str | None = None
    column: str | None = None
    limit: int | None = None
    split: float | None = None
    split_by: str | None = None
    find: str | None = None
    find_count: int = 10
    stimulate_found: bool = False
    neutral: str | None = None
    harm: str | None = None
    xstest: str | None = None
    mt_bench: str | None = None
    references: str | None = None
    judge_prompts: str | None = None
    judge: Endpoint | None = None
    base: Endpoint | None = None
    tuned: Endpoint | None = None
    api: str = "completions"
    chat_template: Path | None = None
    engine_arguments: dict[str, Any] = field(default_factory=dict)
    card: Path | None = None


def evaluate(request: EvalRequest, say: Say, progress: Progress) -> Results:
    """Measure, write everything into the output folder, and return the results.

    Raises: MoteError; IncompleteError when some part could not be measured, after writing the others.
    """
    request.options.check()
    _check_combination(request)
    prompt_set = load_prompt_set(request.prompts, column=request.column)
    prompts = spread(prompt_set.records, request.limit)
    safety = _load_safety(request)
    mt_bench = _load_mt_bench(request)
    try:
        request.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{request.output}: cannot be made ({error.strerror}), expected a folder for the results"
        ) from None
    with Journal(request.output / JOURNAL) as journal:
        if len(journal):
            say(f"{journal.path}: going on with {len(journal)} records")
        run = _served if request.base is not None else _live
        results = run(request, prompt_set, prompts, safety, mt_bench, journal, say, progress)
    write_outputs(results, request.output)
    if request.card is not None:
        say(f"{update_card(request.card, results)}: section on results updated")
    return results


def check_complete(results: Results, output: Path) -> None:
    """Raise IncompleteError that names the parts that are missing from results."""
    if results.missing:
        parts = "; ".join(f"{one.part}: {one.reason}" for one in results.missing)
        raise IncompleteError(f"{output} holds everything but {parts}")


def _live(
    request: EvalRequest,
    prompt_set: PromptSet,
    prompts: list[PromptRecord],
    safety: list[SafetyInput],
    mt_bench: MtBenchOptions | None,
    journal: Journal,
    say: Say,
    progress: Progress,
) -> Results:
    assert request.model is not None
    model = open_model(request.model, request.revision, say)
    options = request.options
    direction: Direction = (
        "leave" if request.suppress or (request.split is not None and not request.stimulate_found) else "enter"
    )
    edit, sets = NamedEdit("found"), list[ExpertSet]()
    if request.split is None:
        edit, sets = load_edit(
            model, request.suppress, request.stimulate, layer_index=request.layer_index, any_model=request.any_model
        )
        # Before the engine is loaded, so that a wrong set costs seconds.
        find_target(sets[0].behavior, direction, request.target)
        _check_routable(model, edit, options)
    others = load_others(model, request.variants, layer_index=request.layer_index, any_model=request.any_model)
    neutral = load_prompt_set(request.neutral) if request.neutral else built_in_neutral()
    render, template_sha256 = make_render(model.folder, request.chat_template)
    identity = {
        "model": model.repo_id or model.model,
        "config_sha256": model.config_sha256,
        "revision": model.revision,
        "template_sha256": template_sha256,
    }
    live = LiveResponder(identity, partial(_load_engine, model, render, template_sha256, request.engine_arguments))
    with ExitStack() as stack:
        stack.callback(live.close)
        collector = Collector(live, journal, progress)
        held_out: HeldOut | None = None
        if request.split is not None:
            finding, prompts = split_prompts(prompts, request.split, by=request.split_by, seed=options.seed)
            say(f"finding {request.find_count} experts on {len(finding)} prompts, testing on {len(prompts)} others")
            found = _find(request, model, collector, live, finding)
            sets = [found]
            pairs = tuple(found.model_pairs(model.layout.moe_layers))
            edit = NamedEdit("found", pairs) if direction == "leave" else NamedEdit("found", stimulate=pairs)
            _check_routable(model, edit, options)
            apart = f", which share no {request.split_by} with them" if request.split_by else ""
            held_out = HeldOut(
                status="split",
                num_prompts=len(prompts),
                sentence=f"The experts were found on {len(finding)} prompts and tested on {len(prompts)} others{apart}.",
            )
        behavior = sets[0].behavior
        inputs = Inputs(
            options=options,
            plan=plan_live(options, edit, others),
            edit=edit,
            target=find_target(behavior, direction, request.target),
            prompts=prompts,
            neutral=neutral,
            safety=safety,
            mt_bench=mt_bench,
            is_feasible=partial(is_routable, model) if options.semantics[0] == REROUTE else (lambda down, up: True),
        )
        measured = Run(inputs, collector, live, say).measure()
        key = "engine"
        if live.description and key not in journal:
            journal.add_value(key, live.description)
        subject = {
            "model": model.repo_id or model.model,
            "revision": model.revision,
            "config_sha256": model.config_sha256,
            "template_sha256": template_sha256,
            "engine_arguments": request.engine_arguments,
            "engine": journal.value(key) if key in journal else {},
            "expert_sets": [{"behavior": one.behavior, "model": one.model, "provenance": _brief(one)} for one in sets],
        }
        provenance = {name: value for one in sets for name, value in one.provenance.items()}
        return assemble(
            inputs,
            measured,
            journal,
            request.output,
            mode="live",
            subject=subject,
            behavior=behavior,
            prompt_set=prompt_set,
            held_out=held_out or check_held_out(provenance, prompts),
            clusters=cluster_words(prompts),
        )


def _served(
    request: EvalRequest,
    prompt_set: PromptSet,
    prompts: list[PromptRecord],
    safety: list[SafetyInput],
    mt_bench: MtBenchOptions | None,
    journal: Journal,
    say: Say,
    progress: Progress,
) -> Results:
    assert request.base is not None and request.tuned is not None
    render, template_sha256 = None, None
    if request.api == "completions":
        assert request.model is not None
        from rewriter.hub.models import resolve_model

        render, template_sha256 = make_render(
            resolve_model(request.model, request.revision).folder, request.chat_template
        )
    responder = ServedResponder({None: request.base, TUNED: request.tuned}, render)
    responder.check()
    provenance: dict[str, Any] = {}
    behavior = request.target or "REFUSED"
    direction: Direction = "enter" if request.stimulate and not request.suppress else "leave"
    source = request.suppress or request.stimulate
    if source is not None:
        expert_set = ExpertSet.load(source, model=request.model, layer_index=request.layer_index)
        provenance, behavior = expert_set.provenance, expert_set.behavior
    inputs = Inputs(
        options=request.options,
        plan=plan_served(request.options),
        edit=NamedEdit("tuned"),
        target=find_target(behavior, direction, request.target),
        prompts=prompts,
        safety=safety,
        mt_bench=mt_bench,
    )
    measured = Run(inputs, Collector(responder, journal, progress), None, say).measure()
    return assemble(
        inputs,
        measured,
        journal,
        request.output,
        mode="served",
        subject={
            "model": responder.models().get(TUNED, ""),
            "base_url": without_credentials(request.base.base),
            "tuned_url": without_credentials(request.tuned.base),
            "models": responder.models(),
            "api": request.api,
            "template_sha256": template_sha256,
        },
        behavior=behavior,
        prompt_set=prompt_set,
        held_out=check_held_out(provenance, prompts),
        clusters=cluster_words(prompts),
    )


def _load_engine(
    model: ModelUnderTest, render: Any, template_sha256: str, engine_arguments: dict[str, Any], checkpoint: str | None
) -> LiveModel:
    from eval.answers.engine import load_model

    revision = None if checkpoint or Path(model.model).exists() else model.revision
    # A variant's folder is measured as it is served, so it takes no edits.
    return load_model(
        checkpoint or str(model.folder),
        revision,
        render,
        template_sha256,
        engine_arguments,
        live_edits=checkpoint is None,
    )


def _check_routable(model: ModelUnderTest, edit: NamedEdit, options: RunOptions) -> None:
    if REROUTE in options.semantics:
        check_routable(model, edit.suppress, edit.stimulate)


def _find(
    request: EvalRequest, model: ModelUnderTest, collector: Collector, live: LiveResponder, finding: list[PromptRecord]
) -> ExpertSet:
    found = find_experts(
        collector,
        live,
        finding,
        request.options,
        behavior=request.find or "refused",
        count=request.find_count,
        model=model.repo_id or model.model,
        revision=model.revision,
        config_sha256=model.config_sha256,
        spec=request.prompts,
    )
    save_found(found, request.output)
    return found


def _check_combination(request: EvalRequest) -> None:
    """Raise InputError for options that do not go together."""
    if (request.base is None) != (request.tuned is None):
        raise InputError("--base-url and --tuned-url belong together, expected both or neither")
    if request.base is not None:
        if request.split is not None or request.variants:
            raise InputError(
                "--split and --variants need --model without --base-url: a running server's routers cannot be edited"
            )
        if request.api == "completions" and request.model is None:
            raise InputError(
                "--api completions renders prompts itself and needs --model for the chat template; or use --api chat"
            )
    else:
        if request.model is None:
            raise InputError(
                "nothing to evaluate: give --model with --suppress or --stimulate, or --base-url and --tuned-url"
            )
        if request.split is None and not (request.suppress or request.stimulate):
            raise InputError("no experts: give --suppress FILE, --stimulate FILE, or --split to find them")
        if request.split is not None and (request.suppress or request.stimulate):
            raise InputError("--split finds the experts itself, expected no --suppress or --stimulate beside it")
    if request.mt_bench is not None and (request.judge is None or request.judge_prompts is None):
        raise InputError("--mt-bench needs --judge-url and --judge-prompts FILE (FastChat's judge_prompts.jsonl)")


def _load_safety(request: EvalRequest) -> list[SafetyInput]:
    sets = []
    for name, spec, grouped in (("harm set", request.harm, False), ("XSTest", request.xstest, True)):
        if spec is not None:
            loaded = load_prompt_set(spec)
            records = spread(loaded.records, request.limit)
            # Two sets may number their prompts alike.
            renamed = [PromptRecord(f"{name}/{one.prompt_id}", one.text, one.factors) for one in records]
            sets.append(SafetyInput(name, PromptSet(renamed, loaded.source), grouped))
    return sets


def _load_mt_bench(request: EvalRequest) -> MtBenchOptions | None:
    if request.mt_bench is None:
        return None
    assert request.judge is not None and request.judge_prompts is not None
    # Read now, so that a wrong file is found before hours of answers.
    load_questions(request.mt_bench, request.references)
    load_judge_prompts(request.judge_prompts)
    return MtBenchOptions(request.mt_bench, request.judge_prompts, request.judge, request.references)


def spread(prompts: Sequence[PromptRecord], limit: int | None) -> list[PromptRecord]:
    """At most `limit` prompts, evenly spread over the list, whose neighbours are often alike. Raises InputError
    for a limit below 1."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    if limit < 1:
        raise InputError(f"--limit is {limit}, expected at least 1")
    return [prompts[position * len(prompts) // limit] for position in range(limit)]


def built_in_neutral() -> PromptSet:
    """The neutral prompts that come with the package."""
    text = (resources.files("eval.measures") / "neutral.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    records = [PromptRecord(row["prompt_id"], row["prompt"], {"language": row["language"]}) for row in rows]
    return PromptSet(records, {"spec": "built-in neutral prompts", "revision": None, "sha256": None})


def cluster_words(prompts: Sequence[PromptRecord]) -> str:
    """What the bootstrap resamples, in one word."""
    for factor in ("subject", "place"):
        if prompts and factor in prompts[0].factors:
            return factor
    return "number pair" if prompts and prompts[0].factors.keys() >= NUMBER_PAIR else "prompt"


def _brief(expert_set: ExpertSet) -> dict[str, Any]:
    """The provenance without its long lists."""
    return {name: value for name, value in expert_set.provenance.items() if not isinstance(value, list | dict)}
