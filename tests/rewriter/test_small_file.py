"""Text of others is read within bounds: by size, by line, and from regular files alone."""

import io
import os
from pathlib import Path

import pytest

from rewriter.errors import CheckpointError, InputError
from rewriter.small_file import lines_of, read_small


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


def test_lines_have_an_end(tmp_path: Path) -> None:
    assert list(lines_of(io.BytesIO(b"a\n\nbc"), "f", 2)) == [b"a\n", b"\n", b"bc"]
    with pytest.raises(InputError, match="f: line 2 has more than 2 bytes"):
        list(lines_of(io.BytesIO(b"a\nbcd\n"), "f", 2))
