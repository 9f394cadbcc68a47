"""Copying: holes stay holes, odd offsets are no matter, and whatever the kernel cannot do is done another way."""

import errno
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    INDEX,
    bias_name,
    build_checkpoint,
    read_header,
    rewrite_header,
    shard_name,
    shard_of,
    tree_state,
    write_set,
)
from commands import Command
from hypothesis import given, settings
from hypothesis import strategies as st

from rewriter import rewrite
from rewriter.checkpoint.edited_json import HEADER_GROWTH_BYTES, mark_header, unmarked
from rewriter.checkpoint.reader import Checkpoint
from rewriter.variant import copying, write
from rewriter.variant.copying import copy_range, data_ranges
from rewriter.variant.shared_blocks import Extent, _matching
from rewriter.variant.verify import subtract

MIB = 1 << 20


def ignore(count: int) -> None:
    """A progress report that nobody watches."""


def make_sparse(path: Path, size: int, pieces: dict[int, bytes]) -> None:
    """A file of holes with data at some places."""
    with path.open("wb") as opened:
        opened.truncate(size)
        for offset, data in pieces.items():
            opened.seek(offset)
            opened.write(data)


@pytest.mark.parametrize("source_offset", [0, 1, 4096, 12345])
@pytest.mark.parametrize("target_offset", [0, 7, 4096, 8192 + 3])
def test_holes_stay_holes(tmp_path: Path, source_offset: int, target_offset: int) -> None:
    size = 64 * MIB
    make_sparse(tmp_path / "a", size, {5 * MIB + 3: b"x" * 10_000, 40 * MIB: b"y" * 5, size - 1: b"z"})
    done: list[int] = []
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("xb") as target:
        copy_range(source.fileno(), target.fileno(), source_offset, target_offset, size - source_offset, done.append)
    assert (tmp_path / "b").read_bytes()[target_offset:] == (tmp_path / "a").read_bytes()[source_offset:]
    assert (tmp_path / "b").stat().st_blocks * 512 < MIB
    assert sum(done) == size - source_offset


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 5000)), max_size=5),
    st.integers(0, 5000),
    st.integers(0, 5000),
    st.sampled_from(["kernel", "buffer"]),
)
def test_any_range_is_copied(
    tmp_path_factory: pytest.TempPathFactory, pieces: Any, start: int, offset: int, how: str
) -> None:
    folder, rng = tmp_path_factory.mktemp("range"), random.Random(0)
    make_sparse(folder / "a", 70 * 4096, {place * 4096: rng.randbytes(size) for place, size in pieces})
    size = 70 * 4096 - start
    original = os.copy_file_range
    with pytest.MonkeyPatch.context() as patched:
        if how == "buffer":
            patched.setattr(os, "copy_file_range", lambda *_: 0)
        else:  # the kernel may copy less than it is asked for
            patched.setattr(os, "copy_file_range", lambda a, b, n, c, d: original(a, b, max(1, n // 2), c, d))
        with (folder / "a").open("rb") as source, (folder / "b").open("xb") as target:
            copy_range(source.fileno(), target.fileno(), start, offset, size, ignore)
    assert (folder / "b").read_bytes()[offset:] == (folder / "a").read_bytes()[start:]


@pytest.mark.parametrize("code", sorted(copying.CANNOT_COPY_RANGE))
def test_kernel_that_cannot_copy_ranges(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command,
    monkeypatch: pytest.MonkeyPatch, code: int,
) -> None:  # fmt: skip
    def refuse(*arguments: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--link", "copy").code == 0
    assert mote_verify(out, "--base", base, "--full").code == 0


@pytest.mark.parametrize("code", sorted(copying.CANNOT_HARDLINK))
def test_filesystem_that_cannot_hardlink(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """`protected_hardlinks` gives EPERM to those who do not own a file; auto copies then, and an explicit wish is refused."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    monkeypatch.setattr(copying, "FICLONERANGE", 0)  # no filesystem knows this request
    outcome = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out", "--json")
    assert json.loads(outcome.stdout)["shards"] == {"copy": 2, "edited": 2}
    sentence = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "no", "--link", "hardlink").error
    assert "cannot hold a hard link" in sentence and "use --link auto" in sentence


def test_reflink_asked_for_where_there_is_none(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "FICLONERANGE", 0)
    for arguments in ([], ["--dry-run"]):
        outcome = mote_rewrite(
            "--model", base, "--suppress", refusal, "-o", tmp_path / "out", "--link", "reflink", *arguments
        )
        assert "cannot share blocks" in outcome.error and "use --link auto" in outcome.error
    assert not (tmp_path / "out").exists()


def test_source_that_shrinks_while_it_is_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("xb") as target:
        with pytest.raises(OSError, match="ended while it was copied") as caught:
            copying._copy_through_buffer(source.fileno(), target.fileno(), 0, 0, 200, ignore)
        assert caught.value.errno == errno.EIO


def test_base_that_changes_between_plan_and_copy(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another download replaces a shard meanwhile: what would be patched is no longer what was planned on."""
    original = rewrite.write_variant

    def late(plan: Any, *arguments: Any, **keywords: Any) -> Any:
        shard = shard_of(base, bias_name(1))
        document, body = read_header(shard)
        data = bytearray(shard.read_bytes())
        data[body + document[bias_name(1)]["data_offsets"][0]] ^= 1
        shard.write_bytes(data)
        return original(plan, *arguments, **keywords)

    monkeypatch.setattr(rewrite, "write_variant", late)
    sentence = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").error
    assert f"{bias_name(1)} changed since it was planned on" in sentence and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [shard_name(0), "tokenizer.json", INDEX, "config.json"])
def test_base_that_changes_while_it_is_copied(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A variant of two states of the base would be torn, and nobody would see it."""
    original = write._write_companions

    def late(*arguments: Any) -> None:
        with (base / name).open("r+b") as opened:
            opened.seek(-1, os.SEEK_END)
            opened.write(b"}")
        original(*arguments)

    monkeypatch.setattr(write, "_write_companions", late)
    sentence = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out", "--link", "copy").error
    assert f"{base / name}: changed while it was copied" in sentence and not (tmp_path / "out").exists()


def test_base_that_is_being_written(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rewriter.variant.base_state.SETTLING_SECONDS", 5.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    os.utime(base / shard_name(0))
    assert "is being written" in mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").error


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:20]])
def test_unedited_shard_that_is_not_whole(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command, mote_verify: Command, change: Any
) -> None:
    """Copied or linked, it is looked at; also by a plain mote-verify, for which the base's own file is equal to itself."""
    shard = next(path for number in range(4) if (path := base / shard_name(number)) != shard_of(base, bias_name(1)))
    shard = shard if shard != shard_of(base, bias_name(3)) else base / shard_name(3)
    whole = shard.read_bytes()
    shard.write_bytes(change(whole))
    assert f"{shard}: " in mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out").error
    shard.write_bytes(whole)
    outcome = mote_rewrite("--model", base, "--suppress", refusal, "-o", tmp_path / "out", "--link", "hardlink")
    assert outcome.code == 0 and shard.samefile(tmp_path / "out" / shard.name)
    shard.write_bytes(change(whole))
    assert f"{shard.name}: " in mote_verify(tmp_path / "out", "--base", base).error


def test_interrupt_does_not_wait_for_whole_shards(
    refusal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = build_checkpoint(tmp_path / "large", hidden=256)
    monkeypatch.setattr(copying, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(copying, "_clone_range", lambda *arguments: False)
    request = rewrite.RewriteRequest(suppress=str(refusal), model=str(base), output=tmp_path / "out")
    prepared = rewrite.prepare(request, say=lambda message: None)
    reports = []

    @contextmanager
    def progress(total: int) -> Iterator[Any]:
        def report(count: int) -> None:
            reports.append(count)
            if len(reports) == 3:
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.02)

        yield report

    # A shell that starts the tests in the background has SIGINT ignored, which a process inherits.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            rewrite.execute(prepared, progress=progress)
    finally:
        signal.signal(signal.SIGINT, before)
    num_chunks = sum(prepared.base.joinpath(shard).stat().st_size for shard in prepared.plan.changed_shards) // 4096
    assert num_chunks > 100 and len(reports) < 20 and not (tmp_path / "out").exists()


def test_headers_are_read_by_several_threads(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rewriter.checkpoint.reader.NUM_HEADERS_KEPT", 1)
    checkpoint = Checkpoint.open(base)

    class Slow(dict[str, Any]):
        """Another thread gets its turn between what is kept and what is given."""

        def __setitem__(self, shard: str, header: Any) -> None:
            super().__setitem__(shard, header)
            time.sleep(0.001)

    object.__setattr__(checkpoint, "_headers", Slow())
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda number: checkpoint.header(shard_name(number % 4)).shard, range(100)))
    assert found == [shard_name(number % 4) for number in range(100)]


def test_sparse_model_stays_sparse(tmp_path: Path, mote_rewrite: Command, mote_verify: Command) -> None:
    """As the replica of DeepSeek-R1: shards of gigabytes that are all holes but for the biases cost kilobytes and no time."""
    base = build_checkpoint(tmp_path / "sparse", hidden=8)
    size_bytes = 4 << 30
    for number in range(4):
        path = base / shard_name(number)

        def append_hole(document: dict[str, Any]) -> dict[str, Any]:
            end = max(line["data_offsets"][1] for key, line in document.items() if key != "__metadata__")
            hole = {"dtype": "F8_E4M3", "shape": [size_bytes], "data_offsets": [end, end + size_bytes]}
            return document | {"hole": hole}

        rewrite_header(path, append_hole)
        with path.open("r+b") as opened:
            opened.truncate(path.stat().st_size + size_bytes)
    chosen = write_set(tmp_path / "refusal.json", [(layer, 3) for layer in range(1, 5)])
    before = {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in base.iterdir()}
    out, started = tmp_path / "out", time.monotonic()
    outcome = mote_rewrite("--model", base, "--suppress", chosen, "-o", out, "--link", "copy", "--json")
    assert outcome.code == 0, outcome.stderr
    assert mote_verify(out, "--base", base).code == 0
    assert time.monotonic() - started < 60  # 32 GiB read or written would take minutes
    apparent = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    taken = sum(path.stat().st_blocks * 512 for path in out.glob("*.safetensors"))
    assert apparent > 4 * size_bytes and taken < MIB
    assert json.loads(outcome.stdout)["bytes_copied"] < MIB
    assert {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in base.iterdir()} == before


@pytest.mark.parametrize("length", [10, 4095, 4096, 100_003])
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "np", "note": "x" * 5000}])
def test_marked_header_grows_by_whole_blocks(length: int, metadata: dict[str, str] | None) -> None:
    """By one block mostly, so that the body can share its blocks with the base's; by more where the mark needs it."""
    document: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    document["ü" * 1000] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    text = mark_header(document, length, "f" * 64)
    growth = len(text) - length
    assert growth > 0 and growth % HEADER_GROWTH_BYTES == 0
    assert len(text.rstrip(b" ")) > length + growth - HEADER_GROWTH_BYTES or growth == HEADER_GROWTH_BYTES
    marked = json.loads(text)
    assert marked["__metadata__"] == {"format": "pt"} | (metadata or {}) | {"mote": "f" * 64}
    assert unmarked(marked) == unmarked(document)
    assert text.startswith(b"{")


def test_variants_of_one_base_have_different_headers(base: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    """vLLM's weight-cache daemon keys on names and headers alone."""
    headers = set()
    for expert in (3, 4):
        chosen = write_set(tmp_path / f"set-{expert}.json", [(1, expert)])
        assert mote_rewrite("--model", base, "--suppress", chosen, "-o", tmp_path / str(expert)).code == 0
        headers.add(json.dumps(read_header(shard_of(tmp_path / str(expert), bias_name(1)))[0]))
    headers.add(json.dumps(read_header(shard_of(base, bias_name(1)))[0]))
    assert len(headers) == 3


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(sorted).map(tuple), max_size=6))
def test_subtract_against_sets(parts: Any) -> None:
    left = {place for begin, end in subtract((5, 25), parts) for place in range(begin, end)}
    assert left == set(range(5, 25)) - {place for begin, end in parts for place in range(begin, end)}


@st.composite
def extent_lists(draw: st.DrawFn) -> list[Extent]:
    """Extents as a file has them: ascending, not overlapping."""
    made, position = [], 0
    for _ in range(draw(st.integers(0, 5))):
        position += draw(st.integers(0, 3))
        length = draw(st.integers(1, 4))
        made.append(Extent(position, draw(st.integers(0, 12)), length))
        position += length
    return made


@settings(max_examples=200, deadline=None)
@given(extent_lists(), extent_lists(), st.integers(0, 4))
def test_shared_extents_against_sets(ours: list[Extent], theirs: list[Extent], shift: int) -> None:
    """A byte counts as shared exactly if both files hold it at the same place on disk."""

    def places(extents: list[Extent]) -> dict[int, int]:
        return {e.logical + n: e.physical + n for e in extents for n in range(e.length)}

    mine, others = places(ours), places(theirs)
    wanted = {at for at, physical in mine.items() if others.get(at + shift) == physical}
    assert {at for begin, end in _matching(ours, theirs, shift) for at in range(begin, end)} == wanted


def test_data_ranges_of_a_file_without_holes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 10_000)
    with (tmp_path / "a").open("rb") as opened:
        assert list(data_ranges(opened.fileno(), 5, 9_999)) == [(5, 9_999)]


def test_symlink_mode_points_at_the_base(base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command) -> None:
    before, out = tree_state(base), tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--link", "symlink").code == 0
    linked = [path for path in out.iterdir() if path.is_symlink()]
    assert len(linked) == 2 and all(path.resolve().parent == base for path in linked)
    assert tree_state(base) == before
