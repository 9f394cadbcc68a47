"""Who answers a run: one engine on this machine, or two running servers; one value for both, so that a run is one path."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from eval.answers.arms import Responder, identity_of
from eval.answers.journal import Journal
from eval.answers.live import LiveModel, LiveResponder
from eval.answers.plan import TUNED, NamedEdit, VariantFolder
from eval.answers.served import ServedResponder
from eval.experts import ModelUnderTest, OutputOptions, check_live_edit, load_edit, load_others, open_model
from eval.options import EvalRequest
from ftri.endpoint import Endpoint
from ftri.engine.arguments import without_secrets
from ftri.labels.think_formats import ThinkFormat, choose_format
from ftri.prompts.rendering import Render, make_render
from rewriter.checkpoint.reader import Checkpoint
from rewriter.expert_set import ExpertSet
from rewriter.hub.models import resolve_description

if TYPE_CHECKING:
    from ftri.engine.engine import Engine

Say = Callable[[str], None]
# A loaded engine of the base that records and takes live edits, from someone who closes it.
LentEngine = Callable[[], "Engine"]
ENGINE_KEY = "engine"


@dataclass
class Session:
    """Who answers, and what is known before the first question.

    `edit` holds the experts under test as far as they are known (with `--split` none are); `known` is what the results say of the
    subject; `model` and `live` are None when servers answer, `served` when none do.
    """

    mode: Literal["live", "served"]
    responder: Responder
    edit: NamedEdit
    expert_sets: list[ExpertSet]
    known: dict[str, Any]
    model: ModelUnderTest | None = None
    live: LiveResponder | None = None
    others: Sequence[NamedEdit | VariantFolder] = field(default_factory=tuple)
    think_format: ThinkFormat | None = None  # None: the text of each answer tells it
    served: ServedResponder | None = None

    def subject(self, journal: Journal) -> dict[str, Any]:
        """What was measured, as the results say it; an engine that ran before is described by the journal."""
        if self.live is None:
            return self.known
        if self.live.description and ENGINE_KEY not in journal:
            journal.add_value(ENGINE_KEY, self.live.description)
        return self.known | {
            "engine": journal.value(ENGINE_KEY) if ENGINE_KEY in journal else {},
            "expert_sets": [
                {"behavior": one.behavior, "model": one.model, "provenance": _brief(one)} for one in self.expert_sets
            ],
        }

    def close(self) -> None:
        """Close the engine, if one was loaded."""
        if self.live is not None:
            self.live.close()


def open_session(request: EvalRequest, say: Say, lent: LentEngine | None = None) -> Session:
    """Find the model or the servers, and check the experts against it; nothing is loaded or asked yet.

    The base is loaded by the session and closed with it, unless its engine is `lent`.

    Raises: MoteError for a model, an expert set or a server that cannot be used.
    """
    return _open_served(request) if request.is_served else _open_live(request, say, lent)


def _open_live(request: EvalRequest, say: Say, lent: LentEngine | None) -> Session:
    assert request.model is not None
    model = open_model(request.model, request.revision, say)
    edit, sets = NamedEdit("found"), list[ExpertSet]()
    if request.split is None:
        edit, sets = load_edit(
            model,
            request.suppress,
            request.stimulate,
            layer_index=request.layer_index,
            any_model=request.any_model,
            outputs=OutputOptions(request.strength, request.gain, request.traces),
        )
    # Before the engine is loaded, so that a wrong set costs seconds.
    check_live_edit(model, edit, request.options.semantics)
    others = load_others(model, request.variants, layer_index=request.layer_index, any_model=request.any_model)
    told = choose_format(request.think_format, model.model_type)
    render, template_sha256 = make_render(model.folder, request.chat_template)
    known = {
        "model": model.name,
        "revision": model.revision,
        "config_sha256": model.config_sha256,
        "content_sha256": model.content_sha256,
        "template_sha256": template_sha256,
        "think_format": told.name if told else None,
        "engine_arguments": without_secrets(request.engine_arguments),
    }
    # What decides answers, and the name, by which people tell journals apart.
    identity = {name: known[name] for name in ("model", "content_sha256", "template_sha256", "engine_arguments")}
    identity |= identity_of(told)
    load = partial(_load_engine, model, render, template_sha256, told, request.engine_arguments, lent)
    live = LiveResponder(identity, load, told)
    return Session("live", live, edit, sets, known, model, live, others, told)


def _load_engine(
    model: ModelUnderTest,
    render: Render,
    template_sha256: str,
    told: ThinkFormat | None,
    engine_arguments: Mapping[str, Any],
    lent: LentEngine | None,
    checkpoint: str | None,
) -> LiveModel:
    from eval.answers.engine import VllmModel, load_model

    if checkpoint is None and lent is not None:
        return VllmModel(lent(), render, template_sha256, told, is_lent=True)
    revision = None if checkpoint or Path(model.model).exists() else model.revision
    # A variant's folder is measured as it is served, so it takes no edits.
    return load_model(
        checkpoint or str(model.folder),
        revision,
        render,
        template_sha256,
        told,
        engine_arguments,
        live_edits=checkpoint is None,
    )


def _open_served(request: EvalRequest) -> Session:
    render, template_sha256, told = None, None, choose_format(request.think_format, None)
    if request.api == "completions":
        assert request.model is not None
        # The server has the weights; here the tokenizer, the template and the family are wanted.
        folder = resolve_description(request.model, request.revision).folder
        told = choose_format(request.think_format, Checkpoint.open(folder).config.get("model_type"))
        render, template_sha256 = make_render(folder, request.chat_template)
    assert request.base_url is not None and request.tuned_url is not None
    base = _endpoint(request, request.base_url, request.base_model)
    tuned = _endpoint(request, request.tuned_url, request.tuned_model)
    responder = ServedResponder({None: base, TUNED: tuned}, render, template_sha256, told)
    responder.check()
    sets = [
        ExpertSet.load(source, model=request.model, layer_index=request.layer_index)
        for source in (request.suppress, request.stimulate)
        if source
    ]
    known = {
        "model": responder.models().get(TUNED, ""),
        "base_url": base.shown_base,
        "tuned_url": tuned.shown_base,
        "models": responder.models(),
        "api": request.api,
        "template_sha256": template_sha256,
        "think_format": told.name if told else None,
    }
    return Session("served", responder, NamedEdit("tuned"), sets, known, think_format=told, served=responder)


def _endpoint(request: EvalRequest, url: str, model: str | None) -> Endpoint:
    return Endpoint(
        url,
        model,
        request.api_key,
        concurrency=request.concurrency,
        attempts=request.attempts,
        timeout_seconds=request.timeout,
        extra_body=request.extra_body,
    )


def _brief(expert_set: ExpertSet) -> dict[str, Any]:
    """The provenance without its long lists."""
    return {name: value for name, value in expert_set.provenance.items() if not isinstance(value, list | dict)}
