"""Weights beside the experts of a trace folder: kept bit for bit, checked, resumed, merged; folders without them as before."""

import json
from pathlib import Path

import numpy as np
import pytest
from made_traces import MANIFEST, make_record

from ftri.traces.merge import merge_traces
from ftri.traces.reader import TraceError, TraceReader, TraceRecord, chunk_path, part_path
from ftri.traces.writer import TraceWriter, encode_weights, write_traces

WEIGHED = MANIFEST | {"weights": "float16"}


def weighed(number: int, dtype: str = "float16") -> TraceRecord:
    record = make_record(number)
    record.weights = np.random.default_rng(number).random(record.experts.shape).astype(dtype)
    return record


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_weights_come_back_bit_for_bit_across_chunks(tmp_path: Path, dtype: str) -> None:
    from safetensors.numpy import load_file

    records = [weighed(number, dtype) for number in range(20)]
    with TraceWriter(tmp_path / "t", MANIFEST | {"weights": dtype}, chunk_size_bytes=1000) as writer:
        for record in records:
            writer.append(record)
        for read, record in zip(TraceReader(tmp_path / "t"), records, strict=True):
            assert read.digest() == record.digest()
    for read, record in zip(TraceReader(tmp_path / "t"), records, strict=True):
        assert read.weights is not None and read.weights.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(read.weights, record.weights)
        np.testing.assert_array_equal(read.experts, record.experts)
    assert len(list((tmp_path / "t").glob("weights-*.safetensors"))) > 5 and not list((tmp_path / "t").glob("*.part"))
    assert list(load_file(chunk_path(tmp_path / "t", 0, "weights"))) == ["weights"]


def test_a_folder_without_weights_is_what_it_was(tmp_path: Path) -> None:
    write_traces(tmp_path / "t", MANIFEST, [weighed(0)])
    (record,) = TraceReader(tmp_path / "t")
    assert record.weights is None and "weights_crc32" not in (tmp_path / "t" / "index.jsonl").read_text()
    assert sorted(path.name for path in (tmp_path / "t").iterdir() if not path.name.startswith(".")) == [
        "chunk-00000.safetensors",
        "index.jsonl",
        "manifest.json",
    ]
    # Resuming it with weights, or the reverse, would leave a folder of which half has none.
    with pytest.raises(TraceError, match='weights is null there, "float16" now'):
        TraceWriter(tmp_path / "t", WEIGHED)


def test_a_kill_between_a_chunk_of_weights_and_its_experts_costs_nothing(tmp_path: Path) -> None:
    """The weights' chunk is there, the experts' not yet: the run that goes on adds rows, and is killed again."""
    records = [weighed(number) for number in range(3)]
    writer = TraceWriter(tmp_path / "t", WEIGHED)
    writer.append(*records[:2])
    writer.release()
    rows = np.fromfile(part_path(tmp_path / "t", 0, "weights"), np.float16).reshape(-1, *records[0].experts.shape[1:])
    chunk_path(tmp_path / "t", 0, "weights").write_bytes(encode_weights(rows))
    assert len(list(TraceReader(tmp_path / "t"))) == 2
    writer = TraceWriter(tmp_path / "t", WEIGHED)
    writer.append(records[2])
    writer.release()
    assert [read.digest() for read in TraceReader(tmp_path / "t")] == [record.digest() for record in records]


def test_a_half_written_folder_is_continued(tmp_path: Path) -> None:
    records = [weighed(number) for number in range(6)]
    write_traces(tmp_path / "whole", WEIGHED, records)
    writer = TraceWriter(tmp_path / "t", WEIGHED, chunk_size_bytes=700)
    for record in records[:3]:
        writer.append(record)
    writer._lock.close()
    for tensor in ("experts", "weights"):
        with part_path(tmp_path / "t", writer._chunk_number, tensor).open("ab") as file:
            file.write(b"\x01" * 7)
    write_traces(tmp_path / "t", WEIGHED, records[3:])
    assert TraceReader(tmp_path / "t").content_digest() == TraceReader(tmp_path / "whole").content_digest()


def test_a_kill_between_the_two_files_of_a_chunk_loses_nothing(tmp_path: Path) -> None:
    records = [weighed(number) for number in range(3)]
    write_traces(tmp_path / "t", WEIGHED, records[:2])
    for tensor in ("experts", "weights"):
        rows = b"".join(getattr(record, tensor).tobytes() for record in records[:2])
        part_path(tmp_path / "t", 0, tensor).write_bytes(rows)
    chunk_path(tmp_path / "t", 0).unlink()
    assert [one.digest() for one in TraceReader(tmp_path / "t")] == [one.digest() for one in records[:2]]
    write_traces(tmp_path / "t", WEIGHED, records[2:])
    assert [one.digest() for one in TraceReader(tmp_path / "t")] == [one.digest() for one in records]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (np.nan, "weight nan .*expected finite ones of 0 or more"),
        (-0.25, "weight -0.25 .token 1, layer row 2"),
        (np.inf, "weight inf"),
        (70000.0, "weight inf"),  # beyond float16
    ],
)
def test_weights_that_no_router_gives_are_refused(tmp_path: Path, value: float, sentence: str) -> None:
    record = weighed(1, "float32")
    assert record.weights is not None
    record.weights[1, 2, 3] = value
    with TraceWriter(tmp_path / "t", WEIGHED) as writer, pytest.raises(TraceError, match=sentence):
        writer.append(record)
    assert not len(TraceReader(tmp_path / "t"))


def test_rows_that_were_never_written_are_told_from_dropped_experts(tmp_path: Path) -> None:
    dropped, empty = weighed(1), weighed(2)
    assert dropped.weights is not None and empty.weights is not None
    dropped.weights[:, 0] = 0
    empty.weights[-2:] = 0
    with TraceWriter(tmp_path / "t", WEIGHED) as writer:
        writer.append(dropped)
        with pytest.raises(TraceError, match="nothing but weights of 0 in 2 of"):
            writer.append(empty)
        with pytest.raises(TraceError, match="keeps weights, but there are none of prompt 'p0003'"):
            writer.append(make_record(3))
        wrong = weighed(4)
        assert wrong.weights is not None
        wrong.weights = wrong.weights[:, :2]
        with pytest.raises(TraceError, match="weights of shape"):
            writer.append(wrong)
    assert [record.prompt_id for record in TraceReader(tmp_path / "t")] == ["p0001"]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "of another type"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    write_traces(tmp_path / "t", WEIGHED, [weighed(0), weighed(1)])
    path = chunk_path(tmp_path / "t", 0, "weights")
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
    if damage == "of another type":
        manifest = json.loads((tmp_path / "t" / "manifest.json").read_text())
        (tmp_path / "t" / "manifest.json").write_text(json.dumps(manifest | {"weights": "float32"}))
    path.write_bytes(content[:-1] if damage == "truncated" else content)
    if damage == "missing":
        path.unlink()
    with pytest.raises(TraceError, match=r"weights-00000\.safetensors"):
        list(TraceReader(tmp_path / "t"))


def test_merged_folders_keep_weights_alike(tmp_path: Path) -> None:
    for number in range(2):
        write_traces(tmp_path / str(number), WEIGHED, [weighed(number)])
    write_traces(tmp_path / "plain", MANIFEST, [make_record(2)])
    assert merge_traces([tmp_path / "0", tmp_path / "1"], tmp_path / "sum") == 2
    assert [one.digest() for one in TraceReader(tmp_path / "sum")] == [weighed(0).digest(), weighed(1).digest()]
    with pytest.raises(TraceError, match="plain keeps no weights, expected float16 as in"):
        merge_traces([tmp_path / "0", tmp_path / "plain"], tmp_path / "other")
