"""Trace folders: what is appended stays, whatever happens to the process, and damage is named."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_traces import MANIFEST, make_record

import ftri.traces.writer as writer_module
from ftri.traces.merge import merge_traces
from ftri.traces.reader import TraceError, TraceReader, TraceRecord, chunk_path, part_path
from ftri.traces.writer import TraceWriter
from rewriter.errors import InputError, OutputError


def assert_equal(left: TraceRecord, right: TraceRecord) -> None:
    assert left.metadata() == right.metadata()
    assert left.experts.dtype == right.experts.dtype
    np.testing.assert_array_equal(left.experts, right.experts)


@pytest.mark.parametrize("compress", [True, False])
def test_what_is_written_is_read_across_chunks(tmp_path: Path, compress: bool) -> None:
    records = [make_record(number, sample) for number in range(20) for sample in range(2)]
    with TraceWriter(tmp_path / "t", MANIFEST, chunk_size_bytes=2000, compress=compress) as writer:
        for record in records:
            writer.append(record)
        # A reader may look while the recorder is still at it.
        for read, record in zip(TraceReader(tmp_path / "t"), records, strict=True):
            assert_equal(read, record)
    reader = TraceReader(tmp_path / "t")
    assert len(reader) == 40
    assert len(list((tmp_path / "t").glob("chunk-*.safetensors"))) > 5
    assert not list((tmp_path / "t").glob("*.part"))
    for read, record in zip(reader, records, strict=True):
        assert_equal(read, record)
    for read, record in zip(reader.metadata(), records, strict=True):
        assert read.metadata() == record.metadata()
        assert read.experts.size == 0


def test_more_than_256_experts_take_two_bytes(tmp_path: Path) -> None:
    record = make_record(0, num_experts=384)
    with TraceWriter(tmp_path / "t", MANIFEST | {"num_experts": 384}) as writer:
        writer.append(record)
    assert_equal(next(iter(TraceReader(tmp_path / "t"))), record)
    assert record.experts.dtype == np.uint16


def test_a_chunk_is_a_plain_safetensors_file_unless_compression_pays(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    noise = make_record(0, num_experts=256)
    with TraceWriter(tmp_path / "noise", MANIFEST | {"num_experts": 256}) as writer:
        writer.append(noise)
    np.testing.assert_array_equal(load_file(chunk_path(tmp_path / "noise", 0))["experts"], noise.experts)

    calm = make_record(0)
    calm.experts = np.broadcast_to(np.arange(4, dtype=np.uint8), calm.experts.shape).copy()
    with TraceWriter(tmp_path / "calm", MANIFEST) as writer:
        writer.append(calm)
    assert list(load_file(chunk_path(tmp_path / "calm", 0))) == ["experts_zlib"]
    assert chunk_path(tmp_path / "calm", 0).stat().st_size < calm.experts.nbytes
    assert_equal(next(iter(TraceReader(tmp_path / "calm"))), calm)


def test_size_is_within_a_tenth_of_the_raw_ids_for_r1_shapes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    raw_bytes = 0
    with TraceWriter(
        tmp_path / "t", MANIFEST | {"moe_layers": list(range(3, 61)), "num_experts": 256, "top_k": 8}
    ) as w:
        for number in range(20):
            record = make_record(number)
            record.completion_token_ids = generator.integers(0, 129280, 400).tolist()
            record.text = "x" * 1600
            # Eight different ids of 256, ascending, in no other order: nothing to gain for a compressor.
            scores = generator.random((record.num_rows, 58, 256))
            record.experts = np.sort(np.argpartition(scores, 8, axis=-1)[..., :8], axis=-1).astype(np.uint8)
            raw_bytes += record.experts.nbytes
            w.append(record)
    size_bytes = sum(path.stat().st_size for path in (tmp_path / "t").iterdir())
    assert size_bytes <= 1.1 * raw_bytes


def test_a_half_written_folder_is_continued_from_its_last_whole_response(tmp_path: Path) -> None:
    records = [make_record(number) for number in range(10)]
    with TraceWriter(tmp_path / "whole", MANIFEST) as writer:
        writer.append(*records)
    folder = tmp_path / "t"
    writer = TraceWriter(folder, MANIFEST, chunk_size_bytes=2000)
    for record in records[:6]:
        writer.append(record)
    # What a killed process leaves: rows without an index line, and half a line.
    writer._lock.close()
    with part_path(folder, writer._chunk_number).open("ab") as file:
        file.write(b"\x01" * 77)
    with (folder / "index.jsonl").open("ab") as file:
        file.write(b'{"prompt_id": "p0006", "sam')
    assert len(list(TraceReader(folder))) == 6
    with TraceWriter(folder, MANIFEST, chunk_size_bytes=2000) as writer:
        assert writer.completed == {record.key for record in records[:6]}
        for record in reversed(records[6:]):
            writer.append(record)
    assert TraceReader(folder).content_digest() == TraceReader(tmp_path / "whole").content_digest()


@pytest.mark.parametrize("left_behind", ["part beside its chunk", "temporary chunk", "temporary manifest"])
def test_a_kill_while_a_chunk_is_finished_loses_nothing(tmp_path: Path, left_behind: str) -> None:
    folder = tmp_path / "t"
    records = [make_record(number) for number in range(3)]
    if left_behind == "temporary manifest":
        folder.mkdir()
        (folder / ".manifest.json.tmp").write_text("{")
    else:
        with TraceWriter(folder, MANIFEST) as writer:
            writer.append(*records[:2])
        rows = b"".join(record.experts.tobytes() for record in records[:2])
        part_path(folder, 0).write_bytes(rows)
        if left_behind == "temporary chunk":
            chunk_path(folder, 0).rename(folder / ".chunk-00000.safetensors.tmp")
    with TraceWriter(folder, MANIFEST) as writer:
        for record in records:
            if record.key not in writer.completed:
                writer.append(record)
    read = sorted(TraceReader(folder), key=lambda record: record.prompt_id)
    for left, right in zip(read, records, strict=True):
        assert_equal(left, right)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from made_traces import MANIFEST, make_record
from ftri.traces.writer import TraceWriter
with TraceWriter(Path(sys.argv[1]), MANIFEST, chunk_size_bytes=3000) as writer:
    print("open", flush=True)
    for number in range(400):
        record = make_record(number)
        if record.key not in writer.completed:
            writer.append(record)
            print(number, flush=True)
"""


def test_kill_9_at_any_moment_and_run_again(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "whole", MANIFEST) as writer:
        writer.append(*(make_record(number) for number in range(400)))
    expected = TraceReader(tmp_path / "whole").content_digest()
    folder = tmp_path / "t"
    command = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parents[1])]
    reported: set[int] = set()
    num_kills = 0
    for delay_seconds in (0.001, 0.01, 0.05, 0.1, 0.2, None):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
        assert process.stdout is not None
        process.stdout.readline()
        if delay_seconds is not None:
            time.sleep(delay_seconds)
            process.send_signal(signal.SIGKILL)
            num_kills += 1
        reported |= {int(line) for line in process.stdout.read().split("\n")[:-1]}
        process.wait()
        # Whatever was reported as written is there after the kill.
        assert {f"p{number:04d}" for number in reported} <= {r.prompt_id for r in TraceReader(folder)}
        if process.returncode == 0:
            break
    assert process.returncode == 0 and num_kills >= 3
    assert TraceReader(folder).content_digest() == expected


def test_two_writers_at_once_are_refused(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", MANIFEST), pytest.raises(TraceError, match=rf"another process \({os.getpid()}\)"):
        TraceWriter(tmp_path / "t", MANIFEST)
    TraceWriter(tmp_path / "t", MANIFEST).close()


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    TraceWriter(tmp_path / "t", MANIFEST).close()
    changed = MANIFEST | {"sampling": {"temperature": 0.7, "max_tokens": 8}, "versions": {"vllm": "0.33"}}
    with pytest.raises(
        TraceError,
        match=r"other settings: sampling.temperature is 0.0 there, 0.7 now; give those, or choose another -o$",
    ):
        TraceWriter(tmp_path / "t", changed)


def test_a_response_is_written_once(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", MANIFEST) as writer:
        writer.append(make_record(1))
        with pytest.raises(TraceError, match="already holds sample 0 of prompt 'p0001'"):
            writer.append(make_record(1))


def test_damage_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    with TraceWriter(folder, MANIFEST) as writer:
        writer.append(*(make_record(number) for number in range(5)))
    chunk = chunk_path(folder, 0)
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-10])
    with pytest.raises(TraceError, match=f"truncated: {len(whole) - 10} bytes found, {len(whole)} expected"):
        list(TraceReader(folder))
    chunk.write_bytes(whole[:4])
    with pytest.raises(TraceError, match="truncated: 4 bytes found"):
        list(TraceReader(folder))
    chunk.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(TraceError, match=r"chunk-00000.safetensors.*(checksum|cannot be decompressed)"):
        list(TraceReader(folder))
    chunk.unlink()
    with pytest.raises(TraceError, match=r"chunk-00000.safetensors is missing"):
        list(TraceReader(folder))
    chunk.write_bytes(whole)
    index = folder / "index.jsonl"
    lines = index.read_text().splitlines()
    index.write_text("\n".join([lines[0], "nonsense", *lines[2:], ""]))
    with pytest.raises(TraceError, match=r"index.jsonl, line 2: not a trace entry"):
        list(TraceReader(folder))


def test_a_truncated_open_chunk_is_named_on_resume(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t", MANIFEST)
    writer.append(make_record(1))
    writer._lock.close()
    part_path(tmp_path / "t", 0).write_bytes(b"\x00")
    with pytest.raises(TraceError, match=r"chunk-00000.part is truncated: 1 bytes found"):
        TraceWriter(tmp_path / "t", MANIFEST)


def test_what_is_no_trace_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="is not a trace folder: it has no manifest.json"):
        TraceReader(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(TraceError, match=r"manifest.json is not JSON"):
        TraceReader(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": "mote.traces/9"}))
    with pytest.raises(TraceError, match=r"has schema 'mote.traces/9', expected 'mote.traces/1'"):
        TraceReader(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"schema": "mote.traces/1"}))
    with pytest.raises(TraceError, match=r"manifest.json lacks model, config_sha256"):
        TraceReader(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(TraceError, match="holds other files"):
        TraceWriter(tmp_path / "other", MANIFEST)
    with pytest.raises(TraceError, match=r"notes.txt is a file, expected a folder"):
        TraceWriter(tmp_path / "other" / "notes.txt", MANIFEST)


def write(folder: Path, *records: TraceRecord, **changes: Any) -> Path:
    with TraceWriter(folder, MANIFEST | changes) as writer:
        writer.append(*records)
    return folder


def test_merging_equals_recording_in_one_place(tmp_path: Path) -> None:
    records = [make_record(number) for number in range(9)]
    whole = write(tmp_path / "whole", *records)
    first = write(tmp_path / "a", *records[:5])
    second = write(tmp_path / "b", *records[4:], sampling={"temperature": 0.7, "max_tokens": 8})
    assert merge_traces([first, second], tmp_path / "sum") == 9
    merged = TraceReader(tmp_path / "sum")
    assert merged.content_digest() == TraceReader(whole).content_digest()
    assert [source["sampling"]["temperature"] for source in merged.manifest["merged_from"]] == [0.0, 0.7]
    assert "sampling" not in merged.manifest
    # Again: nothing is added twice.
    assert merge_traces([first, second], tmp_path / "sum") == 9


def test_what_does_not_belong_together_is_not_merged(tmp_path: Path) -> None:
    first = write(tmp_path / "a", make_record(1))
    other_model = write(tmp_path / "b", make_record(2), config_sha256="2" * 64)
    with pytest.raises(TraceError, match=f'has config_sha256 "{"2" * 64}", expected "{"0" * 64}" as in {first}'):
        merge_traces([first, other_model], tmp_path / "sum")
    conflict = make_record(1, seed=99)
    conflicting = write(tmp_path / "c", conflict)
    with pytest.raises(TraceError, match="different responses as sample 0 of prompt 'p0001'"):
        merge_traces([first, conflicting], tmp_path / "sum2")
    with pytest.raises(InputError, match="is one of the folders to merge"):
        merge_traces([first], first)
    with pytest.raises(InputError, match="no trace folders"):
        merge_traces([], tmp_path / "sum3")


def test_a_failure_in_the_block_is_the_one_that_is_seen_and_nothing_is_made_complete(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    with pytest.raises(ZeroDivisionError), TraceWriter(folder, MANIFEST) as writer:
        writer.append(make_record(0))
        raise ZeroDivisionError
    assert part_path(folder, 0).is_file() and not chunk_path(folder, 0).exists()
    with TraceWriter(folder, MANIFEST) as writer:
        writer.append(make_record(1))
    assert [record.prompt_id for record in TraceReader(folder)] == ["p0000", "p0001"]


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "t"
    sync_file = writer_module.sync_file

    def full(file: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = pytest.raises(OutputError, match="No space left on device.*what was recorded is kept")
    with expected as caught, TraceWriter(folder, MANIFEST) as writer:
        writer.append(make_record(0))
        monkeypatch.setattr(writer_module, "sync_file", full)
        writer.append(make_record(1))
    assert "\n" not in str(caught.value)
    assert len(list(TraceReader(folder))) == 1 and not chunk_path(folder, 0).exists()
    monkeypatch.setattr(writer_module, "sync_file", sync_file)
    with TraceWriter(folder, MANIFEST) as writer:
        assert writer.completed == {("p0000", 0)}
        writer.append(make_record(1))
    for read, number in zip(TraceReader(folder), range(2), strict=True):
        assert_equal(read, make_record(number))


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file/t: cannot be written"):
        TraceWriter(tmp_path / "file" / "t", MANIFEST)


def test_secrets_stay_out_of_the_sentence_about_other_settings(tmp_path: Path) -> None:
    token = "hf_" + "a" * 30
    with TraceWriter(tmp_path / "t", MANIFEST | {"engine_arguments": {"hf_token": token}}):
        pass
    with pytest.raises(TraceError, match="engine_arguments.hf_token is ") as caught:
        TraceWriter(tmp_path / "t", MANIFEST)
    assert token not in str(caught.value)


def test_other_weights_of_the_same_name_and_config_are_other_settings(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "t", MANIFEST | {"content_sha256": "a" * 64}) as writer:
        writer.append(make_record(0))
    with pytest.raises(TraceError, match="content_sha256 is .aaa.* there, .bbb.* now"):
        TraceWriter(tmp_path / "t", MANIFEST | {"content_sha256": "b" * 64})
    other = write(tmp_path / "u", make_record(1), content_sha256="b" * 64)
    with pytest.raises(TraceError, match="has content_sha256"):
        merge_traces([tmp_path / "t", other], tmp_path / "sum")
    # Traces from before it was kept are told by their config.
    old = write(tmp_path / "old", make_record(2))
    assert merge_traces([tmp_path / "t", old], tmp_path / "sum") == 2
