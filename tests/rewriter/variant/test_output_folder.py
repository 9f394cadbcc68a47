"""The output folder: it appears complete or not at all, whoever else is at work and whatever the disk does."""

import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import build_checkpoint, tree_state, write_json, write_set
from commands import Command
from namespaces import read_only_view, run_with_mounts, why_no_mounts

from rewriter.errors import OutputError
from rewriter.variant import copying, output_folder
from rewriter.variant.output_folder import OutputFolder

Refuse = Callable[..., str]
REWRITE = [sys.executable, "-m", "ftri.cli.rewrite"]


def sibling(target: Path) -> Path:
    """Where a variant is written before it gets its name."""
    return target.with_name(f".{target.name}.mote-partial")


def sentence_of(stderr: str) -> str:
    """The one sentence of a failed command."""
    lines = stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), stderr
    return lines[0]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_existing_folder_is_refused(
    base: Path, refusal: Path, tmp_path: Path, refuse: Refuse, overwrite: list[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    sentence = refuse(base, "--suppress", refusal, *overwrite)
    assert f"{tmp_path / 'out'}: exists" in sentence
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_existing_file_or_link_is_refused(
    base: Path, refusal: Path, tmp_path: Path, refuse: Refuse, overwrite: list[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    assert "exists" in refuse(base, "--suppress", refusal, *overwrite, output=tmp_path / "file")
    (tmp_path / "link").symlink_to("nowhere")
    assert "exists" in refuse(base, "--suppress", refusal, *overwrite, output=tmp_path / "link")
    assert (tmp_path / "file").read_text() == "kept" and (tmp_path / "link").is_symlink()


def test_another_model_is_not_overwritten(base: Path, refusal: Path, tmp_path: Path, refuse: Refuse) -> None:
    other = build_checkpoint(tmp_path / "other")
    sentence = refuse(base, "--suppress", refusal, "--overwrite", output=other)
    assert "exists and is not a MoTE variant, so --overwrite does not replace it" in sentence


def test_empty_folder_is_taken(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    (tmp_path / "out").mkdir()
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "config.json").exists()


def test_overwrite_replaces_a_variant_wholly(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out).code == 0
    (out / "stale.txt").write_text("gone afterwards")
    other = write_set(tmp_path / "other.json", [(2, 2)])
    assert mote_rewrite("--model", base, "--suppress", other, "-o", out).code == 1
    assert mote_rewrite("--model", base, "--suppress", other, "-o", out, "--overwrite").code == 0
    assert not (out / "stale.txt").exists() and not sibling(out).exists()
    block = json.loads((out / "config.json").read_text())["mote"]
    assert [(entry["layer"], entry["expert"]) for entry in block["experts"]] == [(2, 2)]
    assert mote_verify(out, "--base", base, "--full").code == 0


def test_overwrite_where_folders_cannot_be_exchanged(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_folder, "RENAME_EXCHANGE", 1 << 30)  # EINVAL, as from a filesystem without it
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out).code == 0
    (out / "stale.txt").write_text("gone afterwards")
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--overwrite").code == 0
    assert not (out / "stale.txt").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "refusal.json", "out"}


def test_overwrite_that_fails_halfway_gives_the_old_variant_its_name_back(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_folder, "RENAME_EXCHANGE", 1 << 30)
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out).code == 0
    before, rename = tree_state(out), Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path == sibling(out):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    assert "cannot be created" in mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--overwrite").error
    assert tree_state(out) == before
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "refusal.json", "out"}


def test_failed_overwrite_keeps_the_old_variant(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out).code == 0
    before = tree_state(out)

    def full(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--overwrite").code == 1
    assert tree_state(out) == before and not sibling(out).exists()


@pytest.mark.parametrize("inside", ["out", "a/b/out", "."])
def test_output_inside_the_source(base: Path, refusal: Path, refuse: Refuse, inside: str) -> None:
    before = tree_state(base)
    target = base / inside
    sentence = refuse(
        base, "--suppress", refusal, "--overwrite", output=target if inside != "a/b/out" else base / "out"
    )
    assert "lies in the source" in sentence and "choose another -o" in sentence
    assert tree_state(base) == before


def test_output_inside_the_source_through_a_link(base: Path, refusal: Path, tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "link").symlink_to(base)
    before = tree_state(base)
    assert "lies in the source" in refuse(base, "--suppress", refusal, output=tmp_path / "link" / "out")
    assert tree_state(base) == before


def test_output_that_holds_the_source(base: Path, refusal: Path, tmp_path: Path, refuse: Refuse) -> None:
    assert "holds the source" in refuse(base, "--suppress", refusal, "--overwrite", output=tmp_path)


def test_parent_that_is_a_file(base: Path, refusal: Path, tmp_path: Path, refuse: Refuse) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "out"
    before = tree_state(base)
    # The parent cannot be listed, so the check is made here rather than by `refuse`.
    completed = subprocess.run(
        [*REWRITE, "--model", str(base), "--suppress", str(refusal), "-o", str(target)], capture_output=True, text=True
    )
    assert completed.returncode == 1 and str(tmp_path / "file") in sentence_of(completed.stderr)
    assert tree_state(base) == before


def test_missing_parents_are_made_and_removed_again(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a" / "b" / "out"
    with monkeypatch.context() as patched:
        patched.setattr(copying, "write_fully", _refuse_to_write)
        patched.setattr("rewriter.variant.write.write_fully", _refuse_to_write)
        assert mote_rewrite("--model", base, "--suppress", refusal, "-o", target).code == 1
    assert not (tmp_path / "a").exists()
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", target).code == 0
    assert (target / "config.json").exists()


@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EIO, "failed")],
)
def test_disk_that_fails_while_writing(
    base: Path, refusal: Path, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, code: int, expected: str
) -> None:
    def fail(descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "pwrite", fail)
    sentence = refuse(base, "--suppress", refusal)
    assert expected in sentence and "nothing was left behind" in sentence and os.strerror(code) in sentence


@pytest.mark.parametrize("link", ["auto", "copy"])
def test_limit_on_file_size(base: Path, refusal: Path, tmp_path: Path, link: str) -> None:
    """A refusal by the kernel itself in the middle of writing that needs no privilege to bring about."""
    before, smallest = tree_state(base), min(path.stat().st_size for path in base.glob("*.safetensors"))
    completed = subprocess.run(
        [*REWRITE, "--model", str(base), "--suppress", str(refusal), "-o", str(tmp_path / "out"), "--link", link],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (smallest // 2, smallest // 2)),
    )
    assert completed.returncode == 1 and "File too large" in sentence_of(completed.stderr)
    assert tree_state(base) == before
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "refusal.json"}


needs_mounts = pytest.mark.skipif(bool(why_no_mounts()), reason=f"nothing can be mounted here: {why_no_mounts()}")


@needs_mounts
@pytest.mark.parametrize(
    ("size_kb", "expected"), [(64, "bytes free, but the variant needs"), (2048, "the disk is full")]
)
def test_full_disk(refusal: Path, tmp_path: Path, size_kb: int, expected: str) -> None:
    """A tmpfs too small for the shards, which is said before anything is written, or for what else comes along."""
    base = build_checkpoint(tmp_path / "larger", hidden=64)
    (base / "tokenizer.model").write_bytes(os.urandom(4 << 20))
    before = tree_state(base)
    (tmp_path / "small").mkdir()
    command = [*REWRITE, "--model", str(base), "--suppress", str(refusal), "-o", str(tmp_path / "small" / "out")]
    completed = run_with_mounts(
        [f"mount -t tmpfs -o size={size_kb}k tmpfs '{tmp_path / 'small'}'"],
        ["sh", "-c", '"$@"; code=$?; ls -A small; exit $code', "sh", *command],
        tmp_path,
    )
    assert completed.returncode == 1 and expected in sentence_of(completed.stderr)
    assert completed.stdout == ""  # nothing is left on the small disk
    assert tree_state(base) == before


@needs_mounts
@pytest.mark.parametrize("arguments", [[], ["--dry-run"]])
def test_read_only_output_disk(base: Path, refusal: Path, tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "frozen").mkdir()
    target = tmp_path / "frozen" / "out"
    completed = run_with_mounts(
        [read_only_view(tmp_path / "frozen")],
        [*REWRITE, "--model", str(base), "--suppress", str(refusal), "-o", str(target), *arguments],
        tmp_path,
    )
    assert completed.returncode == 1
    assert f"{tmp_path / 'frozen'}: cannot be written (Read-only file system)" in sentence_of(completed.stderr)


@needs_mounts
@pytest.mark.parametrize("link", ["auto", "copy", "symlink"])
def test_read_only_source_disk(base: Path, refusal: Path, tmp_path: Path, link: str) -> None:
    """Nothing of the source needs to be writable: a disk that is mounted read-only, which stops root too, serves as well."""
    target = tmp_path / "out"
    before = tree_state(base)
    completed = run_with_mounts(
        [read_only_view(base)],
        [
            *REWRITE, "--model", str(base), "--suppress", str(refusal), "-o", str(target), "--link", link, "--json",
        ],
        tmp_path,
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr
    assert tree_state(base) == before
    shards = json.loads(completed.stdout)["shards"]
    assert shards == {"edited": 2, "symlink" if link == "symlink" else "copy": 2}


def test_source_without_write_permission(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command
) -> None:
    for path in [*base.iterdir(), base]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = tree_state(base)
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    assert tree_state(base) == before
    assert mote_verify(tmp_path / "out", "--base", base, "--full").code == 0
    base.chmod(0o755)
    # The variant's own files can be edited and removed whatever the base allows.
    assert os.access(tmp_path / "out" / "config.json", os.W_OK)
    shutil.rmtree(tmp_path / "out")


def test_output_parent_without_write_permission(base: Path, refusal: Path, tmp_path: Path) -> None:
    """For those whom permissions bind: an unprivileged user of a namespace, where there can be one, else this user."""
    (tmp_path / "closed").mkdir(mode=0o555)
    command = [*REWRITE, "--model", str(base), "--suppress", str(refusal), "-o", str(tmp_path / "closed" / "out")]
    if os.geteuid() == 0:
        drop = [
            "setpriv",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--no-new-privs",
            "--securebits=+noroot,+noroot_locked",
        ]
        if shutil.which("setpriv") is None:
            pytest.skip("running as root, whom permissions do not bind, and setpriv (util-linux) is not installed")
        (tmp_path / "closed").chmod(0o555)
        command = [*drop, *command]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert completed.returncode == 1
    assert f"{tmp_path / 'closed'}: cannot be written (Permission denied)" in sentence_of(completed.stderr)
    assert not list((tmp_path / "closed").iterdir())


def test_second_run_into_the_same_output_is_refused(base: Path, tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", base) as first:
        (first.partial / "work").write_text("first's")
        with pytest.raises(OutputError, match="another run is writing it now"), OutputFolder(tmp_path / "out", base):
            raise AssertionError("the second run got in")
        assert (first.partial / "work").exists()
        first.commit()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["work"]


def test_run_that_comes_too_late_leaves_nothing(base: Path, tmp_path: Path) -> None:
    """A run that checked the name before another took it finds out when it has the lock, and cleans up after itself."""
    late = OutputFolder(tmp_path / "out", base)
    with OutputFolder(tmp_path / "out", base) as first:
        (first.partial / "work").write_text("first's")
        first.commit()
    with pytest.raises(OutputError, match="exists"), late:
        raise AssertionError("the second run got in")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny"]


def test_first_run_does_not_remove_the_next_run_s_sibling(base: Path, tmp_path: Path) -> None:
    """After its commit a run has nothing to clean up: what stands under the sibling's name then is another run's."""
    out = tmp_path / "out"
    with OutputFolder(out, base) as first:
        write_json(first.partial / "config.json", {"mote": {}})
        first.commit()
        with OutputFolder(out, base, overwrite=True) as second:
            write_json(second.partial / "config.json", {"mote": {"second": True}})
            first.__exit__(None, None, None)
            assert (second.partial / "config.json").exists()
            second.commit()
    assert json.loads((out / "config.json").read_text()) == {"mote": {"second": True}}
    assert not sibling(out).exists()


def test_leaving_by_an_exception_leaves_nothing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path / "out", base) as output:
        (output.partial / "deep").mkdir()
        (output.partial / "deep" / "file").write_text("x")
        raise KeyboardInterrupt
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


def test_what_a_killed_run_left_is_cleared(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    left = sibling(tmp_path / "out")
    (left / "folder").mkdir(parents=True)
    (left / "folder" / "file").write_text("stale")
    (left / "stale.safetensors").hardlink_to(next(base.glob("*.safetensors")))
    (left / "link").symlink_to(base)
    before = tree_state(base)
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    assert tree_state(base) == before and not left.exists()
    assert not (tmp_path / "out" / "stale.safetensors").exists() and not (tmp_path / "out" / "folder").exists()


def test_what_killed_runs_left_is_cleared_by_a_run_into_another_output(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    def leave(name: str, seconds_ago: float) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "file").write_text(name)
        os.utime(folder, (time.time() - seconds_ago,) * 2)
        return folder

    old = [leave(name, 3600) for name in (".a.mote-partial", ".mote-probe-x1", ".b.mote-old", ".c.mote-old")]
    (tmp_path / "b").mkdir()
    young, other, at_work = leave(".d.mote-partial", 1), leave(".other", 3600), leave(".e.mote-partial", 3600)
    descriptor = os.open(at_work, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").code == 0
    finally:
        os.close(descriptor)
    assert not any(folder.exists() for folder in old) and young.exists() and other.exists() and at_work.exists()
    # A kill between two renames had left this variant without its name.
    assert (tmp_path / "c" / "file").read_text() == ".c.mote-old"


@pytest.mark.skipif(bool(why_no_mounts()), reason=why_no_mounts())
@pytest.mark.parametrize("output", ["mount", "mount/out", "outer/tiny", "outer"])
def test_base_through_another_mount_is_never_written(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, output: str
) -> None:
    """The base is a variant itself, so that --overwrite would replace it."""
    first = tmp_path / "parent" / "tiny"
    first.parent.mkdir()
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", first, "--link", "copy").code == 0
    (tmp_path / "mount").mkdir()
    (tmp_path / "outer").mkdir()
    mounts = [f"mount --bind '{first}' '{tmp_path}/mount'", f"mount --bind '{first.parent}' '{tmp_path}/outer'"]
    more = write_set(tmp_path / "more.json", [(2, 2)])
    before = tree_state(first)
    arguments = ["--model", str(first), "--suppress", str(more), "-o", str(tmp_path / output), "--overwrite"]
    done = run_with_mounts(mounts, [*REWRITE, *arguments], tmp_path)
    assert "the source" in sentence_of(done.stderr) and tree_state(first) == before


def test_lock_is_the_kernel_s(base: Path, tmp_path: Path) -> None:
    """A lock held by any process on the sibling keeps others out, and ends with the process."""
    left = sibling(tmp_path / "out")
    left.mkdir()
    descriptor = os.open(left, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="another run"), OutputFolder(tmp_path / "out", base):
        raise AssertionError("got in past the lock")
    os.close(descriptor)
    with OutputFolder(tmp_path / "out", base) as output:
        assert output.partial == left


def test_two_commands_at_once(tmp_path: Path, mote_verify: Command) -> None:
    """Of several commands started together one writes the folder, and the others say why they did not."""
    base = build_checkpoint(tmp_path / "tiny", hidden=64)
    chosen = write_set(tmp_path / "refusal.json", [(layer, 3) for layer in range(1, 5)])
    before = tree_state(base)
    command = [*REWRITE, "--model", str(base), "--suppress", str(chosen), "-o", str(tmp_path / "out"), "--link", "copy"]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    outcomes = [process.communicate() + (process.returncode,) for process in started]
    assert sorted(code for _, _, code in outcomes) == [0, 1, 1, 1]
    for _, stderr, code in outcomes:
        if code:
            assert "exists" in sentence_of(stderr) or "another run is writing it now" in sentence_of(stderr)
    assert tree_state(base) == before
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "refusal.json", "out"}
    assert mote_verify(tmp_path / "out", "--base", base, "--full").code == 0


def _refuse_to_write(descriptor: int, data: bytes, offset: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
