"""mote-record: what it records, that it resumes after kill -9, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import prompts, ran, reference_experts
from running import run_main

from ftri.cli.record import main
from ftri.record import MOST_WAITING, write_behind
from ftri.traces.reader import TraceReader

COUNT = 48


@pytest.fixture(scope="module")
def prompt_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [{"prompt_id": prompt.prompt_id, "prompt": prompt.text, "subject": "history"} for prompt in prompts(COUNT)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def command(model: Path, prompt_file: Path, output: Path) -> list[str]:
    options = ["--max-tokens", "12", "--temperature", "1", "--samples", "2", "--json"]
    engine = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "8"]
    return ["--model", str(model), "--prompts", str(prompt_file), "-o", str(output), *options, *engine]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    script = "from ftri.cli.record import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=clean | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.vllm
def test_kill_9_and_the_same_command_again(tiny_r1: Path, prompt_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    killed = start(command(tiny_r1, prompt_file, folder))
    index = folder / "index.jsonl"
    deadline = time.monotonic() + 600
    while not (index.exists() and index.stat().st_size) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    _, talk = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, talk
    num_saved = len(TraceReader(folder))
    assert 0 < num_saved < 2 * COUNT

    again = start(command(tiny_r1, prompt_file, folder))
    printed, talk = again.communicate()
    assert again.returncode == 0, talk
    summary = json.loads(printed)
    assert (summary["resumed_responses"], summary["responses"]) == (num_saved, 2 * COUNT - num_saved)
    assert summary["capture"] == "router_hook"
    assert summary["tokens_per_second"] > 0
    # Off a terminal the rate is said once, where enough is left for it to matter.
    assert "tokens/s; the" in talk or 2 * COUNT - num_saved < 40

    reader = TraceReader(folder)
    records = sorted(reader, key=lambda record: record.key)
    assert {record.key for record in records} == {(p.prompt_id, s) for p in prompts(COUNT) for s in range(2)}
    # Identical content: what either run wrote is what transformers gives for the tokens, whatever the batch was.
    expected = reference_experts(tiny_r1, [ran(r.prompt_token_ids, r.completion_token_ids) for r in records])
    for record, experts in zip(records, expected, strict=True):
        np.testing.assert_array_equal(record.experts, experts)
        assert record.rendered_prompt == f"<bos><user>{record.prompt}<assistant>"
        assert record.factors["subject"] == "history"
    # And an uninterrupted run's texts, tokens and experts are the same to the last byte.
    whole = start(command(tiny_r1, prompt_file, tmp_path / "whole"))
    _, talk = whole.communicate()
    assert whole.returncode == 0, talk
    assert TraceReader(tmp_path / "whole").content_digest() == reader.content_digest()
    manifest = reader.manifest
    assert manifest["sampling"] == {"max_tokens": 12, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "seed": 0}
    assert manifest["engine_arguments"]["max_model_len"] == 256
    assert manifest["versions"].keys() >= {"python", "torch"}

    # A third time: all is there, no engine is started.
    before = reader.content_digest()
    done = run_main(main, "mote-record", *command(tiny_r1, prompt_file, folder))
    assert done.returncode == 0 and json.loads(done.stdout)["responses"] == 0
    assert TraceReader(folder).content_digest() == before


def test_an_engine_does_not_wait_for_a_slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one write is under way the responses of later steps wait, up to a number, and are then written at once."""
    is_free, sizes = threading.Event(), list[int]()

    def write(writer: Any, finished: list[Any]) -> tuple[int, int]:
        sizes.append(len(finished))
        if len(sizes) == 1:
            assert is_free.wait(60)
        return len(finished), 0

    def steps() -> Iterator[list[Any]]:
        for number in range(2 * MOST_WAITING):
            if number == MOST_WAITING - 1:
                is_free.set()  # the first write ends only now: the steps so far did not wait for it
            yield [number]

    monkeypatch.setattr("ftri.record.write_step", write)
    done = [count for count, _ in write_behind(None, steps())]  # type: ignore[arg-type]
    assert sizes == done and sum(sizes) == 2 * MOST_WAITING
    assert sizes[0] == 1 and 1 < sizes[1] <= MOST_WAITING


def test_dry_run_says_what_would_be_recorded(tiny_r1: Path, tmp_path: Path) -> None:
    arguments = ["--model", tiny_r1, "--prompts", "what-happened:listed", "-o", tmp_path / "t", "--dry-run", "--json"]
    printed = run_main(main, "mote-record", *arguments)
    plan = json.loads(printed.stdout)
    assert (plan["prompts"], plan["responses"], plan["moe_layers"], plan["top_k"]) == (539, 539, "1..3", 4)
    assert not (tmp_path / "t").exists()
    assert "prompts: 539" in run_main(main, "mote-record", *arguments[:-1]).stdout


def test_options_come_from_a_file_and_the_command_line_wins(tiny_r1: Path, tmp_path: Path) -> None:
    (tmp_path / "record.toml").write_text('prompts = "language"\nmax-tokens = 3\nsamples = 2\n')
    arguments = ["--model", tiny_r1, "--config", tmp_path / "record.toml", "-o", tmp_path / "t", "--dry-run", "--json"]
    plan = json.loads(run_main(main, "mote-record", *arguments, "--samples", "1").stdout)
    assert (plan["prompts"], plan["responses"]) == (600, 600)
    assert json.loads(run_main(main, "mote-record", *arguments).stdout)["responses"] == 1200


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["--max-modle-len", "3"], "--max-modle-len is neither an option of mote-record nor an engine argument"),
        (["--max-model-len", "many"], "vLLM refuses the engine arguments '--max-model-len many'"),
        (["--worker-extension-cls", "x"], "worker_extension_cls is set by MoTE itself"),
        (["stray"], "'stray' was not expected"),
        (["--samples", "0"], "--samples is 0, expected at least 1"),
        (["--max-tokens", "0"], "--max-tokens is 0, expected at least 1"),
        (["--temperature", "-1"], "--temperature is -1.0, expected 0 or more"),
        (["--prompts", "missing.jsonl"], "no prompts named 'missing.jsonl'"),
        (["--model", "no/such/model"], "no/such/model"),
        (["--chat-template", "missing.jinja"], "missing.jinja is no file, expected a chat template"),
        (["--raw", "--chat-template", "x.jinja"], "--raw and --chat-template exclude each other"),
    ],
)
def test_mistakes_are_one_sentence(tiny_r1: Path, tmp_path: Path, changes: list[str], sentence: str) -> None:
    arguments = ["--model", tiny_r1, "--prompts", "language", "-o", tmp_path / "t", "--dry-run", *changes]
    failed = run_main(main, "mote-record", *arguments)
    assert failed.returncode == 1 and sentence in failed.stderr
    assert failed.stderr.count("error: ") == 1 and not failed.stdout


def test_a_folder_of_other_settings_or_in_use_is_refused_before_any_engine(tiny_r1: Path, tmp_path: Path) -> None:
    from ftri.record import RecordOptions, plan_recording
    from ftri.traces.writer import TraceWriter

    plan = plan_recording(RecordOptions(str(tiny_r1), "language", tmp_path / "t"))
    arguments = ["--model", tiny_r1, "--prompts", "language", "-o", tmp_path / "t"]
    with TraceWriter(tmp_path / "t", plan.manifest):
        locked = run_main(main, "mote-record", *arguments)
    assert locked.returncode == 1 and "is being written by another process" in locked.stderr
    other = run_main(main, "mote-record", *arguments, "--temperature", "0.6")
    assert other.returncode == 1
    assert "was recorded with other settings: sampling.temperature is 0.0 there, 0.6 now" in other.stderr


def test_no_secret_is_written_down(tiny_r1: Path, tmp_path: Path) -> None:
    from ftri.record import RecordOptions, plan_recording

    secrets = {
        "hf_token": "x" * 20,
        "model_loader_extra_config": {"url": "https://user:word@host/x", "api_key": "word"},
    }
    plan = plan_recording(RecordOptions(str(tiny_r1), "language", tmp_path / "t", engine_arguments=secrets))
    written = json.dumps(plan.manifest)
    assert "x" * 20 not in written and "word" not in written
    assert plan.manifest["engine_arguments"]["hf_token"] == "<secret>"


def test_other_weights_do_not_continue_a_recording(tiny_r1: Path, tmp_path: Path) -> None:
    """The same folder name and config.json; one byte of a router's weights differs."""
    import shutil

    from ftri.record import RecordOptions, plan_recording
    from ftri.traces.writer import TraceWriter

    with TraceWriter(tmp_path / "t", plan_recording(RecordOptions(str(tiny_r1), "language", tmp_path / "t")).manifest):
        pass
    other = tmp_path / tiny_r1.name
    shutil.copytree(tiny_r1, other)
    shard = sorted(other.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    changed = run_main(main, "mote-record", "--model", other, "--prompts", "language", "-o", tmp_path / "t")
    assert changed.returncode == 1 and "was recorded with other settings: content_sha256 is" in changed.stderr


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "config.json"),
        ("{", "config.json"),
        ("[" * 5000, "config.json"),
        ('{"num_hidden_layers": "x"}', "config.json"),
    ],
)
def test_a_missing_or_broken_config_is_one_sentence(
    tiny_r1: Path, tmp_path: Path, content: str | None, sentence: str
) -> None:
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(tiny_r1, broken)
    (broken / "config.json").unlink()
    if content is not None:
        (broken / "config.json").write_text(content)
    failed = run_main(main, "mote-record", "--model", broken, "--prompts", "language", "-o", tmp_path / "t")
    assert failed.returncode == 1 and failed.stderr.count("error: ") == 1 and sentence in failed.stderr.splitlines()[-1]
    assert not (tmp_path / "t").exists()


def test_an_output_that_cannot_be_written_is_one_sentence(tiny_r1: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--model", tiny_r1, "--prompts", "language", "-o", tmp_path / "file" / "t"]
    failed = run_main(main, "mote-record", *arguments)
    assert failed.returncode == 1 and "file/t: cannot be written (Not a directory)" in failed.stderr.splitlines()[-1]


def test_a_model_without_template_needs_raw(tiny_r1: Path, tmp_path: Path) -> None:
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(tiny_r1, bare)
    (bare / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    arguments = ["--model", bare, "--prompts", "language", "-o", tmp_path / "t", "--dry-run", "--json"]
    assert "has no chat template" in run_main(main, "mote-record", *arguments).stderr
    assert json.loads(run_main(main, "mote-record", *arguments, "--raw").stdout)["template_sha256"] is None
