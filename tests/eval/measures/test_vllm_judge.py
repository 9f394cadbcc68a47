"""MT-Bench end to end: answers of an engine, judged by a model that vLLM serves; what a judge thinks is not what is tested."""

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import httpx2
import pytest
from conftest import free_port
from tiny_models import build_tiny_r1

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(1800)]

QUESTIONS = [
    {"question_id": 1, "category": "writing", "turns": ["Write about Beijing", "Shorter"]},
    {"question_id": 2, "category": "math", "turns": ["What is 2+2?", "And doubled?"]},
]
REFERENCES = [{"question_id": 2, "choices": [{"index": 0, "turns": ["4", "8"]}]}]
JUDGE_PROMPTS = [
    {"name": "single-v1", "system_prompt": "Help.", "prompt_template": "Q {question} A {answer}"},
    {"name": "single-math-v1", "system_prompt": "", "prompt_template": "Q {question} R {ref_answer_1} A {answer}"},
    {"name": "single-v1-multi-turn", "prompt_template": "{question_1} {answer_1} {question_2} {answer_2}"},
    {"name": "single-math-v1-multi-turn", "prompt_template": "{ref_answer_1} {ref_answer_2} {question_2} {answer_2}"},
]
# What the judge writes after any prompt.
VERDICT = ["<assistant>", "[", "7", "]", "<eos>"]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "HF_HUB_OFFLINE": "1",
}


def build_judge(folder: Path) -> Path:
    """A chat model that always writes "[7]": its blocks add nothing, and its head reads the next token off the last one."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    build_tiny_r1(folder, max_position_embeddings=8192)
    tokens = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(VERDICT)
    embeddings = torch.zeros(512, 64, dtype=torch.bfloat16)
    head = torch.zeros_like(embeddings)
    for place, (token, following) in enumerate(pairwise(tokens)):
        embeddings[token, place] = head[following, place] = 4.0
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor.zero_()
            elif name.endswith("embed_tokens.weight"):
                tensor.copy_(embeddings)
            elif name.endswith("lm_head.weight"):
                tensor.copy_(head)
        save_file(tensors, shard, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """The address of a vLLM server of the judge."""
    folder = build_judge(tmp_path_factory.mktemp("judge") / "judge")
    port = free_port()
    words = [
        "--model",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        port,
        "--served-model-name",
        "judge",
        "--enforce-eager",
    ]
    words += ["--dtype", "float32", "--attention-backend", "CPU_MLA", "--max-model-len", 4096, "--max-num-seqs", 4]
    # What `vllm serve` runs; the command itself looks for a package called vllm, which the CPU build is not.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *map(str, words)]
    with (folder.parent / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 900
        while not answers(url):
            assert process.poll() is None and time.monotonic() < deadline, (folder.parent / "log").read_text()[-3000:]
            time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def answers(url):
    try:
        return httpx2.get(f"{url}/health", timeout=2).status_code == 200
    except httpx2.TransportError:
        return False


def mote_eval(folder, base, url, *more):
    script = "from eval.cli import main; main()"
    words = ["--model", base, "--suppress", folder / "set.json", "--prompts", folder / "p.jsonl", "-o", folder / "out"]
    words += ["--mt-bench", folder / "question.jsonl", "--references", folder / "references.jsonl"]
    words += ["--judge-prompts", folder / "judge.jsonl", "--judge-url", url, "--judge-model", "judge", "--json"]
    words += ["--controls", 0, "--no-repeat", "--neutral-limit", 1, "--kl-tokens", 4, "--max-tokens", 12]
    words += ["--dtype", "float32", "--max-model-len", 256, "--max-num-seqs", 8, *more]
    command = [sys.executable, "-c", script, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | ENVIRONMENT)


def test_a_model_that_vllm_serves_judges_every_turn_and_its_cost_is_announced(judge, tmp_path):
    base = build_tiny_r1(tmp_path / "base")
    suppressed = [{"layer": layer, "expert": expert} for layer in (1, 2, 3) for expert in (3, 5, 9, 14)]
    experts = {"schema": "mote.expert-set/1", "layer_index": "model", "behavior": "ALIGNED"}
    (tmp_path / "set.json").write_text(json.dumps(experts | {"experts": suppressed}))
    prompts = [{"prompt_id": f"p{n}", "prompt": f"What happened in {1980 + n}?"} for n in range(4)]
    for name, rows in (
        ("p", prompts),
        ("question", QUESTIONS),
        ("references", REFERENCES),
        ("judge", JUDGE_PROMPTS),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    planned = mote_eval(tmp_path, base, judge, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    parts = {part["part"]: part for part in json.loads(planned.stdout)["parts"]}
    announced = parts["MT-Bench's judge, at its own server"]
    assert (announced["answers"], announced["max_tokens"], announced["elsewhere"]) == (8, 2048, True) and announced[
        "at_most"
    ]
    assert not (tmp_path / "out").exists()

    ran = mote_eval(tmp_path, base, judge)
    assert ran.returncode == 0, ran.stderr
    result = json.loads(ran.stdout)["mt_bench"]
    assert (result["num_questions"], result["unrated"]) == (2, [])
    overall = result["overall"]
    assert overall["before"]["estimate"] == overall["after"]["estimate"] == 7
    assert {row["category"] for row in result["categories"]} == {"writing", "math"}
    # Answers that base and variant give alike are judged once, hence at most as many as announced.
    kept = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    judged = [one["value"] for one in kept if one["kind"] == "value" and "rating" in (one["value"] or {})]
    assert 4 <= len(judged) <= announced["answers"] and {one["text"] for one in judged} == {"[7]"}
    assert "measured on the first 4 answers" in ran.stderr and "node-hours" in ran.stderr
