"""From what the user asked for to a prepared plan, and from there to the folder: the steps of `mote-rewrite` as a library."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rewriter.checkpoint import Checkpoint
from rewriter.copying import LinkMode, Progress
from rewriter.emit import EmitResult, emit
from rewriter.errors import ExpertSetError, InputError
from rewriter.expert_set import PRESET_PREFIX, ExpertSet, LayerIndex
from rewriter.output_folder import check_target
from rewriter.plan import EditOptions, Plan, Semantics, make_plan
from rewriter.preview import Preview, preview

if TYPE_CHECKING:
    from rewriter.hub import ResolvedModel


@dataclass(frozen=True)
class RewriteRequest:
    """What `mote-rewrite` was asked for, as text where the user typed text."""

    suppress: str | None = None  # file or preset:NAME
    stimulate: str | None = None
    model: str | None = None
    revision: str | None = None
    output: Path | None = None
    top: int | None = None
    layer_index: str | None = None
    semantics: str = "reroute"
    suppress_bias: str = "auto"
    renormalize: bool = False
    link: str = "auto"
    overwrite: bool = False


@dataclass(frozen=True)
class Prepared:
    """A plan and the folders it leads from and to."""

    plan: Plan
    base: Path
    target: Path
    link: LinkMode
    overwrite: bool

    def preview(self) -> Preview:
        """What executing the plan would move."""
        return preview(self.plan, self.base, self.target, self.link)


def prepare(request: RewriteRequest, *, say: Callable[[str], None]) -> Prepared:
    """Check a request, find the base and plan the edit; the base is only read, the output is not touched.

    Raises: InputError and its kinds for arguments and expert sets; OutputError for the target; CheckpointError, PlanError,
    UnknownFamilyError and HubError for the base.
    """
    options = _options(request)
    layer_index = _choice("--layer-index", request.layer_index, LayerIndex) if request.layer_index else None
    link: LinkMode = _choice("--link", request.link, LinkMode)
    suppress = _load_set(request.suppress, request, layer_index)
    stimulate = _load_set(request.stimulate, request, layer_index)
    given = [chosen for chosen in (suppress, stimulate) if chosen is not None]
    if not given:
        raise ExpertSetError("nothing to do: give --suppress FILE, --stimulate FILE or both")
    resolved = find_base(request, given, say)
    checkpoint = Checkpoint.open(resolved.folder)
    plan = make_plan(
        checkpoint,
        suppress,
        stimulate,
        options,
        base_model=resolved.repo_id,
        base_folder=resolved.folder.absolute().name,
        base_revision=resolved.revision,
    )
    name = (resolved.repo_id or str(resolved.folder.absolute())).rsplit("/", 1)[-1]
    target = request.output or Path(f"{name}-mote-{_file_name(plan.behavior)}")
    check_target(target.absolute(), resolved.folder, overwrite=request.overwrite)
    return Prepared(plan, resolved.folder, target, link, request.overwrite)


def execute(
    prepared: Prepared, *, progress: Callable[[int], AbstractContextManager[Progress]] | None = None
) -> EmitResult:
    """Write the variant; see emit."""
    return emit(
        prepared.plan,
        prepared.base,
        prepared.target,
        link=prepared.link,
        overwrite=prepared.overwrite,
        progress=progress,
    )


def find_base(request: RewriteRequest, sets: list[ExpertSet], say: Callable[[str], None]) -> "ResolvedModel":
    """The base model's folder: as given, else as the expert sets say (a folder relative to their file, or a Hub id).

    Raises: InputError when nothing names a model, or the sets name different ones.
    """
    from rewriter.hub import resolve_model

    if request.model is not None:
        return resolve_model(request.model, request.revision, say=say)
    named = {(chosen.model, chosen.revision) for chosen in sets}
    if len(named) > 1:
        names = " and ".join(sorted(str(model) for model, _ in named))
        raise InputError(f"the expert sets are of different models ({names}); give --model to say which to edit")
    model, revision = named.pop()
    if model is None:
        raise InputError("no expert set names its model; give --model PATH_OR_HUB_ID")
    source = request.suppress or request.stimulate or ""
    beside = Path(source).parent / model
    if not source.startswith(PRESET_PREFIX) and beside.is_dir():
        return resolve_model(str(beside), None, say=say)
    return resolve_model(model, request.revision or revision, say=say)


def _load_set(source: str | None, request: RewriteRequest, layer_index: LayerIndex | None) -> ExpertSet | None:
    if source is None:
        return None
    return ExpertSet.load(source, model=request.model, layer_index=layer_index).top(request.top)


def _options(request: RewriteRequest) -> EditOptions:
    semantics: Semantics = _choice("--semantics", request.semantics, Semantics)
    bias: str | float = request.suppress_bias
    if bias not in ("auto", "-inf", "margin"):
        try:
            bias = float(bias)
        except ValueError:
            raise InputError(f"--suppress-bias is {bias!r}, expected auto, -inf, margin or a number") from None
        if bias != bias or bias == float("inf"):
            raise InputError(f"--suppress-bias is {bias}, expected auto, -inf, margin or a finite number")
        bias = "-inf" if bias == float("-inf") else bias
    return EditOptions(semantics=semantics, suppress_bias=bias, renormalize=request.renormalize)


def _choice(option: str, value: str, choices: Any) -> Any:
    """One of a Literal's values, or the sentence that lists them."""
    if value not in get_args(choices):
        raise InputError(f"{option} is {value!r}, expected one of {', '.join(get_args(choices))}")
    return value


def _file_name(text: str) -> str:
    """A behaviour's name as part of a folder's name."""
    return (
        "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in text).strip("-.").lower()
        or "variant"
    )
