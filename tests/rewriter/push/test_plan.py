"""The pure part of a push: which file is uploaded, copied on the server, kept or deleted."""

import hashlib

import pytest

from rewriter.hub.models import RemoteFile, RemoteTree
from rewriter.push.files import (
    BY_MOTE_BLOCK,
    SAME_DATA,
    LocalFile,
    file_in_memory,
    hash_files,
    is_same_data,
    with_base_hashes,
)
from rewriter.push.plan import PushPlan, describe_plan, is_other_weight, needs_hash, plan_actions, same_content


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def shard(path: str, content: str | None, size: int = 100) -> LocalFile:
    return LocalFile(path, size, sha256=sha(content) if content else None)


def tree(repo: str, commit: str, shards: dict[str, str], size: int = 100, xet: bool = True, **small: str) -> RemoteTree:
    files = {
        path: RemoteFile(path, size, "blob", sha(content), sha("x" + content) if xet else None)
        for path, content in shards.items()
    }
    for path, content in small.items():
        local = file_in_memory(path, content.encode())
        files[path] = RemoteFile(path, local.size_bytes, str(local.blob_id), None, None)
    return RemoteTree(repo, commit, files, False, False)


def kinds(actions: tuple[object, ...]) -> dict[str, str]:
    return {item.path: item.action for item in actions}  # type: ignore[attr-defined]


BASE = tree("org/base", "c0", {"a.safetensors": "a", "b.safetensors": "b"}, LICENSE="terms", README="card")
VARIANT = [shard("a.safetensors", "a"), shard("b.safetensors", "edited"), file_in_memory("config.json", b"{}")]


def test_new_repo_copies_from_the_base_and_takes_its_licence() -> None:
    actions = plan_actions(VARIANT, None, [], BASE, "me/new")
    assert kinds(actions) == {
        "a.safetensors": "copy", "b.safetensors": "upload", "config.json": "upload", "LICENSE": "copy",
    }  # fmt: skip
    copied = actions[0]
    assert (copied.source_repo, copied.source_revision, copied.source_path) == ("org/base", "c0", "a.safetensors")


def test_branch_of_a_copy_keeps_what_is_there() -> None:
    own = tree("me/copy", "c0", {"a.safetensors": "a", "b.safetensors": "b"}, LICENSE="terms")
    actions = plan_actions(VARIANT, own, [], own, "me/copy")
    assert kinds(actions) == {"a.safetensors": "keep", "b.safetensors": "upload", "config.json": "upload"}


def test_without_xet_hashes_nothing_is_copied_across() -> None:
    old = tree("org/base", "c0", {"a.safetensors": "a"}, xet=False)
    assert kinds(plan_actions(VARIANT[:1], None, [], old, "me/new")) == {"a.safetensors": "upload"}


def test_content_elsewhere_in_the_target_is_copied_within_it() -> None:
    other = tree("me/new", "c7", {"renamed.safetensors": "edited"}, xet=False)
    start = tree("me/new", "c1", {})
    (action,) = plan_actions([VARIANT[1]], start, [other], None, "me/new")
    assert (action.action, action.source_repo, action.source_revision) == ("copy", None, "c7")
    assert action.source_path == "renamed.safetensors"


def test_weights_that_the_variant_does_not_have_are_deleted_and_nothing_else() -> None:
    start = tree("me/copy", "c0", {"a.safetensors": "a", "old.safetensors": "o", "pytorch_model.bin": "p"}, notes="n")
    actions = plan_actions(VARIANT[:1], start, [], None, "me/copy")
    assert kinds(actions) == {"a.safetensors": "keep", "old.safetensors": "delete", "pytorch_model.bin": "delete"}
    assert is_other_weight("original/consolidated.00.pth") and not is_other_weight("tokenizer.json")


def test_small_files_are_compared_by_gits_id() -> None:
    file = file_in_memory("config.json", b"{}")
    assert file.blob_id == "9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git hash-object
    assert same_content(file, RemoteFile("config.json", 2, str(file.blob_id), None, None))
    assert not same_content(file, RemoteFile("config.json", 2, "0" * 40, None, None))
    assert not same_content(file, None)


def test_only_hashes_that_decide_are_computed() -> None:
    edited = shard("b.safetensors", None)
    assert not needs_hash(edited, [], BASE)
    assert not needs_hash(edited, [BASE], BASE), "an edited shard cannot be the base's"
    assert needs_hash(edited, [tree("me/new", "c1", {"x.safetensors": "something of that size"})], BASE)
    assert not needs_hash(edited, [tree("me/new", "c1", {"x.safetensors": "other"}, size=99)], BASE)
    assert not needs_hash(VARIANT[0], [tree("me/new", "c1", {"x.safetensors": "other"})], BASE)


def test_unchanged_shards_get_the_bases_hashes_only_if_sizes_agree() -> None:
    changed = ["b.safetensors"]
    files = [shard("a.safetensors", None), shard("b.safetensors", None), shard("c.safetensors", None)]
    known = with_base_hashes(files, changed, BASE, None)
    assert [file.sha256 for file in known] == [sha("a"), None, None]
    longer = with_base_hashes([shard("a.safetensors", None, size=101)], changed, BASE, None)
    assert longer[0].sha256 is None


def test_data_is_recognised_without_reading_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    first, copy, link = tmp_path / "a.safetensors", tmp_path / "copy", tmp_path / "link"
    first.write_bytes(b"x" * 10_000)
    copy.write_bytes(b"x" * 10_000)
    link.hardlink_to(first)
    (tmp_path / "symlink").symlink_to(first)
    assert is_same_data(link, first) and is_same_data(tmp_path / "symlink", first)
    assert not is_same_data(copy, first), "equal, but that would have to be read"
    assert not is_same_data(first, tmp_path / "missing")
    file = LocalFile("a.safetensors", 100, link)
    changed: list[str] = []
    assert with_base_hashes([file], changed, BASE, tmp_path)[0].reason == SAME_DATA
    assert with_base_hashes([file], changed, BASE, None)[0].reason == BY_MOTE_BLOCK


def test_hashes_are_remembered_until_the_file_changes(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path, ledger, read = tmp_path / "x.safetensors", tmp_path / "cache" / "ledger.json", []
    path.write_bytes(b"one")
    file = LocalFile("x.safetensors", 3, path)
    assert hash_files([file], ledger, read.append)[0].sha256 == sha("one")
    path_before = path.stat().st_mtime_ns
    ledger.write_text(ledger.read_text().replace(sha("one"), sha("remembered")))
    assert hash_files([file], ledger)[0].sha256 == sha("remembered")
    path.write_bytes(b"two")
    assert path.stat().st_mtime_ns != path_before
    assert hash_files([file], ledger)[0].sha256 == sha("two")
    ledger.write_text("damaged")
    assert hash_files([file], ledger)[0].sha256 == sha("two")
    assert read == [3]


@pytest.mark.parametrize(
    ("create", "create_branch", "first"),
    [
        ("empty", False, "Create the public repo me/new, branch main"),
        ("duplicate", True, "Duplicate org/base on the server as me/new, branch main (new, from c0)"),
        (None, True, "Push to me/new, branch main (new, from c0)"),
    ],
)
def test_plan_says_what_moves(create: str | None, create_branch: bool, first: str) -> None:
    actions = plan_actions(VARIANT, None, [], BASE, "me/new")
    plan = PushPlan(
        "me/new", "main", create, "org/base", False, create_branch, "c0", actions, ("a note",)  # type: ignore[arg-type]
    )  # fmt: skip
    lines = describe_plan(plan)
    assert lines[0] == first
    assert "  upload    2 files     102 B" in lines[1]
    assert lines[2:4] == ["    b.safetensors  100 B", "    config.json  2 B"]
    assert "  copy      2 files     105 B  copied on the server" in lines[4]
    assert lines[-1] == "  note: a note"
    assert plan.to_json()["totals"]["copy"] == {"files": 2, "bytes": 105}
