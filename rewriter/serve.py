"""`mote-rewrite --dial NAME=SET` and `--semantics drop-renorm` as a library: from the request to the served variant's folder."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rewriter.checkpoint.gguf.files import is_gguf
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.dial import ServedRecord, ServedSet, served_config, served_set
from rewriter.edit.patches import EditOptions, of_layer
from rewriter.edit.plan import make_plan
from rewriter.edit.router_weight import check_survivors
from rewriter.errors import CheckpointError, ExpertSetError, InputError, PlanError
from rewriter.expert_set import ExpertSet, LayerIndex
from rewriter.rewrite import RewriteRequest, base_of_sets, check_base_links, is_far
from rewriter.semantics import ACTIONS, CENTROID, DROP, DROP_RENORM, REROUTE, STIMULATE, SUPPRESS, Semantics
from rewriter.variant.copying import LinkMode, Progress
from rewriter.variant.output_folder import check_target, check_target_is_free
from rewriter.variant.write_served import ServedResult, emit_served

if TYPE_CHECKING:
    from rewriter.semantics import Action

# Options that say something about a checkpoint's tensors, which a served variant leaves as they are.
TENSOR_OPTIONS = ("suppress_bias", "renormalize", "recipe", "strength", "gain")


@dataclass(frozen=True)
class PreparedServed:
    """A served variant worked out, and the folders it leads from and to."""

    record: ServedRecord
    config: dict[str, Any]
    base: Path | None  # None: on the Hub, and not fetched
    target: Path
    link: LinkMode
    overwrite: bool

    @property
    def shown_base(self) -> str:
        """The base's folder, or its Hub id."""
        return str(self.base or self.record.base_model)

    def to_json(self) -> dict[str, Any]:
        """As `--dry-run --json` prints it."""
        return {"base": self.shown_base, "output": str(self.target), "mote": self.record.to_block()}

    def lines(self) -> list[str]:
        """As `--dry-run` prints it."""
        return [f"plan: {self.shown_base} -> {self.target} (nothing is written yet)", *self.record.lines()]


def wants_server(request: RewriteRequest, dials: list[str]) -> bool:
    """Whether a request asks for what no checkpoint can hold."""
    return bool(dials) or request.semantics == DROP_RENORM


def prepare_served(
    request: RewriteRequest, dials: list[str], *, say: Callable[[str], None], fetch: bool = True
) -> PreparedServed:
    """Check a request and work the folder out; nothing is written.

    dials: NAME=SET, NAME=suppress:SET or NAME=stimulate:SET; one name may stand several times. fetch: download a base that is not
    here, once all that can be told without it is.

    Raises:
        InputError and its kinds: for arguments and expert sets.
        OutputError: for the target.
        CheckpointError, UnknownFamilyError, HubError: for the base.
    """
    from rewriter.hub.models import resolve_model

    unset = RewriteRequest()
    for name in TENSOR_OPTIONS:
        if getattr(request, name) != getattr(unset, name):
            raise InputError(
                f"--{name.replace('_', '-')} changes tensors, which --dial and --semantics drop-renorm leave as they are"
            )
    if dials and (request.suppress or request.stimulate):
        raise InputError("--dial names its own sets, so --suppress and --stimulate cannot be given with it")
    if request.link not in get_args(LinkMode):
        raise InputError(f"--link is {request.link!r}, expected one of {', '.join(get_args(LinkMode))}")
    semantics = _semantics(request)
    named = _named_sources(request, dials)
    loaded = {name: {action: _load(source, request) for action, source in one.items()} for name, one in named.items()}
    sources = [(source, loaded[name][action]) for name, one in named.items() for action, source in one.items()]
    model, revision = base_of_sets(request, sources)

    def prepared(checkpoint: Checkpoint, base: Path | None, repo_id: str | None, commit: str | None) -> PreparedServed:
        served: dict[str, ServedSet] = {}
        for name, one in loaded.items():
            key = name or next(iter(one.values())).behavior
            _check_bearable(checkpoint, semantics, one.get(SUPPRESS), one.get(STIMULATE))
            served[key] = served_set(semantics, checkpoint.layout, one.get(SUPPRESS), one.get(STIMULATE))
        record, config = served_config(
            checkpoint,
            served,
            None if dials else next(iter(served)),
            has_dial=bool(dials),
            base_model=repo_id,
            base_revision=commit,
            base_folder=None if base is None else os.path.basename(os.path.abspath(base)),
        )
        short = (repo_id or os.path.abspath(str(base))).rsplit("/", 1)[-1]
        target = request.output or Path(f"{short}-mote-{'dial' if dials else next(iter(served)).lower()}")
        link: LinkMode = request.link  # type: ignore[assignment]
        return PreparedServed(record, config, base, target, link, request.overwrite)

    if is_far(model, revision):
        from rewriter.hub.remote import open_remote

        remote = open_remote(model, revision, say)
        planned = prepared(Checkpoint(remote), None, model, remote.tree.commit)
        check_target_is_free(planned.target.absolute(), overwrite=request.overwrite)
        if not fetch:
            return planned
    resolved = resolve_model(model, revision, say=say)
    if is_gguf(resolved.folder):
        raise CheckpointError(f"{resolved.folder}: is GGUF, expected a folder of safetensors, which vLLM serves")
    checkpoint = Checkpoint.open(resolved.folder)
    check_base_links(checkpoint, resolved.folder)
    planned = prepared(checkpoint, resolved.folder, resolved.repo_id, resolved.revision)
    check_target(planned.target.absolute(), resolved.folder, overwrite=request.overwrite)
    return planned


def execute_served(
    prepared: PreparedServed, *, progress: Callable[[int], AbstractContextManager[Progress]] | None = None
) -> ServedResult:
    """Write the folder; see emit_served."""
    assert prepared.base is not None, "the base was to be fetched"
    return emit_served(
        prepared.record,
        prepared.config,
        prepared.base,
        prepared.target,
        prepared.link,
        overwrite=prepared.overwrite,
        progress=progress,
    )


def _check_bearable(
    checkpoint: Checkpoint, semantics: Semantics, suppress: ExpertSet | None, stimulate: ExpertSet | None
) -> None:
    """Refuse what the server would refuse when it starts: an edit that the model's routers cannot do, or cannot bear.

    Raises:
        ExpertSetError, PlanError: as a rewrite of the same experts.
    """
    layout = checkpoint.layout
    if semantics == DROP_RENORM:
        return
    if layout.has_bias:
        if semantics == CENTROID:
            raise PlanError(f"family {layout.family.name} has a router bias, expected {REROUTE} instead of {CENTROID}")
        # A drop's suppression asks nothing of the router; its stimulation goes by the bias, as a reroute's.
        by_bias = suppress if semantics == REROUTE else None
        if by_bias is not None or stimulate is not None:
            make_plan(checkpoint, by_bias, stimulate, EditOptions(REROUTE))
        return
    if stimulate is not None:
        raise PlanError(
            f"family {layout.family.name} has no router bias, so {semantics} stimulates nothing, expected --semantics"
            f" {DROP_RENORM}"
        )
    pairs = suppress.model_pairs(layout.moe_layers) if suppress is not None and semantics != DROP else []
    for layer in sorted({layer for layer, _ in pairs}):
        check_survivors(layer, layout, of_layer(pairs, layer))


def _semantics(request: RewriteRequest) -> Semantics:
    """--semantics, which for a served variant is the paper's own unless said otherwise."""
    if request.semantics == RewriteRequest().semantics:
        return DROP_RENORM
    if request.semantics not in get_args(Semantics):
        raise InputError(f"--semantics is {request.semantics!r}, expected one of {', '.join(get_args(Semantics))}")
    return request.semantics  # type: ignore[return-value]


def _named_sources(request: RewriteRequest, dials: list[str]) -> dict[str, dict["Action", str]]:
    """Which file or preset each action of each name has; the name is empty where the set's behaviour is it."""
    if not dials:
        given: dict[Action, str | None] = {SUPPRESS: request.suppress, STIMULATE: request.stimulate}
        chosen = {action: source for action, source in given.items() if source is not None}
        if not chosen:
            raise ExpertSetError("nothing to do: give --suppress FILE, --stimulate FILE or both")
        return {"": chosen}
    named: dict[str, dict[Action, str]] = {}
    for text in dials:
        name, equals, source = text.partition("=")
        if not (name and equals and source):
            raise InputError(f"--dial is {text!r}, expected NAME=SET, NAME=suppress:SET or NAME=stimulate:SET")
        action: Action = SUPPRESS
        for word in ACTIONS:
            if source.startswith(f"{word}:"):
                action, source = word, source.removeprefix(f"{word}:")
        if action in named.setdefault(name, {}):
            raise InputError(f"--dial: {name} has two sets to {action}, expected one")
        named[name][action] = source
    return named


def _load(source: str, request: RewriteRequest) -> ExpertSet:
    index = request.layer_index
    if index is not None and index not in get_args(LayerIndex):
        raise InputError(f"--layer-index is {index!r}, expected one of {', '.join(get_args(LayerIndex))}")
    return ExpertSet.load(source, model=request.model, layer_index=index).top(request.top)  # type: ignore[arg-type]
