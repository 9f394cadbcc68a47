"""From what the user asked for to a prepared plan, and from there to the folder: the steps of `mote-rewrite` as a library."""

import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rewriter.checkpoint.kinds import Model, open_model
from rewriter.checkpoint.links import check_links
from rewriter.checkpoint.other_files import CARD_NAME
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.outputs import without_residual
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import Plan, behavior_of, make_plan
from rewriter.edit.record import BIAS_WORDS, MINUS_INF, BiasChoice, Recipe, expert_set_of, find_record
from rewriter.edit.replan import check_base, check_plan, options_of
from rewriter.edit.scale import is_factor
from rewriter.errors import ExpertSetError, InputError
from rewriter.expert_set import PRESET_PREFIX, ExpertSet, LayerIndex
from rewriter.semantics import AUTO, DROP, REROUTE, STIMULATE, SUPPRESS, AskedSemantics, CheckpointSemantics
from rewriter.variant.copying import LinkMode, Progress
from rewriter.variant.output_folder import check_target, check_target_is_free
from rewriter.variant.preview import Preview, preview
from rewriter.variant.write import WriteResult, write_variant

if TYPE_CHECKING:
    from rewriter.hub.remote import RemoteRepo


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
    semantics: str = AUTO
    suppress_bias: str = "auto"
    renormalize: bool = False
    link: str = "auto"
    overwrite: bool = False
    stamp: bool = True
    recipe: str | None = None  # file, folder or ORG/NAME[@BRANCH]; then nothing else says what to edit
    strength: float | None = None  # of every suppressed expert; the sets' own where it is not given
    gain: float | None = None  # of every stimulated expert; the sets' own where it is not given


@dataclass(frozen=True)
class Edit:
    """What to do to a model, read from the request's files."""

    options: EditOptions
    suppress: ExpertSet | None
    stimulate: ExpertSet | None
    recipe: Recipe | None = None
    measure: "Measure | None" = None  # completes the sets once the base is known

    @property
    def sets(self) -> list[ExpertSet]:
        """The expert sets there are."""
        return [chosen for chosen in (self.suppress, self.stimulate) if chosen is not None]

    def plan(self, checkpoint: Model, **base: str | None) -> Plan:
        """The plan on a base; a recipe's base is checked first, by the hashes of what would change.

        Raises: as make_plan does; CheckpointError for a base that is not the recipe's; InputError for a bias that nothing gets.
        """
        if self.measure is not None:
            return replace(self.measure(checkpoint, self), measure=None).plan(checkpoint, **base)
        if self.recipe is None:
            self._check_bias_is_set(checkpoint)
            return make_plan(checkpoint, self.suppress, self.stimulate, self.options, **base)
        check_base(self.recipe, checkpoint)
        plan = make_plan(checkpoint, self.suppress, self.stimulate, self.options, **base)
        check_plan(self.recipe, plan)
        return plan

    def _check_bias_is_set(self, checkpoint: Model) -> None:
        """Refuse a value for the bias of suppressed experts where none gets one: it would be passed over without a word."""
        is_set = checkpoint.layout.has_bias and self.options.semantics != DROP
        if self.suppress is not None and not is_set and self.options.suppress_bias != "auto":
            why = "a drop sets no bias" if checkpoint.layout.has_bias else "this model's routers have no bias"
            raise InputError(f"--suppress-bias is {self.options.suppress_bias}, but {why}, expected no --suppress-bias")


# What traces say of a base's experts, put into an edit's sets: this package reads none.
Measure = Callable[[Model, Edit], Edit]


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
        return preview(self.plan, open_model(self.base), self.target, self.link)


@dataclass(frozen=True)
class RemotePlan:
    """A plan made on the Hub's files, and what making it has read."""

    plan: Plan
    remote: "RemoteRepo"
    num_files: int  # that a full run would download
    download_bytes: int
    is_cached: bool


def prepare(request: RewriteRequest, *, say: Callable[[str], None], measure: Measure | None = None) -> Prepared:
    """Check a request, find the base and plan the edit; the base is only read, the output is not touched.

    measure: completes the expert sets for the base, from traces.

    A base that would have to be downloaded is planned on in place first: nobody waits for 689 GB to be told that layer 70
    does not exist or that the output does.

    Raises:
        InputError and its kinds: arguments and expert sets.
        OutputError: the target.
        CheckpointError, PlanError, UnknownFamilyError, HubError: the base.
    """
    from rewriter.hub.models import resolve_model

    link: LinkMode = _choice("--link", request.link, LinkMode)
    edit = replace(read_edit(request), measure=measure)
    model, revision = base_name(request, edit)
    if is_far(model, revision):
        target = request.output or _default_target(model, edit)
        check_target_is_free(target.absolute(), overwrite=request.overwrite)
        _plan_remotely(edit, model, revision, say)
    resolved = resolve_model(model, revision, say=say)
    checkpoint = open_model(resolved.folder)
    check_base_links(checkpoint, resolved.folder)
    plan = edit.plan(
        checkpoint,
        base_model=resolved.repo_id,
        base_folder=os.path.basename(os.path.abspath(resolved.folder)),
        base_revision=resolved.revision,
    )
    target = request.output or _default_target(resolved.repo_id or checkpoint.title, edit)
    check_target(target.absolute(), resolved.folder, overwrite=request.overwrite)
    return Prepared(plan, resolved.folder, target, link, request.overwrite)


def check_base_links(checkpoint: Model, given: Path) -> None:
    """Refuse a base whose files are links that lead out of it.

    given: the folder or file that the user named; a link that is named itself is followed.

    Raises:
        CheckpointError: naming the link.
    """
    previous = find_record(checkpoint.config, checkpoint.source.name, checkpoint.config_place)
    names: list[str | Path] = [*checkpoint.other_files()[0], checkpoint.config_place, CARD_NAME]
    names += checkpoint.shards if given.is_dir() else ()
    check_links(checkpoint.folder, names, base_name=previous.base_folder if previous else None)


def would_download(request: RewriteRequest) -> bool:
    """Tell whether executing a request would download its base: it is a Hub id that the local cache lacks.

    Raises:
        InputError: the request's files cannot be read, or name no model.
    """
    return is_far(*base_name(request, read_edit(request)))


def prepare_remote(
    request: RewriteRequest, *, say: Callable[[str], None], measure: Measure | None = None
) -> RemotePlan:
    """Plan on the Hub's files: config, index, and the byte ranges of the headers and tensors that the plan looks at.

    Raises:
        InputError: the base is a local folder.
        HubError, CheckpointError, PlanError: as for a plan on a folder.
    """
    from rewriter.hub.models import find_in_cache
    from rewriter.hub.remote import download_size_bytes

    edit = replace(read_edit(request), measure=measure)
    model, revision = base_name(request, edit)
    if not _is_hub_id(model):
        raise InputError(f"--remote-plan reads a model on the Hub, but '{model}' is no Hub id; use --dry-run")
    plan, remote = _plan_remotely(edit, model, revision, say)
    num_files, size_bytes = download_size_bytes(remote)
    is_cached = find_in_cache(model, remote.tree.commit) is not None
    return RemotePlan(plan, remote, num_files, size_bytes, is_cached)


def _plan_remotely(
    edit: Edit, model: str, revision: str | None, say: Callable[[str], None]
) -> "tuple[Plan, RemoteRepo]":
    from rewriter.hub.remote import open_remote

    say(f"{model}: reading config, index, headers and the tensors to edit from the Hub by byte ranges")
    remote = open_remote(model, revision, say)
    return edit.plan(Checkpoint(remote), base_model=model, base_revision=remote.tree.commit), remote


def _is_hub_id(model: str) -> bool:
    from rewriter.hub.models import is_local, looks_like_repo_id

    return not is_local(model) and looks_like_repo_id(model)


def is_far(model: str, revision: str | None) -> bool:
    """Whether a model would have to be downloaded."""
    from rewriter.hub.models import find_in_cache

    return _is_hub_id(model) and find_in_cache(model, revision) is None


def _default_target(model: str, edit: Edit) -> Path:
    """The output where none is named: after the model's own name (of a path or Hub id) and the behaviour."""
    return Path(f"{model.rsplit('/', 1)[-1]}-mote-{_file_name(behavior_of(edit.suppress, edit.stimulate))}")


def read_edit(request: RewriteRequest) -> Edit:
    """The expert sets or the recipe of a request, checked.

    Raises: InputError and its kinds for arguments and files; HubError for a recipe that cannot be fetched.
    """
    if request.recipe is not None:
        return _edit_of_recipe(request)
    options = _options(request)
    layer_index = _choice("--layer-index", request.layer_index, LayerIndex) if request.layer_index else None
    suppress = _load_set(request.suppress, request, layer_index)
    stimulate = _load_set(request.stimulate, request, layer_index)
    if suppress is None and stimulate is None:
        raise ExpertSetError("nothing to do: give --suppress FILE, --stimulate FILE or both")
    return Edit(options, with_strength(suppress, request.strength), with_gain(stimulate, request.gain))


def with_strength(suppress: ExpertSet | None, strength: float | None) -> ExpertSet | None:
    """A set to suppress with this strength for each of its experts; None leaves it as it is.

    Raises: InputError for a strength that is none, or without a set.
    """
    if strength is None:
        return suppress
    if suppress is None:
        raise InputError("--strength is one of suppressed experts, expected --suppress FILE with it")
    if not 0 < strength <= 1:
        raise InputError(f"--strength is {strength:g}, expected a number above 0 and at most 1; 0 would be the base")
    return without_residual(suppress.with_each(strength=strength))


def with_gain(stimulate: ExpertSet | None, gain: float | None) -> ExpertSet | None:
    """A set to stimulate with this gain for each of its experts; None leaves it as it is.

    Raises: InputError for a gain that is none, or without a set.
    """
    if gain is None:
        return stimulate
    if stimulate is None:
        raise InputError("--gain is one of stimulated experts, expected --stimulate FILE with it")
    if not is_factor(gain):
        raise InputError(f"--gain is {gain:g}, expected auto, mean or a finite number above 0")
    return without_residual(stimulate.with_each(gain=gain))


def execute(
    prepared: Prepared, *, progress: Callable[[int], AbstractContextManager[Progress]] | None = None
) -> WriteResult:
    """Write the variant; see write_variant."""
    return write_variant(
        prepared.plan,
        prepared.base,
        prepared.target,
        link=prepared.link,
        overwrite=prepared.overwrite,
        progress=progress,
    )


def base_name(request: RewriteRequest, edit: Edit) -> tuple[str, str | None]:
    """The base as given, else as the expert sets say: a folder relative to their own file, or a Hub id and its revision.

    Raises:
        InputError: nothing names a model, or the sets name different ones.
    """
    return base_of_sets(request, [(request.suppress, edit.suppress), (request.stimulate, edit.stimulate)])


def base_of_sets(
    request: RewriteRequest, sets: Iterable[tuple[str | None, ExpertSet | None]]
) -> tuple[str, str | None]:
    """The same for any number of sets, each with the file or preset that it was read from.

    Raises:
        InputError: nothing names a model, the sets name different ones, or a folder that is not beside them.
    """
    from rewriter.hub.models import is_local

    if request.model is not None:
        return request.model, request.revision
    named = [_base_of_set(source, chosen) for source, chosen in sets if chosen is not None and chosen.model is not None]
    models = sorted({model for model, _ in named})
    if not models:
        raise InputError("no expert set names its model; give --model PATH_OR_HUB_ID")
    if len({os.path.realpath(model) if os.path.isdir(model) else model for model in models}) > 1:
        raise InputError(
            f"the expert sets are of different models ({' and '.join(models)}); give --model to say which to edit"
        )
    if "/" not in models[0] and not is_local(models[0]):
        raise InputError(
            f"the expert set is of the model folder {models[0]!r}, which does not lie beside the set; give --model FOLDER"
        )
    revisions = sorted({revision for _, revision in named if revision is not None})
    if len(revisions) > 1 and request.revision is None:
        raise InputError(
            f"the expert sets are of different revisions of {models[0]} ({' and '.join(revisions)}); give --revision to say"
            " which to edit"
        )
    return models[0], request.revision or (revisions[0] if revisions else None)


def _base_of_set(source: str | None, chosen: ExpertSet) -> tuple[str, str | None]:
    """The model that a set names: the folder or file of that name beside the set's, else a Hub id and its revision."""
    from rewriter.hub.models import is_local

    model = str(chosen.model)
    beside = Path(source or "").parent / model
    is_there = os.path.isdir(beside) or (is_local(model) and os.path.isfile(beside))
    if not (source or "").startswith(PRESET_PREFIX) and is_there:
        return str(beside), None
    return str(chosen.model), chosen.revision


def _edit_of_recipe(request: RewriteRequest) -> Edit:
    """A recipe says all about the edit, so options that would say otherwise are refused."""
    from rewriter.hub.recipe import load_recipe

    unset = RewriteRequest()
    for name in (
        "suppress",
        "stimulate",
        "top",
        "layer_index",
        "semantics",
        "suppress_bias",
        "renormalize",
        "strength",
        "gain",
    ):
        if getattr(request, name) != getattr(unset, name):
            raise InputError(f"--recipe says what to edit, so --{name.replace('_', '-')} cannot be given with it")
    recipe = load_recipe(str(request.recipe))
    suppress, stimulate = expert_set_of(recipe, SUPPRESS), expert_set_of(recipe, STIMULATE)
    return Edit(replace(options_of(recipe), stamp=request.stamp), suppress, stimulate, recipe)


def _load_set(source: str | None, request: RewriteRequest, layer_index: LayerIndex | None) -> ExpertSet | None:
    if source is None:
        return None
    chosen = ExpertSet.load(source, model=request.model, layer_index=layer_index)
    return chosen if request.top is None else without_residual(chosen.top(request.top))


def _options(request: RewriteRequest) -> EditOptions:
    asked: AskedSemantics = _choice("--semantics", request.semantics, AskedSemantics)
    semantics: dict[AskedSemantics, CheckpointSemantics | None] = {AUTO: None, REROUTE: REROUTE, DROP: DROP}
    return EditOptions(semantics[asked], _bias_choice(request.suppress_bias), request.renormalize, request.stamp)


def _bias_choice(text: str) -> BiasChoice:
    """What --suppress-bias says."""
    for word in BIAS_WORDS:
        if text == word:
            return word
    try:
        number = float(text)
    except ValueError:
        raise InputError(f"--suppress-bias is {text!r}, expected auto, -inf, margin or a number") from None
    if number != number or number == float("inf"):
        raise InputError(f"--suppress-bias is {number}, expected auto, -inf, margin or a finite number")
    return MINUS_INF if number == float("-inf") else number


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
