"""The operation on one page: who answers, the page's server, and questions one after another until Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from eval.answers.plan import NamedEdit
from eval.ask.desk import Desk, Sides
from eval.ask.live import LiveSides
from eval.ask.options import AskRequest
from eval.ask.question import MOST_CHARACTERS, MOST_TOKENS
from eval.ask.server import Page, PageServer
from eval.display.drawing import COLOURS, PALE, label_words
from eval.experts import ModelUnderTest, check_live_edit, load_edit, open_model
from ftri.labels.names import Behavior
from ftri.labels.think_formats import choose_format
from ftri.prompts.rendering import make_render
from rewriter.errors import PlanError
from rewriter.semantics import BIAS_FREE_SEMANTICS, DROP, SEMANTICS, STIMULATE, SUPPRESS, Semantics

Say = Callable[[str], None]


def ask(request: AskRequest, say: Say, show: Callable[[str], None]) -> None:
    """Serve the page until interrupted; `show` gets its address as soon as questions can be answered.

    Raises:
        MoteError: a model, an expert set, a server or a port that cannot be used, or an engine that died.
    """
    request.check()
    desk = Desk()
    # Before anything is loaded: a port that is taken should cost seconds.
    with PageServer(request.port or 0, desk) as server:
        sides, page = _open_live(request, say)
        with closing(sides), server.serving(page) as address:
            show(address)
            try:
                desk.answer_all(sides)
            except KeyboardInterrupt:
                say("ended")


def _open_live(request: AskRequest, say: Say) -> tuple[Sides, Page]:
    assert request.model is not None
    model = open_model(request.model, request.revision, say)
    edit, _ = load_edit(
        model, request.suppress, request.stimulate, layer_index=request.layer_index, any_model=request.any_model
    )
    semantics = possible_semantics(model, edit, request.semantics)
    render, _ = make_render(model.folder, request.chat_template)
    told = choose_format(request.think_format, model.model_type)
    from ftri.engine.engine import Engine

    revision = None if Path(model.model).exists() else model.revision
    engine = Engine(
        str(model.folder), revision, record=True, live_edits=True, engine_arguments=request.engine_arguments
    )
    most_tokens = min(MOST_TOKENS, engine.max_model_len)
    page = Page(about(request, edit_words(model, edit), edit, semantics, most_tokens), semantics, most_tokens)
    return LiveSides(engine, render, edit, told), page


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
        "semantics": list(semantics),
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


def edit_words(model: ModelUnderTest, edit: NamedEdit) -> str:
    """The subject in one line."""
    done = [
        f"{len(pairs)} expert{'' if len(pairs) == 1 else 's'} {word}"
        for pairs, word in ((edit.suppress, "suppressed"), (edit.stimulate, "stimulated"))
        if pairs
    ]
    return f"{model.repo_id or model.model}; {edit.name}: {' and '.join(done)} in the variant"
