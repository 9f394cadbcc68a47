"""Works out a push: the repos concerned are looked at, the variant's files are matched with theirs; nothing moves yet."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rewriter.checkpoint.gguf.files import is_gguf
from rewriter.console import byte_progress, size_text
from rewriter.edit.record import Recipe, VariantRecord, expert_set_of
from rewriter.errors import HubError, InputError
from rewriter.hub.errors import AccessError, hub_errors, quiet_hub_logs, with_retries
from rewriter.hub.models import RemoteTree, find_in_cache, remote_tree
from rewriter.hub.recipe import RECIPE_NAME
from rewriter.push.card import CARD_NAME, pushed_card, recipe_card
from rewriter.push.files import (
    BY_MOTE_BLOCK,
    SMALL_FILE_BYTES,
    LocalFile,
    file_in_memory,
    hash_files,
    ledger_path,
    list_files,
    read_variant,
    with_base_hashes,
)
from rewriter.push.plan import PushPlan, needs_hash, plan_actions
from rewriter.semantics import ACTIONS

Say = Callable[[str], None]
MAX_BRANCHES_LISTED = 10


@dataclass(frozen=True)
class PushRequest:
    """What the user asked for; base_repo is where unchanged shards are copied from, if not the base itself.

    upload_all copies nothing across repos; hash_all takes nobody's word for what unchanged shards hold.
    """

    folder: Path
    repo_id: str
    branch: str = "main"
    private: bool = False
    base_repo: str | None = None
    duplicate_base: bool = False
    allow_public_from_gated: bool = False
    hash_all: bool = False
    upload_all: bool = False
    recipe: bool = False


@dataclass(frozen=True)
class PreparedPush:
    """A plan and the files it speaks of."""

    plan: PushPlan
    files: tuple[LocalFile, ...]


@dataclass(frozen=True)
class _Target:
    """The target repo as it is: None trees where there is none yet."""

    exists: bool
    private: bool
    branch_tree: RemoteTree | None
    other_trees: tuple[RemoteTree, ...]


def full_repo_id(repo_id: str) -> str:
    """Return ORG/NAME for a repo name; a bare name belongs to the token's user.

    Raises:
        HubError: no token, or the Hub does not accept it.
        InputError: not a repo name.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id

    with hub_errors(repo_id):
        validate_repo_id(repo_id)
        if "/" in repo_id:
            return repo_id
        return f"{HfApi(library_name='mote').whoami()['name']}/{repo_id}"


def prepare_push(request: PushRequest, files: Sequence[LocalFile], record: VariantRecord, say: Say) -> PreparedPush:
    """Look at the repos concerned and plan; nothing is changed anywhere.

    Args:
        request: what the user asked for, with a full repo id.
        files: what is to be published.
        record: what the variant's config.json records of it.
        say: receives talk.

    Raises:
        HubError: a repo cannot be read, or a gated or private base would be published without the flag for it.
    """
    quiet_hub_logs()
    reference, source = _base_trees(request, record, say)
    target = _read_target(request, record.base_revision)
    if request.recipe:
        _check_recipe_target(request, target)
    else:
        _check_terms(request, reference, target)
    known_base = _known_base(record, reference, source)
    if not request.recipe and not request.hash_all:
        files = with_base_hashes(files, record.changed_files, known_base, _base_snapshot(record))
    create, start = _start(request, target, source)
    trees = (*([target.branch_tree] if target.branch_tree else []), *target.other_trees)
    files = _hash_what_decides(files, trees, known_base, source, say)
    notes = _notes(files, source, request)
    plan = PushPlan(
        repo_id=request.repo_id,
        branch=request.branch,
        create=create,  # type: ignore[arg-type]
        duplicate_of=source.repo_id if create == "duplicate" and source else None,
        private=target.private if target.exists else request.private,
        create_branch=target.branch_tree is None
        and (create != "empty" or request.branch != "main")
        and not (create == "duplicate" and request.branch == "main"),
        start_commit=start.commit if start else None,
        actions=plan_actions(files, start, target.other_trees, None if request.upload_all else source, request.repo_id),
        notes=notes,
    )
    return PreparedPush(plan, tuple(files))


def variant_files(request: PushRequest, say: Say) -> tuple[list[LocalFile], VariantRecord]:
    """Return a variant's files with the card as it will be published, and its record.

    Raises:
        InputError: the folder is no complete variant, or its card is not valid.
    """
    record = read_variant(request.folder)
    if is_gguf(request.folder):
        raise InputError(
            f"'{request.folder}' holds GGUF files, which mote-push does not publish: share its recipe with --recipe, or upload"
            " the folder with `hf upload`"
        )
    files = [file for file in list_files(request.folder, record) if file.path != CARD_NAME]
    return [*files, pushed_card(request.folder, record, request.repo_id, request.branch, say)], record


def recipe_files(request: PushRequest, say: Say) -> tuple[list[LocalFile], VariantRecord]:
    """Return the files of a recipe repo made from a variant's folder, and the variant's record.

    Raises:
        InputError: the folder is no complete variant.
    """
    record = read_variant(request.folder)
    recipe = Recipe.of(record)
    files = [file_in_memory(RECIPE_NAME, recipe.to_json().encode())]
    for action in ACTIONS:
        expert_set = expert_set_of(recipe, action)
        if expert_set is not None:
            files.append(file_in_memory(f"{action}.json", expert_set.to_json().encode()))
    files += [
        file
        for file in list_files(request.folder, record)
        if file.path.startswith("mote-") and file.path != RECIPE_NAME and file.size_bytes <= SMALL_FILE_BYTES
    ]
    card = pushed_card(request.folder, record, request.repo_id, request.branch, say)
    assert card.content is not None
    files.append(
        file_in_memory(CARD_NAME, recipe_card(card.content.decode(), request.repo_id, request.branch).encode())
    )
    return files, record


def _base_trees(request: PushRequest, record: VariantRecord, say: Say) -> tuple[RemoteTree | None, RemoteTree | None]:
    """Return the base's tree, which says what unchanged shards hash to, and the tree to copy from."""
    base_model, revision = record.base_model, record.base_revision
    reference = source = None
    if base_model:
        try:
            reference = remote_tree(base_model, revision)
        except AccessError as error:
            say(f"the base cannot be looked at on the Hub ({error}), so nothing is copied from it")
    if request.base_repo and request.base_repo != base_model:
        source = _copy_of_base(request.base_repo, revision)
        reference = reference or source
    return reference, source or reference


def _known_base(record: VariantRecord, reference: RemoteTree | None, source: RemoteTree | None) -> RemoteTree | None:
    """Return the file list that is the base's for certain: at the very commit that the mote block names.

    Another repo, or another commit, may have shards of the same names and sizes with other content, as finetunes do.
    """
    revision = record.base_revision
    return next((tree for tree in (reference, source) if tree is not None and tree.commit == revision), None)


def _copy_of_base(repo_id: str, revision: str | None) -> RemoteTree:
    """Return the tree of the user's copy of the base: at the base's commit if it has that, else its main branch."""
    if revision:
        with suppress(AccessError):
            return remote_tree(repo_id, revision)
    return remote_tree(repo_id)


def _read_target(request: PushRequest, base_revision: str | None) -> _Target:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    api = HfApi(library_name="mote")
    with hub_errors(request.repo_id):
        try:
            info = with_retries(lambda: api.model_info(request.repo_id), lambda message: None)
        except RepositoryNotFoundError as error:
            # 401 hides whether the repo exists from those who may not know; a 404 is a plain no.
            if error.response.status_code != 404:
                raise
            return _Target(False, request.private, None, ())
        branches = {ref.name: ref.target_commit for ref in api.list_repo_refs(request.repo_id).branches}
    branch_tree = remote_tree(request.repo_id, branches[request.branch]) if request.branch in branches else None
    others = dict.fromkeys(
        commit for name, commit in sorted(branches.items(), key=lambda item: item[0] != "main")[:MAX_BRANCHES_LISTED]
    )
    trees = [
        remote_tree(request.repo_id, commit) for commit in others if not branch_tree or commit != branch_tree.commit
    ]
    if base_revision and base_revision not in others:
        with suppress(AccessError):
            trees.insert(0, remote_tree(request.repo_id, base_revision))
    elif base_revision:
        trees.sort(key=lambda tree: tree.commit != base_revision)
    return _Target(True, bool(info.private), branch_tree, tuple(trees))


def _start(request: PushRequest, target: _Target, source: RemoteTree | None) -> tuple[str | None, RemoteTree | None]:
    """Return whether to create the repo, and the tree that the branch has or starts with."""
    if target.branch_tree is not None:
        return None, target.branch_tree
    if target.exists:
        # The first is the base's commit if the repo has it (a duplicate keeps the history), else main.
        return None, target.other_trees[0] if target.other_trees else None
    if request.duplicate_base:
        if source is None:
            raise InputError("--duplicate-base needs a base on the Hub: give --base-repo ORG/NAME")
        return "duplicate", source
    return "empty", None


def _check_terms(request: PushRequest, reference: RemoteTree | None, target: _Target) -> None:
    """Refuse to publish a variant of a gated or private base by accident."""
    if reference is None or not (reference.gated or reference.private):
        return
    is_private = target.private if target.exists else request.private
    what = "gated" if reference.gated else "private"
    if request.duplicate_base and not target.exists and not is_private:
        raise HubError(
            f"the base '{reference.repo_id}' is {what}, and --duplicate-base would publish the base itself: "
            "use --private"
        )
    if is_private or request.allow_public_from_gated:
        return
    raise HubError(
        f"the base '{reference.repo_id}' is {what}, and '{request.repo_id}' would be public: use --private, or "
        "--allow-public-from-gated if its terms let you publish the variant to everybody"
    )


def _check_recipe_target(request: PushRequest, target: _Target) -> None:
    """A recipe goes into a repo of its own: beside weights it would say that they are its result."""
    if request.duplicate_base:
        raise InputError("--recipe publishes no weights, so it cannot go with --duplicate-base")
    for tree in (target.branch_tree, *target.other_trees):
        weights = sorted(path for path in tree.files if path.endswith(".safetensors")) if tree else []
        if weights:
            raise InputError(f"'{request.repo_id}' holds weights ({weights[0]}): give the recipe a repo of its own")


def _base_snapshot(record: VariantRecord) -> Path | None:
    if not record.base_model:
        return None
    cached = find_in_cache(record.base_model, record.base_revision)
    return cached.folder if cached else None


def _hash_what_decides(
    files: Sequence[LocalFile],
    target_trees: Sequence[RemoteTree],
    known_base: RemoteTree | None,
    source: RemoteTree | None,
    say: Say,
) -> Sequence[LocalFile]:
    """Hash the files whose hash may save an upload, with a progress bar."""
    candidates = (*target_trees, *([source] if source and source is not known_base else []))
    wanted = {file.path for file in files if needs_hash(file, candidates, known_base)}
    if not wanted:
        return files
    chosen = [file for file in files if file.path in wanted]
    size_bytes = sum(file.size_bytes for file in chosen)
    say(f"hashing {len(chosen)} files, {size_text(size_bytes)}, to see which the Hub has already")
    with byte_progress(size_bytes, "hashing") as advance:
        hashed = {file.path: file for file in hash_files(chosen, ledger_path(), advance)}
    return [hashed.get(file.path, file) for file in files]


def _notes(files: Sequence[LocalFile], source: RemoteTree | None, request: PushRequest) -> tuple[str, ...]:
    notes = []
    num_trusted = sum(file.reason == BY_MOTE_BLOCK for file in files)
    if num_trusted:
        notes.append(f"{num_trusted} shards are the base's by the mote block and their size; --hash-all reads them")
    if source is not None and source.repo_id != request.repo_id and not request.recipe:
        without = sum(1 for file in source.files.values() if file.sha256 and not file.xet_hash)
        if without:
            notes.append(f"{without} files of {source.repo_id} have no Xet hash and cannot be copied on the server")
    return tuple(notes)
