"""Whatever byte of a variant's folder changes, mote-verify --full finds it, or names the class that it does not compare."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from commands import Command

from rewriter.edit.record import without_record
from rewriter.errors import MoteError
from rewriter.variant.verify import UNPROVABLE, verify

NUM_CHANGES = 500


def is_white_space_of_a_header(before: bytes, after: bytes) -> bool:
    """Whether two shards differ in white space of their headers only, which no reader can tell apart."""
    length = int.from_bytes(before[:8], "little")
    try:
        return before[:8] == after[:8] and json.loads(before[8 : 8 + length]) == json.loads(after[8 : 8 + length])
    except ValueError:
        return False


def is_told_not_proven(before: bytes, after: bytes) -> bool:
    """Whether two texts of a config differ in white space, or in where the record says that the edit came from, only."""
    try:
        ours, theirs = json.loads(before), json.loads(after)
    except ValueError:
        return False

    def proven(config: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in config["mote"].items() if key not in UNPROVABLE}

    return without_record(ours) == without_record(theirs) and proven(ours) == proven(theirs)


@pytest.mark.slow
def test_every_changed_byte_is_found_or_of_a_named_class(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--link", "copy").code == 0
    edited = json.loads((out / "config.json").read_text())["mote"]["changed_files"]
    not_compared = verify(out, base, full=True).not_compared
    generator = random.Random(1)
    files = sorted(path for path in out.iterdir())
    found = 0
    for _ in range(NUM_CHANGES):
        path = generator.choice(files)
        before = path.read_bytes()
        at = generator.randrange(len(before))
        after = before[:at] + bytes([before[at] ^ generator.randrange(1, 256)]) + before[at + 1 :]
        path.write_bytes(after)
        try:
            verify(out, base, full=True)
        except MoteError as error:
            assert str(error).isprintable() and len(str(error)) <= 400 + len(os.fspath(out)), str(error)
            found += 1
        else:
            told = path.name in not_compared or (path.name == "config.json" and is_told_not_proven(before, after))
            told = told or (path.name in edited and is_white_space_of_a_header(before, after))
            assert told, (path.name, at, before[at], after[at])
        path.write_bytes(before)
    assert found > NUM_CHANGES // 2
    verify(out, base, full=True)
