"""A file is there whole and durable or as it was: failures, full disks, two writers at once."""

import errno
import os
import threading
from pathlib import Path

import pytest

from rewriter.errors import OutputError
from rewriter.whole_file import whole_file, write_whole


def test_text_and_bytes_replace_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "拒绝\n")
    assert path.read_bytes() == "拒绝\n".encode()
    write_whole(str(path), b"\0")
    assert path.read_bytes() == b"\0" and os.listdir(tmp_path) == ["a.json"]


def test_contents_are_synced_before_they_are_named_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []
    for name in ("fsync", "rename", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *arguments, call=call, name=name: (done.append(name), call(*arguments))[1])
    write_whole(tmp_path / "a", "text")
    assert done == ["fsync", "replace", "fsync"]


def test_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, "old")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize(("number", "sentence"), [(errno.ENOSPC, "the disk is full"), (errno.EIO, "cannot be written")])
def test_what_the_system_refuses_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sentence: str
) -> None:
    path = tmp_path / "a"
    write_whole(path, "old")

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OutputError, match=sentence):
        write_whole(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a"]
    with pytest.raises(OutputError, match="cannot be written"):
        write_whole(tmp_path / "none" / "a", "new")


def test_leftover_of_a_killed_writer_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_text("half of something longer")
    write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new" and os.listdir(tmp_path) == ["a"]


def test_writers_at_once_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "a"
    texts = [letter * 200_000 for letter in "abcdefgh"]
    threads = [threading.Thread(target=write_whole, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and os.listdir(tmp_path) == ["a"]
