"""Five hundred single bytes of a variant changed: `mote-verify --full` finds each, or it is of a class that it names."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from checkpoints import read_header
from commands import Command

from rewriter.errors import MoteError
from rewriter.variant.verify import VerifyResult, verify

NUM_CHANGES = 500


def meaning(path: Path, not_compared: list[str]) -> Any:
    """What a file says, without what verification names as not compared: spaces of JSON, and facts that it cannot know."""
    if path.suffix == ".safetensors":
        document, body = read_header(path)
        return document, path.read_bytes()[body:]
    if path.suffix != ".json":
        return path.read_bytes()
    document = json.loads(path.read_text())
    for name in not_compared:
        key, _, of_block = name.partition(" of the ")
        if of_block and isinstance(document.get("mote"), dict):
            document["mote"].pop(key, None)
    # A key without a value is as one that is not there.
    block = document.get("mote") or {}
    return document | {"mote": {key: value for key, value in block.items() if value is not None}}


@pytest.mark.slow
def test_every_changed_byte_is_found_or_of_a_named_class(
    base: Path, refusal: Path, tmp_path: Path, mote_rewrite: Command
) -> None:
    out = tmp_path / "out"
    assert mote_rewrite("--model", base, "--suppress", refusal, "-o", out, "--link", "copy").code == 0
    known: VerifyResult = verify(out, base, full=True)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    before = {path: meaning(path, known.not_compared) for path in files}
    rng = random.Random(0)
    num_found = 0
    for _ in range(NUM_CHANGES):
        path = rng.choice(files)
        data = path.read_bytes()
        place = rng.randrange(len(data))
        changed = bytearray(data)
        changed[place] ^= rng.randrange(1, 256)
        path.write_bytes(changed)
        try:
            not_compared = verify(out, base, full=True).not_compared
        except MoteError:
            num_found += 1
        else:
            named = str(path.relative_to(out)) in not_compared
            assert named or meaning(path, [*known.not_compared, *not_compared]) == before[path], (
                f"{path.name}, byte {place}"
            )
        path.write_bytes(data)
    assert num_found > NUM_CHANGES * 0.8
