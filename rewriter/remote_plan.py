"""A plan made on the Hub's files without downloading the model, and what a full run would download."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewriter.checkpoint.reader import Checkpoint
from rewriter.cli.text import edit_lines
from rewriter.console import size_text
from rewriter.edit.plan import Plan
from rewriter.edit.record import BLOCK_KEY
from rewriter.errors import InputError
from rewriter.hub.models import find_in_cache, is_local, looks_like_repo_id
from rewriter.hub.remote import RemoteRepo, download_size_bytes, open_remote
from rewriter.rewrite import RewriteRequest, base_name, read_edit


@dataclass(frozen=True)
class RemotePlan:
    """A plan and what making it has read."""

    plan: Plan
    remote: RemoteRepo
    num_files: int
    download_bytes: int
    is_cached: bool


def would_download(request: RewriteRequest) -> bool:
    """Tell whether executing a request would download its base: it is a Hub id that the local cache lacks.

    Raises:
        InputError: the request's files cannot be read, or name no model.
    """
    model, revision = base_name(request, read_edit(request).sets)
    return not is_local(model) and looks_like_repo_id(model) and find_in_cache(model, revision) is None


def prepare_remote(request: RewriteRequest, *, say: Callable[[str], None]) -> RemotePlan:
    """Plan on the Hub's files: config, index, and the byte ranges of the headers and tensors that the plan looks at.

    Raises:
        InputError: the base is a local folder.
        HubError, CheckpointError, PlanError: as for a plan on a folder.
    """
    edit = read_edit(request)
    model, revision = base_name(request, edit.sets)
    if is_local(model) or not looks_like_repo_id(model):
        raise InputError(f"--remote-plan reads a model on the Hub, but '{model}' is no Hub id; use --dry-run")
    say(f"{model}: reading config, index, headers and the tensors to edit from the Hub by byte ranges")
    remote = open_remote(model, revision, say)
    plan = edit.plan(Checkpoint(remote), base_model=model, base_revision=remote.tree.commit)
    num_files, size_bytes = download_size_bytes(remote)
    is_cached = find_in_cache(model, remote.tree.commit) is not None
    return RemotePlan(plan, remote, num_files, size_bytes, is_cached)


def remote_plan_document(remote: RemotePlan) -> dict[str, Any]:
    """The plan for `--remote-plan --json`."""
    return {
        "base": remote.remote.tree.repo_id,
        "base_revision": remote.remote.tree.commit,
        "patched_bytes": remote.plan.patched_bytes,
        "changed_shards": list(remote.plan.changed_shards),
        "requests": remote.remote.num_requests,
        "read_bytes": remote.remote.received_bytes,
        "download_files": 0 if remote.is_cached else remote.num_files,
        "download_bytes": 0 if remote.is_cached else remote.download_bytes,
        "notes": list(remote.plan.notes),
        BLOCK_KEY: remote.plan.record.to_block(),
    }


def remote_plan_lines(remote: RemotePlan) -> list[str]:
    """The plan for people."""
    plan, tree = remote.plan, remote.remote.tree
    edited = sum(tree.files[shard].size_bytes for shard in plan.changed_shards)
    lines = [
        f"plan: {tree.repo_id} at revision {tree.commit} (nothing is downloaded or written)",
        *edit_lines(plan),
        f"  edited shards: {len(plan.changed_shards)}, {size_text(edited)}",
        f"  {plan.config_place}: {plan.record.renormalization}",
        f"  read for this plan: {remote.remote.num_requests} requests, {size_text(remote.remote.received_bytes)}",
    ]
    if remote.is_cached:
        lines.append("  a full run downloads nothing: the local cache has this revision")
    else:
        size = size_text(remote.download_bytes)
        lines.append(f"  a full run downloads {remote.num_files} files, {size}, into the local Hub cache")
    return lines + [f"  note: {note}" for note in plan.notes]
