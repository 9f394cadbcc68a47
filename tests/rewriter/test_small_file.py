"""Text of others is read within bounds: by size, by line, and from regular files alone."""

import io
import os
import threading
from pathlib import Path

import pytest

from rewriter.errors import CheckpointError, InputError
from rewriter.small_file import PIPE_BYTES, lines_of, read_small, read_small_or_pipe


def test_a_file_up_to_its_size_is_read_and_a_larger_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_small(path, 5) == b"12345"
    with pytest.raises(InputError, match="a: has 5 bytes, expected at most 4"):
        read_small(path, 4)
    with path.open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="has 1,099,511,627,776 bytes"):
        read_small(path, error=CheckpointError)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no regular file"):
        read_small(tmp_path / "pipe")
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "none")


def test_what_a_shell_puts_through_a_pipe_is_read_whole_and_kept() -> None:
    """`<(command)` names a pipe that is there already and whose writer may be slow."""
    reading, writing = os.pipe()
    content = b"x" * (3 * PIPE_BYTES) + b"end"

    def write() -> None:
        with open(writing, "wb") as file:
            file.write(content)

    writer = threading.Timer(0.05, write)
    writer.start()
    try:
        assert read_small_or_pipe(f"/dev/fd/{reading}") == content
        writer.join()
        # A pipe has nothing more to give; the same command asks for a set twice.
        assert read_small_or_pipe(f"/dev/fd/{reading}") == content
    finally:
        os.close(reading)


def test_a_pipe_has_a_limit_and_one_without_a_writer_is_empty(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"12345")
    os.close(writing)
    with pytest.raises(CheckpointError, match="a pipe that holds more than 4 bytes, expected at most that"):
        read_small_or_pipe(f"/dev/fd/{reading}", 4, CheckpointError)
    os.close(reading)
    os.mkfifo(tmp_path / "pipe")
    assert read_small_or_pipe(tmp_path / "pipe") == b""
    with pytest.raises(InputError, match="is no regular file"):
        read_small_or_pipe("/dev/null")
    (tmp_path / "a").write_bytes(b"12345")
    assert read_small_or_pipe(tmp_path / "a") == b"12345"


def test_lines_have_an_end(tmp_path: Path) -> None:
    assert list(lines_of(io.BytesIO(b"a\n\nbc"), "f", 2)) == [b"a\n", b"\n", b"bc"]
    with pytest.raises(InputError, match="f: line 2 has more than 2 bytes"):
        list(lines_of(io.BytesIO(b"a\nbcd\n"), "f", 2))
