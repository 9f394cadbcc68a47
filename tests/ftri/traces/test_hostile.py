"""What a trace folder can be that nobody recorded: each ends in a value or one sentence, soon and in little memory."""

import json
import os
import resource
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_traces import MANIFEST, make_record
from safetensors.numpy import save

from ftri.traces.reader import TraceError, TraceReader, chunk_path
from ftri.traces.writer import TraceWriter

ATTACKS = (
    Path(os.environ.get("MOTE_SHARED", Path(__file__).resolve().parents[4] / "shared")) / "attacks" / "trace-folder"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with TraceWriter(tmp_path / "t", MANIFEST) as writer:
        writer.append(*(make_record(number) for number in range(4)))
    return tmp_path / "t"


def sentence_of(folder: Path) -> str:
    with pytest.raises(TraceError) as caught:
        list(TraceReader(folder))
    sentence = str(caught.value)
    assert len(sentence.replace(str(folder), "")) <= 400 and sentence.isprintable(), sentence
    return sentence


def change_manifest(folder: Path, **changes: Any) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_line(folder: Path, number: int, **changes: Any) -> None:
    """Change an index line as one who does not know of checksums would have written it."""
    path = folder / "index.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        del entry["line_crc32"]
    entries[number] |= changes
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"moe_layers": 3}, "moe_layers is 3"),
        ({"moe_layers": [2, 1, 3]}, "expected each once"),
        ({"moe_layers": []}, "moe_layers is []"),
        ({"num_experts": "16"}, 'num_experts is "16"'),
        ({"num_experts": 1e400}, "num_experts is Infinity"),
        ({"num_experts": 1 << 45}, "num_experts is 35184372088832"),
        ({"top_k": 17}, "top_k is 17, expected at most the 16"),
        ({"moe_layers": list(range(5000)), "num_experts": 60000}, "5000 layers of 60000 experts"),
        ({"model": ["x"]}, "model is"),
        ({"schema": "x" * 9000}, "has schema 'xxx"),
    ],
)
def test_a_manifest_of_other_types(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    change_manifest(folder, **changes)
    assert sentence in sentence_of(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt_token_ids": [-1] * 5}, "prompt_token_ids.0 is -1"),
        ({"completion_token_ids": [1 << 40]}, "completion_token_ids.0 is 1099511627776"),
        ({"chunk": "../../x"}, 'chunk is "../../x"'),
        ({"chunk": -1}, "chunk is -1"),
        ({"chunk": "0"}, 'chunk is "0"'),
        ({"start": 1 << 45}, "start is 35184372088832"),
        ({"rows": 10**9}, "rows is 1000000000, expected"),
        ({"factors": {"place": 3}}, "factors.place is 3"),
        ({"text": None}, "text is null"),
        ({"extra": 1}, "extra is 1"),
        ({"prompt_id": "p0000", "sample": 0}, "repeats sample 0 of prompt 'p0000'"),
    ],
)
def test_an_index_line_of_other_types(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    change_line(folder, 1, **changes)
    assert sentence in sentence_of(folder)


def test_a_chunk_that_unpacks_to_gigabytes_is_not_unpacked(folder: Path) -> None:
    chunk, unpacked = chunk_path(folder, 0), 1 << 31
    packer, block = zlib.compressobj(1), bytes(1 << 24)
    # After a full flush blocks know nothing of each other, so that one can be repeated.
    first, again = (packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    packed = first + again * (unpacked // len(block) - 1)
    shape = {"encoding": "zlib", "shape": json.dumps([unpacked // 12, 3, 4]), "dtype": "|u1"}
    chunk.write_bytes(save({"experts_zlib": np.frombuffer(packed, np.uint8)}, metadata=shape))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "does not unpack to the" in sentence_of(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_chunk_of_2_to_the_45_tokens(folder: Path) -> None:
    rows = TraceReader(folder)
    header = {"experts": {"dtype": "U8", "shape": [1 << 45, 3, 4], "data_offsets": [0, 12 << 45]}}
    text = json.dumps(header).encode()
    chunk_path(folder, 0).write_bytes(len(text).to_bytes(8, "little") + text + b"x")
    assert len(rows) == 4
    assert "experts.shape.0 is 35184372088832" in sentence_of(folder)


@pytest.mark.parametrize("name", ["manifest.json", "index.jsonl", "chunk-00000.safetensors"])
def test_pipes_are_not_waited_for(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert sentence_of(folder)
    with pytest.raises(TraceError):
        TraceWriter(folder, MANIFEST | {"top_k": 3})


def test_a_changed_a_cut_and_a_removed_line_are_noticed(folder: Path) -> None:
    index = folder / "index.jsonl"
    lines = index.read_bytes().splitlines(keepends=True)
    index.write_bytes(b"".join(lines).replace(b"What happened 1?", b"What happened 7?"))
    assert "line 2 or one before it was changed" in sentence_of(folder)
    index.write_bytes(b"".join(lines[:1] + lines[2:]))
    assert "index.jsonl" in sentence_of(folder)
    # The last one is missed by the chunk, which holds its rows.
    index.write_bytes(b"".join(lines[:-1]))
    assert "chunk-00000.safetensors" in sentence_of(folder)
    index.write_bytes(b"".join(lines)[:-5])
    assert "chunk-00000.safetensors" in sentence_of(folder)
    index.write_bytes(b"".join(lines))
    assert len(list(TraceReader(folder))) == 4


def test_every_changed_byte_of_an_index_is_noticed(folder: Path) -> None:
    index = folder / "index.jsonl"
    whole = index.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(whole) - 1, 200).tolist():
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(TraceError):
            list(TraceReader(folder))


def test_traces_from_before_checksums_are_read_and_continued(folder: Path) -> None:
    records = list(TraceReader(folder))
    change_line(folder, 0)
    assert [record.digest() for record in TraceReader(folder)] == [record.digest() for record in records]
    with TraceWriter(folder, MANIFEST) as writer:
        writer.append(make_record(4))
    assert len(list(TraceReader(folder))) == 5
    # From then on the old lines are held to it as well.
    index = folder / "index.jsonl"
    index.write_bytes(index.read_bytes().replace(b"What happened 1?", b"What happened 7?"))
    assert "line 5 or one before it was changed" in sentence_of(folder)


def test_shared_attacks_end_in_one_sentence_each(folder: Path, tmp_path: Path) -> None:
    if not ATTACKS.is_dir():
        pytest.skip("the shared attacks are not here")
    for number, attack in enumerate(sorted(ATTACKS.iterdir())):
        document = json.loads(attack.read_bytes())
        target = document["target"]
        copy = tmp_path / f"a{number}"
        shutil.copytree(folder, copy)
        encoding = "latin-1" if target.endswith(".safetensors") else "utf-8"
        (copy / target).write_bytes(document[target].encode(encoding, "surrogatepass"))
        if target == "chunk-00001.safetensors":
            (copy / target).rename(chunk_path(copy, 0))
        sentence_of(copy)
