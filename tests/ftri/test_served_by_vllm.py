"""mote-record --base-url from a real vLLM server, whose own capture (AuxOutput) returns the rows."""

import json
from pathlib import Path

import numpy as np
import pytest
from engines import prompts, ran, reference_experts, runner_v2
from running import run_main
from vllm_server import serving

from ftri.cli.record import main
from ftri.traces.reader import TraceReader

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1800)]


def test_a_real_servers_rows_are_transformers(tiny_r1: Path, tmp_path: Path) -> None:
    """On a CPU the capture has rows only of routers that are asked, as editable ones are (ftri/engine/arguments.py)."""
    records = prompts(12)
    lines = [json.dumps({"prompt_id": one.prompt_id, "prompt": one.text}) + "\n" for one in records]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    options = ["--enable-return-routed-experts", "--enable-prefix-caching", "--attention-backend", "CPU_ATTN"]
    options += ["--hf-overrides", json.dumps({"architectures": ["MoteDeepseekV3ForCausalLM"]})]
    environment = runner_v2(tmp_path / "triton") | {"VLLM_MLA_DISABLE": "1"}
    with serving(tiny_r1, tmp_path / "server.log", *options, environment=environment) as url:
        words = ["--base-url", url, "--model", tiny_r1, "--prompts", tmp_path / "prompts.jsonl", "--max-tokens", "12"]
        finished = run_main(main, "mote-record", *words, "-o", tmp_path / "traces", "--json")
    assert finished.returncode == 0, finished.stderr + (tmp_path / "server.log").read_text()[-2000:]
    reader = TraceReader(tmp_path / "traces")
    assert reader.manifest["capture"] == "vllm server"
    found = sorted(reader, key=lambda record: record.key)
    assert [record.prompt_id for record in found] == sorted(one.prompt_id for one in records)
    sequences = [ran(record.prompt_token_ids, record.completion_token_ids) for record in found]
    for record, expected in zip(found, reference_experts(tiny_r1, sequences), strict=True):
        np.testing.assert_array_equal(record.experts, expected)
