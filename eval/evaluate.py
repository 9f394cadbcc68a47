"""From what the user asked for to results in a folder: the steps of `mote-eval` as a library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from eval.answers.journal import JOURNAL, Collector, Journal, Progress
from eval.answers.plan import NamedEdit, plan_live, plan_served, spread
from eval.carded import check_card
from eval.costs import RATE_KEY, Announcement, costs_of
from eval.errors import IncompleteError
from eval.experts import check_live_edit, find_experts, is_routable, save_found, semantics_for
from eval.measures.measure import Scene
from eval.options import EvalRequest
from eval.outcomes.held_out import HeldOut, check_held_out, cluster_words, split_prompts
from eval.outcomes.targets import Direction, find_target
from eval.report.outputs import assemble, make_output, update_card, write_outputs
from eval.results import Results
from eval.run import Loaded, load_measures, measure_all
from eval.session import Say, Session, open_session
from ftri.labels.names import Behavior
from ftri.prompts.sets import PromptRecord, load_prompt_set
from rewriter.errors import InputError
from rewriter.expert_set import ExpertSet
from rewriter.semantics import CENTROID, REROUTE


def evaluate(request: EvalRequest, say: Say, progress: Progress) -> Results:
    """Measure, write everything into the output folder, and return the results.

    Raises: MoteError when the comparison itself could not be made; parts that failed are in the results, see `check_complete`.
    """
    request.check()
    prompt_set = load_prompt_set(request.prompts, column=request.column)
    loaded = load_measures(request)
    make_output(request.output)
    check_files(request)
    with (
        closing(open_session(request, say)) as session,
        Journal(request.output / JOURNAL, session.responder.identity()) as journal,
    ):
        if len(journal):
            say(f"{journal.path}: going on with {len(journal)} records")
        if session.served is not None:
            session.served.check_weights(journal, say)
        prompts = spread(prompt_set.records, request.limit)
        reckon = partial(costs_of, request, session, prompts, loaded)
        announced = Announcement(progress, reckon, say, lambda rate: journal.add_value(RATE_KEY, rate.model_dump()))
        collector = Collector(session.responder, journal, announced, session.think_format)
        subject = settle(request, session, prompts, collector, say)
        return measure_subject(request, session, subject, collector, prompt_set.source, loaded, say)


def check_files(request: EvalRequest) -> None:
    """Look at the files that a request names, before a model is downloaded for them.

    Raises: ExpertSetError for an expert set that is not one; InputError for --card without a card.
    """
    sets = [request.suppress, request.stimulate, *(one for one in request.variants if not Path(one).is_dir())]
    for source in sets:
        if source is not None:
            ExpertSet.load(source, model=request.model, layer_index=request.layer_index)
    if request.card is not None and not (request.card / "README.md").is_file():
        raise InputError(f"{request.card / 'README.md'}: no such file, expected the model card of a variant for --card")


def measure_subject(
    request: EvalRequest,
    session: Session,
    subject: Subject,
    collector: Collector,
    prompt_source: Mapping[str, Any],
    loaded: Loaded,
    say: Say,
) -> Results:
    """Measure settled experts on settled prompts, and write everything into the output folder.

    Raises: MoteError when the comparison itself could not be made, or --card is of another variant.
    """
    scene = _scene(request, session, subject, collector, say)
    # Of a server nobody knows what it edits.
    is_told = request.card is not None and session.live is not None
    note = check_card(request.card, scene.plan.primary) if request.card is not None and is_told else ""
    found = measure_all(scene, loaded)
    results = assemble(
        scene,
        found,
        request.output,
        mode=session.mode,
        subject=session.subject(collector.journal),
        behavior=subject.behavior,
        prompt_source=prompt_source,
        held_out=subject.held_out,
        clusters=cluster_words(subject.prompts),
    )
    write_outputs(results, request.output)
    if request.card is not None:
        say(f"{update_card(request.card, results, note)}: section on results updated")
    return results


def check_complete(results: Results, output: object) -> None:
    """Raise IncompleteError that names the parts that are missing from results."""
    if results.missing:
        parts = "; ".join(f"{one.part}: {one.reason}" for one in results.missing)
        raise IncompleteError(f"{output} holds everything but {parts}")


@dataclass(frozen=True)
class Subject:
    """What is tested on which prompts, once that is settled."""

    edit: NamedEdit
    behavior: str
    direction: Direction
    prompts: Sequence[PromptRecord]
    held_out: HeldOut


def settle(
    request: EvalRequest, session: Session, prompts: list[PromptRecord], collector: Collector, say: Say
) -> Subject:
    """The experts and the prompts that test them: as they were given, or with `--split` found on the other prompts.

    Raises: InputError when the split, the label to count or the experts found do not fit.
    """
    if request.split is not None:
        return _found_on_split(request, session, prompts, collector, say)
    direction: Direction = "enter" if request.stimulate and not request.suppress else "leave"
    behavior = session.expert_sets[0].behavior if session.expert_sets else request.target or Behavior.REFUSED.value
    held_out = check_held_out([one.provenance for one in session.expert_sets], prompts)
    return Subject(session.edit, behavior, direction, prompts, held_out)


def _found_on_split(
    request: EvalRequest, session: Session, prompts: list[PromptRecord], collector: Collector, say: Say
) -> Subject:
    assert request.split is not None and session.model is not None and session.live is not None
    model, options = session.model, request.options
    finding, testing = split_prompts(prompts, request.split, by=request.split_by, seed=options.seed)
    say(f"finding {request.find_k} experts on {len(finding)} prompts, testing on {len(testing)} others")
    found: ExpertSet = find_experts(
        collector,
        session.live,
        finding,
        options,
        behavior=request.find or "refused",
        count=request.find_k,
        model=model,
        spec=request.prompts,
    )
    save_found(found, request.output)
    session.expert_sets.append(found)
    pairs = tuple(found.model_pairs(model.layout.moe_layers))
    edit = NamedEdit("found", stimulate=pairs) if request.stimulate_found else NamedEdit("found", pairs)
    check_live_edit(model, edit, options.semantics)
    apart = f", which share no {request.split_by} with them" if request.split_by else ""
    held_out = HeldOut(
        status="split",
        num_prompts=len(testing),
        sentence=f"The experts were found on {len(finding)} prompts and tested on {len(testing)} others{apart}.",
    )
    return Subject(edit, found.behavior, "enter" if request.stimulate_found else "leave", testing, held_out)


def _scene(
    request: EvalRequest, session: Session, subject: Subject, collector: Collector, say: Callable[[str], None]
) -> Scene:
    model = session.model
    options = replace(request.options, semantics=semantics_for(model, request.options.semantics, subject.edit))
    plan = plan_served(options) if session.live is None else plan_live(options, subject.edit, session.others)
    scene = Scene(
        options=options,
        plan=plan,
        edit=subject.edit,
        target=find_target(subject.behavior, subject.direction, request.target),
        prompts=subject.prompts,
        collector=collector,
        live=session.live,
        say=say,
        has_bias=model is None or model.layout.has_bias,
    )
    if model is not None and options.semantics[0] in (REROUTE, CENTROID):
        scene.is_feasible = partial(is_routable, model)
    return scene
