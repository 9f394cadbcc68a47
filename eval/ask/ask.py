"""The operation on one page: who answers, the page's server, and questions one after another until Ctrl-C."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from eval.answers.plan import NamedEdit
from eval.ask.desk import Desk, Sides
from eval.ask.live import LiveSides
from eval.ask.options import AskRequest
from eval.ask.question import MOST_CHARACTERS, MOST_TOKENS
from eval.ask.served import ServedSides, find_servers
from eval.ask.server import Page, PageServer
from eval.display.drawing import COLOURS, PALE, label_words
from eval.experts import ModelUnderTest, check_live_edit, load_edit, open_model
from ftri.endpoint import Endpoint
from ftri.labels.names import Behavior
from ftri.labels.think_formats import choose_format
from ftri.prompts.rendering import make_renderer
from rewriter.edit.dial import open_described
from rewriter.errors import PlanError
from rewriter.families.lookup import router_layout
from rewriter.hub.models import resolve_description
from rewriter.semantics import BIAS_FREE_SEMANTICS, DROP, SEMANTICS, SHIFTED, STIMULATE, SUPPRESS, Semantics

Say = Callable[[str], None]
# Somebody waits at the page: a server that is away is said soon.
SERVER_ATTEMPTS = 2


def ask(request: AskRequest, say: Say, show: Callable[[str], None]) -> None:
    """Serve the page until interrupted; `show` gets its address as soon as questions can be answered.

    Raises:
        MoteError: a model, an expert set, a server or a port that cannot be used, or an engine that died.
    """
    request.check()
    desk = Desk()
    # Before anything is loaded: a port that is taken should cost seconds.
    with PageServer(request.port or 0, desk) as server:
        sides, page = open_served(request, say) if request.is_served else open_live(request, say)
        with closing(sides), server.serving(page) as address:
            try:
                show(address)
                desk.answer_all(sides)
            except KeyboardInterrupt:
                say("ended")


def open_live(request: AskRequest, say: Say) -> tuple[Sides, Page]:
    """Load the base with everything checked before, and say what its page offers.

    Raises:
        MoteError: the model, the set or the engine's arguments cannot be used.
    """
    assert request.model is not None
    model = open_model(request.model, request.revision, say)
    edit, _ = load_edit(
        model, request.suppress, request.stimulate, layer_index=request.layer_index, any_model=request.any_model
    )
    semantics = possible_semantics(model, edit, request.semantics)
    renderer = make_renderer(model.folder, request.chat_template)
    told = choose_format(request.think_format, model.model_type)
    from ftri.engine.engine import Engine

    revision = None if Path(model.model).exists() else model.revision
    engine = Engine(
        str(model.folder), revision, record=True, live_edits=True, engine_arguments=request.engine_arguments
    )
    most_tokens = min(MOST_TOKENS, engine.max_model_len)
    page = Page(about(request, edit_words(model, edit), edit, semantics, most_tokens), semantics, most_tokens)
    return LiveSides(engine, renderer.conversation, edit, told), page


def open_served(request: AskRequest, say: Say) -> tuple[Sides, Page]:
    """Find the two servers, and whether the base's returns what marks need.

    Raises:
        MoteError: a server cannot be reached, or the model or the set cannot be used.
    """
    assert request.base_url is not None and request.tuned_url is not None
    model = _described(request, say) if request.model is not None else None
    edit = NamedEdit("servers")
    if model is not None and (request.suppress or request.stimulate):
        edit, _ = load_edit(
            model, request.suppress, request.stimulate, layer_index=request.layer_index, any_model=request.any_model
        )
    renderer = None
    if request.api == "completions":
        assert model is not None
        renderer = make_renderer(model.folder, request.chat_template)
    sides = ServedSides(
        find_servers(
            _endpoint(request, request.base_url, request.base_model),
            _endpoint(request, request.tuned_url, request.tuned_model),
        ),
        renderer,
        choose_format(request.think_format, model.model_type if model else None),
        edit,
        model.layout if model else None,
    )
    unmarked = sides.why_unmarked()
    if unmarked is not None:
        say(f"note: {unmarked}")
    page = Page(about(request, sides.words(), edit, (), MOST_TOKENS, unmarked), (), MOST_TOKENS)
    return sides, page


def _endpoint(request: AskRequest, url: str, model: str | None) -> Endpoint:
    return Endpoint(
        url,
        model,
        request.api_key,
        attempts=SERVER_ATTEMPTS,
        timeout_seconds=request.timeout,
        extra_body=request.extra_body,
    )


def _described(request: AskRequest, say: Say) -> ModelUnderTest:
    """The base by its config and tokenizer: the servers have the weights."""
    assert request.model is not None
    found = resolve_description(request.model, request.revision, say)
    config = open_described(found.folder).config
    sha256 = hashlib.sha256((found.folder / "config.json").read_bytes()).hexdigest()
    model_type, layout = config.get("model_type"), router_layout(config)
    return ModelUnderTest(request.model, found.revision, found.folder, found.repo_id, sha256, "", layout, model_type)


def possible_semantics(model: ModelUnderTest, edit: NamedEdit, wanted: Semantics) -> tuple[Semantics, ...]:
    """What the page offers: the semantics under which the model can bear the edit.

    Raises:
        PlanError: the one that is wanted is not among them.
    """
    check_live_edit(model, edit, (wanted,))
    known = SEMANTICS if model.layout.has_bias else BIAS_FREE_SEMANTICS
    if wanted not in known:
        raise PlanError(f"--semantics is {wanted}, expected {' or '.join(known)} for family {model.layout.family.name}")
    found = []
    # Without anything to suppress, drop is reroute under another name: both stimulate by the bias.
    for one in (one for one in known if edit.suppress or one != DROP or one == wanted):
        try:
            check_live_edit(model, edit, (one,))
        except PlanError:
            continue
        found.append(one)
    return tuple(found)


def about(
    request: AskRequest,
    subject: str,
    edit: NamedEdit,
    semantics: Sequence[Semantics],
    most_tokens: int,
    unmarked: str | None = None,
) -> dict[str, Any]:
    """What the page says and offers, as its script reads it; `unmarked` says why it has no marks."""
    actions = [SUPPRESS] * len(edit.suppress) + [STIMULATE] * len(edit.stimulate)
    return {
        "title": f"{edit.name}: base and variant",
        "subject": subject,
        "semantics": [[one, semantics_words(one, edit)] for one in semantics],
        "chosen": request.semantics,
        "experts": [[*pair, action] for pair, action in zip(edit.pairs, actions, strict=True)],
        "unmarked": unmarked,
        "labels": {
            label.value: {
                "words": label_words(label.value),
                "colour": COLOURS[label.value],
                "pale": label.value in PALE,
            }
            for label in Behavior
        },
        "most_characters": MOST_CHARACTERS,
        "most_tokens": most_tokens,
        "max_tokens": min(request.max_tokens, most_tokens),
        "temperature": request.temperature,
        "seed": request.seed,
    }


def semantics_words(semantics: Semantics, edit: NamedEdit) -> str:
    """What an edit does to the experts that it suppresses."""
    if edit.shifts_under(semantics):
        return SHIFTED
    is_partial = edit.is_partial and bool(edit.factors_under(semantics))
    return f"{semantics} in part" if is_partial else semantics


def edit_words(model: ModelUnderTest, edit: NamedEdit) -> str:
    """The subject in one line."""
    done = [
        f"{len(pairs)} expert{'' if len(pairs) == 1 else 's'} {word}"
        for pairs, word in ((edit.suppress, "suppressed"), (edit.stimulate, "stimulated"))
        if pairs
    ]
    return f"{model.name}; {edit.name}: {' and '.join(done)} in the variant"
