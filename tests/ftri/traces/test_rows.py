"""Rows that no router can have selected are refused, when they are recorded and when they are read."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from made_traces import MANIFEST, make_record

from ftri.traces.reader import TraceError, TraceReader, TraceRecord, chunk_path
from ftri.traces.rows import expert_dtype, fault_of
from ftri.traces.writer import TraceWriter, encode_chunk


def six_times(rows: np.ndarray) -> None:
    rows[3, 1] = 5


def zero_tail(rows: np.ndarray) -> None:
    rows[-2:] = 0


def zero_layer(rows: np.ndarray) -> None:
    rows[:, 0] = 0


def beyond(rows: np.ndarray) -> None:
    rows[2, 2, 3] = 16


FAULTS = {
    six_times: "expert 5 more than once in one token and layer (token 3, layer row 1",
    zero_tail: "expert 0 more than once in one token and layer",
    zero_layer: "expert 0 more than once in one token and layer (token 0, layer row 0",
    beyond: "expert 16 (token 2, layer row 2), expected ids below 16",
}


def spoiled(spoil) -> TraceRecord:
    record = make_record(1)
    record.experts = record.experts.copy()
    spoil(record.experts)
    return record


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_a_failed_capture_is_not_recorded(tmp_path: Path, spoil) -> None:
    with TraceWriter(tmp_path / "t", MANIFEST) as writer:
        writer.append(make_record(0))
        with pytest.raises(TraceError, match="moe_backend") as caught:
            writer.append(make_record(2), spoiled(spoil))
        assert FAULTS[spoil] in str(caught.value)
    # Neither it nor what came along with it.
    assert [record.prompt_id for record in TraceReader(tmp_path / "t")] == ["p0000"]


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_a_recorded_failure_is_not_read(tmp_path: Path, spoil) -> None:
    folder = tmp_path / "t"
    with TraceWriter(folder, MANIFEST) as writer:
        writer.append(make_record(1))
    rows = spoiled(spoil).experts
    chunk_path(folder, 0).write_bytes(encode_chunk(rows, compress=False))
    entry = json.loads((folder / "index.jsonl").read_text())
    del entry["line_crc32"]
    (folder / "index.jsonl").write_text(json.dumps(entry | {"crc32": zlib.crc32(rows.tobytes())}) + "\n")
    with pytest.raises(TraceError, match="moe_backend") as caught:
        list(TraceReader(folder))
    assert FAULTS[spoil] in str(caught.value)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    record = make_record(1)
    record.experts = record.experts[:-1]
    with TraceWriter(tmp_path / "t", MANIFEST) as writer, pytest.raises(TraceError, match="rows of shape"):
        writer.append(record)


def test_one_expert_a_token_may_be_expert_0_but_not_in_every_layer() -> None:
    rows = np.random.default_rng(0).integers(1, 16, (9, 24, 1)).astype(np.uint8)
    rows[3, :5] = 0
    assert fault_of(rows, 9, (24, 1), 16) is None
    rows[7:] = 0
    assert fault_of(rows, 9, (24, 1), 16) == "nothing but expert 0 in 2 of 9 tokens, as in rows that were never written"


def test_sets_that_are_not_ascending_are_no_fault() -> None:
    rows = np.array([[[3, 1, 2, 0]]], np.uint8)
    assert fault_of(rows, 1, (1, 4), 16) is None


def test_ids_of_zero_computation_experts_do_not_wrap(tmp_path: Path) -> None:
    """LongCat-Flash's small sibling: 256 experts and 128 choices behind them, so ids up to 383."""
    assert expert_dtype(256) == np.uint8 and expert_dtype(257) == np.uint16
    record = make_record(0, num_experts=384)
    record.experts[..., -1] = 383
    manifest = MANIFEST | {"num_experts": 256, "num_other_choices": 128}
    with TraceWriter(tmp_path / "t", manifest) as writer:
        writer.append(record)
    read = next(iter(TraceReader(tmp_path / "t")))
    np.testing.assert_array_equal(read.experts, record.experts)
    with TraceWriter(tmp_path / "u", MANIFEST | {"num_experts": 256}) as writer, pytest.raises(TraceError, match="383"):
        writer.append(record)
