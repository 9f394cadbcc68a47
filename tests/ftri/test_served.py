"""mote-record --base-url against a server process that answers as vLLM and SGLang do: the same folder from both, retries, resume,
bounded concurrency, and rows that cannot be a recording."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from running import run_main
from tiny_models import described_tiny_r1

from ftri.cli.record import main
from ftri.traces.reader import TraceReader

COUNT = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Config and tokenizer of a tiny R1: of a served model, no weights are needed here."""
    return described_tiny_r1(tmp_path_factory.mktemp("models") / "R1")


@pytest.fixture(scope="module")
def shape(model):
    config = json.loads((model / "config.json").read_text())
    return {
        "layers": config["num_hidden_layers"],
        "first_moe_layer": config["first_k_dense_replace"],
        "num_experts": config["n_routed_experts"],
        "top_k": config["num_experts_per_tok"],
    }


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    lines = [
        {"prompt_id": f"p{n}", "prompt": f"What happened in {1980 + n}?", "time": str(1980 + n)} for n in range(COUNT)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@contextmanager
def serving(shape, **settings):
    command = [sys.executable, str(Path(__file__).with_name("routing_server.py")), json.dumps({**shape, **settings})]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


def record(model, prompts, output, url, *options):
    words = ["--model", model, "--prompts", prompts, "-o", output, "--max-tokens", "6", "--base-url", url, "--json"]
    return run_main(main, "mote-record", *words, *options)


def seen(url):
    with urlopen(f"{url}/seen") as answer:
        return json.load(answer)


def expected_rows(record, shape):
    tokens = np.array([*record.prompt_token_ids, *record.completion_token_ids][:-1])
    layer = np.arange(shape["first_moe_layer"], shape["layers"])
    rows = (tokens[:, None, None] * 7 + layer[:, None] + 5 * np.arange(shape["top_k"])) % shape["num_experts"]
    return np.sort(rows, axis=2)


@pytest.mark.parametrize("runtime", ["vllm", "sglang"])
def test_the_folder_holds_what_the_server_returned(model, shape, prompts, tmp_path, runtime):
    with serving(shape, runtime=runtime, failures=3) as url:
        result = record(model, prompts, tmp_path / "t", url, "--concurrency", "4")
        assert result.returncode == 0, result.stderr
        assert seen(url)["most"] <= 4 and seen(url)["requests"] == COUNT + 3
    summary = json.loads(result.stdout)
    assert (summary["responses"], summary["capture"]) == (COUNT, f"{runtime} server")
    reader = TraceReader(tmp_path / "t")
    records = sorted(reader, key=lambda record: int(record.prompt_id[1:]))
    assert [one.prompt_id for one in records] == [f"p{n}" for n in range(COUNT)]
    for one in records:
        np.testing.assert_array_equal(one.experts, expected_rows(one, shape))
        assert one.experts.dtype == np.uint8
        assert one.rendered_prompt == f"<bos><user>{one.prompt}<assistant>" and one.factors["time"] == one.prompt[17:21]
        assert one.finish_reason in ("stop", "length") and one.text
    assert {one.finish_reason for one in records} == {"stop", "length"}
    assert reader.manifest["tokens_per_second"] > 0 and reader.manifest["model_type"] == "deepseek_v3"


def test_both_runtimes_give_the_same_folder(model, shape, prompts, tmp_path):
    for runtime in ("vllm", "sglang"):
        with serving(shape, runtime=runtime) as url:
            assert record(model, prompts, tmp_path / runtime, url).returncode == 0
    digests = {TraceReader(tmp_path / runtime).content_digest() for runtime in ("vllm", "sglang")}
    assert len(digests) == 1


def test_a_run_whose_server_died_goes_on_with_the_same_command(model, shape, prompts, tmp_path):
    with serving(shape, die_after=7) as url:
        died = record(model, prompts, tmp_path / "t", url, "--concurrency", "1", "--attempts", "1")
    assert died.returncode == 1 and "cannot be reached" in died.stderr
    kept = len(TraceReader(tmp_path / "t"))
    assert 5 <= kept <= 7
    with serving(shape) as url:
        again = record(model, prompts, tmp_path / "t", url)
        assert seen(url)["requests"] == COUNT - kept
    summary = json.loads(again.stdout)
    assert (summary["resumed_responses"], summary["responses"]) == (kept, COUNT - kept)
    with serving(shape) as url:
        assert record(model, prompts, tmp_path / "whole", url).returncode == 0
    assert TraceReader(tmp_path / "t").content_digest() == TraceReader(tmp_path / "whole").content_digest()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fault": "none"}, "returns no routed_experts; start it with --enable-return-routed-experts"),
        ({"fault": "none", "runtime": "sglang"}, "returns no routed_experts; start it with"),
        ({"fault": "text"}, "routed_experts that are not base64"),
        ({"fault": "twice"}, "more than once in one token and layer"),
        ({"fault": "short"}, "rows of shape"),
        ({"fault": "beyond"}, "expected ids from 0 and below 16"),
        ({"name": "V3"}, "does not serve a model 'R1'; it serves V3"),
        ({"key": "k"}, "refused a request without a key with 401"),
    ],
)
def test_what_is_no_recording_is_one_sentence_and_nothing_is_kept(model, shape, prompts, tmp_path, settings, sentence):
    with serving(shape, **settings) as url:
        result = record(model, prompts, tmp_path / "t", url, "--served-model", "R1")
    assert result.returncode == 1, result.stdout
    error = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and sentence in error[0]
    assert len(TraceReader(tmp_path / "t")) == 0


@pytest.mark.parametrize(("echoes", "noise"), [(True, 0.0), (True, 0.05), (False, 0.0)])
def test_a_server_with_other_weights_under_the_same_name_does_not_go_on(model, shape, prompts, tmp_path, echoes, noise):
    settings = {"echoes": echoes, "noise": noise}
    with serving(shape, weights=0.0, die_after=7, **settings) as url:
        died = record(model, prompts, tmp_path / "t", url, "--concurrency", "1", "--attempts", "1")
    assert died.returncode == 1 and "log-probabilities" not in died.stderr
    kept = len(TraceReader(tmp_path / "t"))
    with serving(shape, weights=2.0, **settings) as url:
        refused = record(model, prompts, tmp_path / "t", url)
        assert seen(url)["requests"] == 0
    (error,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert f"{tmp_path / 't'} was recorded from other weights: http" in error and "expected at most" in error
    assert len(TraceReader(tmp_path / "t")) == kept
    with serving(shape, weights=0.0, **settings) as url:  # the same weights at another address, noise and all
        assert record(model, prompts, tmp_path / "t", url).returncode == 0
    assert len(TraceReader(tmp_path / "t")) == COUNT


def test_a_server_without_log_probabilities_is_said_once(model, shape, prompts, tmp_path):
    with serving(shape) as url:
        result = record(model, prompts, tmp_path / "t", url)
    assert result.returncode == 0 and result.stderr.count("returns no log-probabilities") == 1


def test_engine_arguments_and_a_server_exclude_each_other(model, prompts, tmp_path):
    result = record(model, prompts, tmp_path / "t", "http://127.0.0.1:9", "--max-model-len", "64")
    assert result.returncode == 1 and "nor wanted beside --base-url" in result.stderr


def test_the_dry_run_says_what_it_costs(model, shape, prompts, tmp_path):
    def dry(*options):
        return record(model, prompts, tmp_path / "t", "http://127.0.0.1:9", "--dry-run", "--samples", "2", *options)

    costs = json.loads(dry("--tokens-per-second", "100").stdout)["costs"]
    num_prompt_tokens = costs["prompt_tokens"]
    assert costs["requests"] == 2 * COUNT
    assert costs["most_tokens"] == num_prompt_tokens + 2 * COUNT * 5
    assert costs["seconds"] == pytest.approx(costs["most_tokens"] / 100)
    assert costs["node_hours"] == pytest.approx(costs["seconds"] / 3600)
    assert any("--samples 1" in option for option in costs["halved_by"])
    unknown = json.loads(dry().stdout)["costs"]
    assert unknown["seconds"] is None
    with serving(shape) as url:
        assert record(model, prompts, tmp_path / "t", url, "--samples", "2").returncode == 0
    done = json.loads(dry().stdout)["costs"]
    assert (done["requests"], done["most_tokens"], done["engine_loads"]) == (0, 0, 0)
    assert done["tokens_per_second"] > 0
    assert dry("--tokens-per-second", "0").returncode == 1


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_a_server_that_returns_what_our_recorder_saw_gives_our_recorders_folder(prompts, tmp_path):
    """The miniature in an engine of unmodified vLLM, then the same responses and rows out of servers of both kinds."""
    miniature = Path(__file__).resolve().parents[2] / "examples" / "tiny-r1"
    config = json.loads((miniature / "config.json").read_text())
    shape = {
        "layers": config["num_hidden_layers"],
        "first_moe_layer": config["first_k_dense_replace"],
        "num_experts": config["n_routed_experts"],
        "top_k": config["num_experts_per_tok"],
    }
    script = "from ftri.cli.record import main; main()"
    words = ["--model", miniature, "--prompts", prompts, "-o", tmp_path / "own", "--max-tokens", "24"]
    engine = ["--max-model-len", "256", "--max-num-seqs", "8"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    recorded = subprocess.run(
        [sys.executable, "-c", script, *map(str, [*words, *engine])], env=environment, capture_output=True, text=True
    )
    assert recorded.returncode == 0, recorded.stderr
    own = {record.prompt_id: record for record in TraceReader(tmp_path / "own")}
    assert len(own) == COUNT
    for runtime in ("vllm", "sglang"):
        with serving(shape, runtime=runtime, name="tiny", traces=str(tmp_path / "own")) as url:
            ran = record(miniature, prompts, tmp_path / runtime, url, "--max-tokens", "24", "--served-model", "tiny")
            assert ran.returncode == 0, ran.stderr
        for served in TraceReader(tmp_path / runtime):
            mine = own[served.prompt_id]
            np.testing.assert_array_equal(served.experts, mine.experts)
            for name in ("text", "prompt", "rendered_prompt", "prompt_token_ids", "completion_token_ids", "factors"):
                assert getattr(served, name) == getattr(mine, name), name
            assert served.finish_reason == mine.finish_reason
        assert TraceReader(tmp_path / runtime).content_digest() == TraceReader(tmp_path / "own").content_digest()
