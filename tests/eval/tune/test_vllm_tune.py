"""mote-tune on the miniature in unmodified vLLM: killed twice, it goes on, and mote-refine by itself finds the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eval.results import Results
from ftri.prompts.sets import load_prompts
from ftri.traces.reader import TraceReader
from rewriter.expert_set import ExpertSet

# Six starts of an engine, beside other work.
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(2400)]

MINIATURE = Path(__file__).parents[3] / "examples" / "tiny-r1"
# The one that ends every refusal alone, and that no prompt token selects.
CAUSE = (2, 46)
SEARCH = ["--max-experts", "2", "--null-searches", "1", "--controls", "9", "--control-matching", "uniform"]
ENGINE = ["--max-tokens", "64", "--max-model-len", "512"]


def start(command: str, *arguments: object) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    module = {"mote-tune": "eval.tune.cli", "mote-refine": "eval.refine.cli"}[command]
    return subprocess.Popen(
        [sys.executable, "-c", f"from {module} import main; main()", *map(str, arguments)],
        env=clean | {"OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_once_there(process: subprocess.Popen[str], path: Path, least_bytes: int) -> None:
    """SIGKILL as soon as a file has grown so far."""
    deadline = time.monotonic() + 600
    while not (path.is_file() and path.stat().st_size >= least_bytes):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_and_each_step_is_the_single_commands(tmp_path: Path) -> None:
    listed = [{"prompt": one.text} for one in load_prompts("what-happened:reconstructed-756")[::6]]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in listed))
    out = tmp_path / "tuned"
    arguments = [
        "--model",
        MINIATURE,
        "--behavior",
        "refused",
        "--prompts",
        prompts,
        "-o",
        out,
        "-k",
        "4",
        *SEARCH,
        *ENGINE,
    ]

    kill_once_there(start("mote-tune", *arguments), out / "traces" / "index.jsonl", 1)
    num_recorded = len(TraceReader(out / "traces"))
    assert num_recorded > 0
    kill_once_there(start("mote-tune", *arguments), out / "refine" / "journal.jsonl", 200_000)
    assert len(TraceReader(out / "traces")) == len(listed) and not (out / "variant").exists()
    last = start("mote-tune", *arguments)
    printed, talk = last.communicate()
    assert last.returncode == 0, talk
    assert "record: done before" in talk and "going on with" in talk

    refined = ExpertSet.load(out / "refined.json")
    assert refined.model_pairs((2, 3, 4))[0] == CAUSE
    results = Results.load(out / "refine" / "results.json")
    comparison = results.primary_comparison()
    assert comparison is not None and comparison.moved.rate.rate is not None and comparison.moved.rate.rate > 0.9
    assert "REFUSED" in printed
    assert "Measured by mote-eval" in (out / "variant" / "README.md").read_text()
    assert json.loads((out / "variant" / "config.json").read_text())["mote"]["semantics"] == "reroute"

    # All is there: no engine is started. An engine's start would make this seconds longer, and say so in the log.
    done = start("mote-tune", *arguments, "--json")
    printed, talk = done.communicate()
    assert done.returncode == 0 and talk.count("done before") == 5
    assert json.loads(printed)["primary"] == results.primary

    # By itself, on an engine of its own that answers again, mote-refine finds the same experts.
    alone = start(
        "mote-refine", "--model", MINIATURE, "--prompts", prompts, "-o", tmp_path / "alone.json", *SEARCH, *ENGINE
    )
    _, talk = alone.communicate()
    assert alone.returncode == 0, talk
    assert ExpertSet.load(tmp_path / "alone.json").model_pairs((2, 3, 4)) == refined.model_pairs((2, 3, 4))
    rate = Results.load(tmp_path / "alone-refine" / "results.json").primary_comparison()
    assert rate is not None and rate.moved.rate == comparison.moved.rate
    # And its dry run knows the rate that was measured.
    dry = start(
        "mote-refine",
        "--model",
        MINIATURE,
        "--prompts",
        prompts,
        "-o",
        tmp_path / "alone.json",
        *SEARCH,
        *ENGINE,
        "--dry-run",
    )
    printed, talk = dry.communicate()
    assert dry.returncode == 0 and "tokens/s (measured by an earlier run of this search)" in printed, talk
    shutil.rmtree(out)
