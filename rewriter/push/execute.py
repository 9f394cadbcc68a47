"""Carries a push plan out: create what is missing, upload, copy on the server, and commit everything at once."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rewriter.console import size_text
from rewriter.errors import HubError
from rewriter.hub.errors import ConflictError, explain, hub_errors, is_transient, wait_seconds, with_retries
from rewriter.hub.models import RemoteTree, remote_tree
from rewriter.push.files import LocalFile
from rewriter.push.plan import FileAction, PushPlan, same_content
from rewriter.push.prepare import PreparedPush

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationCopy, HfApi

Say = Callable[[str], None]
Operation = Any  # CommitOperationAdd, CommitOperationCopy or CommitOperationDelete; huggingface_hub is imported late
LARGE_UPLOAD_BYTES = 100_000_000
MAX_COMMIT_ATTEMPTS = 4


@dataclass(frozen=True)
class PushResult:
    """Where the variant is now."""

    repo_id: str
    branch: str
    commit: str
    url: str
    seconds: float
    did_nothing: bool = False


def execute_push(prepared: PreparedPush, message: str, say: Say) -> PushResult:
    """Carry a plan out: create what is missing, upload, then commit everything at once.

    An interrupted run leaves the target as it was (a new repo may stay, empty); running again uploads what is missing.

    Raises:
        HubError: the Hub refused, failed too often or could not be reached.
        ConflictError: the branch moved since the plan was made.
    """
    from huggingface_hub import HfApi

    started = time.monotonic()
    plan, api = prepared.plan, HfApi(library_name="mote")
    with hub_errors(plan.repo_id):
        if plan.is_done:
            return _result(plan, str(plan.start_commit), started, did_nothing=True)
        start_commit = _create_repo(api, plan, say)
        operations = _operations(plan, prepared.files)
        _upload(api, plan, operations, say)
        parent = _create_branch(api, plan, start_commit, say) if plan.create_branch else start_commit
        try:
            commit = _commit(api, prepared, operations, parent, message, say)
        except BaseException:
            if plan.create_branch:
                _delete_branch(api, plan, parent)
            raise
    return _result(plan, commit, started)


def _create_repo(api: "HfApi", plan: PushPlan, say: Say) -> str | None:
    """Create or duplicate the repo where the plan says so; return the commit that the branch starts from."""
    if plan.create is None:
        return plan.start_commit
    if plan.create == "duplicate":
        say(f"duplicating {plan.duplicate_of} as {plan.repo_id} on the server")
        url = with_retries(lambda: api.duplicate_repo(str(plan.duplicate_of), plan.repo_id, private=plan.private), say)
        if url.files_copy_pending:
            say("the server goes on copying the base's files; until it is done, downloads of them may fail")
    else:
        say(f"creating {plan.repo_id}")
        # A retry after a lost answer finds its own repo: exist_ok. Nobody else's: the plan saw none a moment ago.
        with_retries(lambda: api.create_repo(plan.repo_id, private=plan.private, exist_ok=True), say)
    head = str(with_retries(lambda: api.model_info(plan.repo_id), say).sha)
    if plan.create == "empty":
        return head
    if not plan.create_branch and head != plan.start_commit:
        raise HubError(
            f"'{plan.repo_id}' was made, but the base's main branch is at {head[:12]} and the variant's base at "
            f"{str(plan.start_commit)[:12]}: push to a branch of it with --revision BRANCH"
        )
    return plan.start_commit


def _operations(plan: PushPlan, files: Sequence[LocalFile]) -> list[Operation]:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    by_path = {file.path: file for file in files}
    operations: list[Operation] = []
    for item in plan.actions:
        if item.action == "upload":
            file = by_path[item.path]
            addition = CommitOperationAdd(item.path, file.content if file.content is not None else str(file.source))
            if file.sha256 is not None:
                addition.upload_info.sha256 = bytes.fromhex(file.sha256)
            operations.append(addition)
        elif item.action == "copy":
            operations.append(_copy(CommitOperationCopy, item))
        elif item.action == "delete":
            operations.append(CommitOperationDelete(item.path, is_folder=False))
    return operations


def _copy(operation: "type[CommitOperationCopy]", item: FileAction) -> "CommitOperationCopy":
    return operation(
        src_path_in_repo=item.source_path or item.path,
        path_in_repo=item.path,
        src_revision=item.source_revision,
        src_repo_id=item.source_repo,
        src_repo_type="model" if item.source_repo else None,
    )


def _upload(api: "HfApi", plan: PushPlan, operations: Sequence[Operation], say: Say) -> None:
    """Send the shards, one after the other, so that an interruption loses one of them at most."""
    from huggingface_hub import CommitOperationAdd

    # Against a branch that exists: the new one is made only when everything is there to be committed.
    revision = "main" if plan.create_branch else plan.branch
    large = [
        operation
        for operation in operations
        if isinstance(operation, CommitOperationAdd) and operation.upload_info.size >= LARGE_UPLOAD_BYTES
    ]
    for number, addition in enumerate(large, 1):
        size = size_text(addition.upload_info.size)
        say(f"uploading {addition.path_in_repo} ({size}), {number} of {len(large)}")
        with hub_errors(plan.repo_id, transfer=True):
            with_retries(
                lambda addition=addition: api.preupload_lfs_files(  # type: ignore[misc]
                    plan.repo_id, [addition], revision=revision, free_memory=False
                ),
                say,
            )


def _create_branch(api: "HfApi", plan: PushPlan, start_commit: str | None, say: Say) -> str:
    """Make the branch; returns the commit that it stands at, which is the one to build on.

    Raises: ConflictError when somebody made a branch of that name meanwhile and it holds something else.
    """
    with_retries(lambda: api.create_branch(plan.repo_id, branch=plan.branch, revision=start_commit, exist_ok=True), say)
    head = str(with_retries(lambda: api.model_info(plan.repo_id, revision=plan.branch), say).sha)
    if start_commit is not None and head != start_commit:
        raise ConflictError(
            f"'{plan.repo_id}': somebody made a branch {plan.branch} meanwhile ({head[:12]}): nothing was committed; run the"
            " command again to plan against it"
        )
    return head


def _delete_branch(api: "HfApi", plan: PushPlan, parent: str | None) -> None:
    """Remove a branch made for a commit that failed: it would stay with the base's weights under the variant's name.

    Only while it stands where it was made: another's commit on it is not ours to delete.
    """
    with suppress(HubError), hub_errors(plan.repo_id):
        if api.model_info(plan.repo_id, revision=plan.branch).sha == parent:
            api.delete_branch(plan.repo_id, branch=plan.branch)


def _commit(
    api: "HfApi",
    prepared: PreparedPush,
    operations: Sequence[Operation],
    parent: str | None,
    message: str,
    say: Say,
) -> str:
    """Commit once: after a failure it is looked up whether the commit was made, before it is tried again."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    plan = prepared.plan
    for attempt in range(1, MAX_COMMIT_ATTEMPTS + 1):
        try:
            return _create_commit(api, plan, operations, parent, message)
        except (HfHubHTTPError, httpx2.TransportError) as error:
            conflict = isinstance(error, HfHubHTTPError) and error.response.status_code in (409, 412)
            if not conflict and not is_transient(error):
                raise
            head = with_retries(lambda: remote_tree(plan.repo_id, plan.branch), say)
            if head.commit != parent and _holds(head, prepared.files, operations):
                return head.commit
            if head.commit != parent:
                raise ConflictError(
                    f"'{plan.repo_id}', branch {plan.branch}, got another commit ({head.commit[:12]}) meanwhile: "
                    "run the command again to plan against it"
                ) from None
            if attempt == MAX_COMMIT_ATTEMPTS or conflict:
                raise
            say(f"the commit failed, trying again ({attempt} of {MAX_COMMIT_ATTEMPTS - 1})")
            time.sleep(wait_seconds(error, attempt))
    raise AssertionError("the loop returns or raises")


def _create_commit(
    api: "HfApi", plan: PushPlan, operations: Sequence[Operation], parent: str | None, message: str
) -> str:
    """One attempt; what is not about HTTP becomes a HubError here, the rest is for the caller to judge."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    try:
        made = api.create_commit(
            plan.repo_id, operations, commit_message=message, revision=plan.branch, parent_commit=parent
        )
    except (HfHubHTTPError, httpx2.HTTPError, ConnectionError):
        raise
    except (RuntimeError, OSError, ValueError) as error:
        raise explain(error, plan.repo_id) from None
    return str(made.oid)


def _holds(tree: RemoteTree, files: Sequence[LocalFile], operations: Sequence[Operation]) -> bool:
    """Tell whether a tree holds every file of the variant."""
    from huggingface_hub import CommitOperationAdd

    sent = {
        operation.path_in_repo: operation.upload_info.sha256.hex()
        for operation in operations
        if isinstance(operation, CommitOperationAdd)
    }
    known = [replace(file, sha256=file.sha256 or sent.get(file.path)) for file in files]
    return all(same_content(file, tree.files.get(file.path)) for file in known)


def _result(plan: PushPlan, commit: str, started: float, did_nothing: bool = False) -> PushResult:
    from huggingface_hub import constants

    url = f"{constants.ENDPOINT}/{plan.repo_id}/tree/{plan.branch}"
    return PushResult(plan.repo_id, plan.branch, commit, url, time.monotonic() - started, did_nothing)
