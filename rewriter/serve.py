"""`mote-rewrite --dial NAME=SET` and `--semantics drop-renorm` as a library: from the request to the served variant's folder."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.dial import ServedRecord, ServedSet, served_config, served_set
from rewriter.errors import ExpertSetError, InputError
from rewriter.expert_set import ExpertSet, LayerIndex
from rewriter.rewrite import RewriteRequest, base_of_sets
from rewriter.semantics import ACTIONS, DROP_RENORM, STIMULATE, SUPPRESS, Semantics
from rewriter.variant.copying import LinkMode
from rewriter.variant.output_folder import check_target
from rewriter.variant.write_served import ServedResult, emit_served

if TYPE_CHECKING:
    from rewriter.semantics import Action

# Options that say something about a checkpoint's tensors, which a served variant leaves as they are.
TENSOR_OPTIONS = ("suppress_bias", "renormalize", "recipe")


@dataclass(frozen=True)
class PreparedServed:
    """A served variant worked out, and the folders it leads from and to."""

    record: ServedRecord
    config: dict[str, Any]
    base: Path
    target: Path
    link: LinkMode
    overwrite: bool

    def to_json(self) -> dict[str, Any]:
        """As `--dry-run --json` prints it."""
        return {"base": str(self.base), "output": str(self.target), "mote": self.record.to_block()}

    def lines(self) -> list[str]:
        """As `--dry-run` prints it."""
        return [f"plan: {self.base} -> {self.target} (nothing is written yet)", *self.record.lines()]


def wants_server(request: RewriteRequest, dials: list[str]) -> bool:
    """Whether a request asks for what no checkpoint can hold."""
    return bool(dials) or request.semantics == DROP_RENORM


def prepare_served(request: RewriteRequest, dials: list[str], *, say: Callable[[str], None]) -> PreparedServed:
    """Check a request and work the folder out; nothing is written.

    dials: NAME=SET, NAME=suppress:SET or NAME=stimulate:SET; one name may stand several times.

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
    semantics = _semantics(request)
    named = _named_sources(request, dials)
    loaded = {name: {action: _load(source, request) for action, source in one.items()} for name, one in named.items()}
    sources = [(source, loaded[name][action]) for name, one in named.items() for action, source in one.items()]
    model, revision = base_of_sets(request, sources)
    resolved = resolve_model(model, revision, say=say)
    checkpoint = Checkpoint.open(resolved.folder)
    served: dict[str, ServedSet] = {}
    for name, one in loaded.items():
        key = name or next(iter(one.values())).behavior
        served[key] = served_set(semantics, checkpoint.layout, one.get(SUPPRESS), one.get(STIMULATE))
    record, config = served_config(
        checkpoint,
        served,
        None if dials else next(iter(served)),
        has_dial=bool(dials),
        base_model=resolved.repo_id,
        base_revision=resolved.revision,
        base_folder=os.path.basename(os.path.abspath(resolved.folder)),
    )
    short = (resolved.repo_id or os.path.abspath(resolved.folder)).rsplit("/", 1)[-1]
    target = request.output or Path(f"{short}-mote-{'dial' if dials else next(iter(served)).lower()}")
    check_target(target.absolute(), resolved.folder, overwrite=request.overwrite)
    if request.link not in get_args(LinkMode):
        raise InputError(f"--link is {request.link!r}, expected one of {', '.join(get_args(LinkMode))}")
    link: LinkMode = request.link  # type: ignore[assignment]
    return PreparedServed(record, config, resolved.folder, target, link, request.overwrite)


def execute_served(prepared: PreparedServed) -> ServedResult:
    """Write the folder; see emit_served."""
    return emit_served(
        prepared.record, prepared.config, prepared.base, prepared.target, prepared.link, overwrite=prepared.overwrite
    )


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
