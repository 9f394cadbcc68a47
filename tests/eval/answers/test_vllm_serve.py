"""Two real vLLM servers, base and variant, compared over HTTP; and their answers beside those of a live engine."""

import asyncio
import json
import os
import subprocess
import sys
import time

import httpx2
import pytest
from conftest import free_port
from tiny_models import build_tiny_r1

from eval.cli import main
from eval.results import Results
from ftri.endpoint import Endpoint
from ftri.endpoints import connect
from ftri.probe import PROBES, other_weights, take_probe

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(2400)]

EXPERTS = [(layer, expert) for layer in (1, 2, 3) for expert in (3, 5, 9, 14)]
# Imports alone take minutes on a machine that is busy.
START_SECONDS = 900


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    from rewriter.checkpoint.reader import Checkpoint
    from rewriter.edit.patches import EditOptions
    from rewriter.edit.plan import make_plan
    from rewriter.expert_set import ExpertSet
    from rewriter.variant.write import write_variant

    folder = tmp_path_factory.mktemp("served")
    base = build_tiny_r1(folder / "base", moe_intermediate_size=512)
    document = {
        "schema": "mote.expert-set/1",
        "layer_index": "model",
        "behavior": "ALIGNED",
        "experts": [{"layer": layer, "expert": expert} for layer, expert in EXPERTS],
    }
    (folder / "set.json").write_text(json.dumps(document))
    plan = make_plan(Checkpoint.open(base), ExpertSet.load(folder / "set.json"), None, EditOptions(semantics="reroute"))
    write_variant(plan, base, folder / "variant")
    return folder


@pytest.fixture(scope="module")
def servers(models):
    """URLs of the base and the variant, served at the same time by unmodified vLLM."""
    processes, urls = [], []
    for name in ("base", "variant"):
        port = free_port()
        command = [
            # What `vllm serve` runs; the command itself looks for a package called vllm, which the CPU build is not.
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", models / name, "--port", port),
            *(
                "--host",
                "127.0.0.1",
                "--dtype",
                "float32",
                # Where the processor has AMX instructions, vLLM's own choice takes no float32.
                "--attention-backend",
                "CPU_MLA",
                "--served-model-name",
                name,
                "--max-model-len",
                256,
                "--max-num-seqs",
                8,
                "--enforce-eager",
            ),
        ]
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        log = (models / f"{name}.log").open("w")
        processes.append(
            subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=log,
                env=environment,
            )
        )
        urls.append(f"http://127.0.0.1:{port}")
    try:
        deadline = time.monotonic() + START_SECONDS
        for url, process in zip(urls, processes, strict=True):
            while not healthy(url):
                assert process.poll() is None and time.monotonic() < deadline, f"{url} did not start"
                time.sleep(1)
        yield urls
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def healthy(url):
    try:
        return httpx2.get(f"{url}/health", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def mote_eval(monkeypatch, *arguments):
    """The console entry point in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["mote-eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def texts(folder, arm):
    lines = (folder / "transcripts.jsonl").read_text().splitlines()
    return {line["prompt_id"]: line["answers"][arm]["text"] for line in map(json.loads, lines)}


def test_base_and_variant_over_http(models, servers, monkeypatch, capsys, tmp_path):
    common = (
        "--model",
        models / "base",
        "--suppress",
        models / "set.json",
        "--prompts",
        "what-happened:listed",
        "--limit",
        12,
    )
    common = (*common, "--max-tokens", 24, "--label-cut")
    base, variant = servers
    assert mote_eval(monkeypatch, *common, "--base-url", base, "--tuned-url", variant, "-o", tmp_path / "http") == 0
    assert "ALIGNED -> other" in capsys.readouterr().out
    results = Results.load(tmp_path / "http" / "results.json")
    assert not results.missing
    assert results.subject["models"] == {"None": "base", "tuned": "variant"}
    assert sum(map(sum, results.primary_comparison().matrix.counts)) == 12
    assert results.repeat_flips.count == 0
    over_http = texts(tmp_path / "http", "variant")
    assert over_http != texts(tmp_path / "http", "base")
    quick = ("--controls", 0, "--neutral-limit", 1, "--kl-tokens", 1, "--engine-argument", "max_model_len=256")
    quick = (*quick, "--engine-argument", "dtype=float32")
    assert mote_eval(monkeypatch, *common, *quick, "--semantics", "reroute", "-o", tmp_path / "live") == 0
    # The same requests to a live edit in one engine and to a server of the rewritten checkpoint.
    assert over_http == texts(tmp_path / "live", "variant")
    assert texts(tmp_path / "http", "base") == texts(tmp_path / "live", "base")


def test_other_weights_are_told_from_the_same_by_fixed_texts(servers):
    async def take(url):
        async with connect(Endpoint(url)) as connection:
            return await take_probe(connection)

    base, variant = servers
    first, again, other = (asyncio.run(take(url)) for url in (base, base, variant))
    assert len(first.texts) == len(PROBES) and all(len(text) > 5 for text in first.texts)
    assert other_weights(first, again, base) is None
    assert "expected at most" in other_weights(first, other, variant)


def test_a_variant_that_is_not_served_is_named(models, servers, monkeypatch, capsys, tmp_path):
    base, _ = servers
    nobody = f"http://127.0.0.1:{free_port()}"
    servers_and_sets = ("--model", models / "base", "--base-url", base, "--tuned-url", nobody, "--attempts", 2)
    limits = ("--prompts", "what-happened:listed", "--limit", 4, "--max-tokens", 8)
    assert mote_eval(monkeypatch, *servers_and_sets, *limits, "-o", tmp_path) == 1
    assert "cannot be reached" in capsys.readouterr().err
