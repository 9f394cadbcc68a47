"""A served variant on a real vLLM server, asked through the OpenAI client, against the live edits of an engine."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import prompts
from tiny_models import build_tiny_r1
from vllm_server import ENVIRONMENT, server_command, serving

from ftri.engine.edits import RouterEdit
from ftri.engine.engine import Engine, Sampling
from ftri.traces.reader import TraceReader

pytestmark = [pytest.mark.slow, pytest.mark.vllm, pytest.mark.timeout(3000)]

SUPPRESS, STIMULATE = [(1, 12), (2, 11), (3, 4)], [(2, 5), (3, 9)]
DIALS = ["--dial", "refusal={suppress}", "--dial", "english=stimulate:{stimulate}", "--dial", "both={suppress}"]
DIALS += ["--dial", "both=stimulate:{stimulate}"]
EDITS = {
    "none": None,
    "refusal": RouterEdit("drop-renorm", SUPPRESS),
    "english": RouterEdit("drop-renorm", (), STIMULATE),
    "both": RouterEdit("drop-renorm", SUPPRESS, STIMULATE),
}
NUM_PROMPTS, MAX_TOKENS = 12, 12


def write_sets(folder: Path) -> dict[str, Path]:
    paths = {}
    for name, pairs in (("suppress", SUPPRESS), ("stimulate", STIMULATE)):
        experts = [{"layer": layer, "expert": expert} for layer, expert in pairs]
        document = {"schema": "mote.expert-set/1", "layer_index": "model", "behavior": name, "experts": experts}
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(document))
    return paths


def rewrite(base: Path, output: Path, *arguments: str) -> Path:
    command = [sys.executable, "-m", "ftri.cli.rewrite", "--model", str(base), "-o", str(output), *arguments]
    subprocess.run(command, check=True, capture_output=True)
    return output


@pytest.fixture(scope="module")
def dialled(tmp_path_factory: pytest.TempPathFactory, tiny_r1: Path) -> Path:
    folder = tmp_path_factory.mktemp("served")
    sets = write_sets(folder)
    return rewrite(tiny_r1, folder / "dialled", *(word.format(**sets) for word in DIALS))


@pytest.fixture(scope="module")
def expected(tiny_engine: Engine) -> dict[str, list[str]]:
    """The text of every prompt under every edit, from the engine in this process."""
    rendered = [tiny_engine.render(prompt) for prompt in prompts(NUM_PROMPTS)]
    texts: dict[str, list[str]] = {}
    for name, edit in EDITS.items():
        found = sorted(
            tiny_engine.generate(rendered, Sampling(max_tokens=MAX_TOKENS), edit=edit), key=lambda one: one.index
        )
        texts[name] = [one.text for one in found]
    return texts


@pytest.fixture(scope="module")
def client(dialled: Path) -> Iterator[Any]:
    import openai

    with serving(dialled, dialled.with_name("server.log")) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300)


def ask(client: Any, number: int, choice: dict[str, Any], **more: Any) -> Any:
    """A chat completion for one of the prompts, greedy, special tokens kept as the engine's texts have them."""
    extra = {"skip_special_tokens": False, **({"vllm_xargs": choice} if choice else {})}
    return client.chat.completions.create(
        model="served",
        messages=[{"role": "user", "content": prompts(NUM_PROMPTS)[number].text}],
        max_tokens=MAX_TOKENS,
        temperature=0,
        extra_body=extra,
        **more,
    )


def without_end(text: str) -> str:
    return text.removesuffix("<eos>")


def test_each_choice_answers_as_the_live_edit(client: Any, expected: dict[str, list[str]]) -> None:
    assert expected["refusal"] != expected["none"] != expected["english"]
    for name, texts in expected.items():
        for number, text in enumerate(texts):
            answer = ask(client, number, {"mote": name}).choices[0].message.content
            assert without_end(answer) == text
    for number, text in enumerate(expected["none"]):
        assert without_end(ask(client, number, {}).choices[0].message.content) == text
        zero = ask(client, number, {"mote": "both", "mote_strength": 0})
        assert without_end(zero.choices[0].message.content) == text


def test_streamed_and_plain_completions_choose_too(client: Any, expected: dict[str, list[str]]) -> None:
    for number in range(3):
        pieces = ask(client, number, {"mote": "both"}, stream=True)
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
        assert without_end(text) == expected["both"][number]
    plain = [
        client.completions.create(
            model="served",
            prompt="What happened?",
            max_tokens=8,
            temperature=0,
            extra_body={"vllm_xargs": {"mote": name}, "ignore_eos": True},
        )
        for name in ("none", "both")
    ]
    # Half of the random model's vocabulary has no text, so tokens are counted.
    assert [one.usage.completion_tokens for one in plain] == [8, 8]


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"mote": "refusals"}, "expected one of none, refusal, english, both"),
        ({"mote": "refusal", "mote_strength": 2}, "expected a number of 0 to 1"),
        ({"mote_strength": 0.5}, "expected one of"),
        ({"mote_edit": "x"}, "mote_edit cannot be given"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_chosen_is_a_bad_request(
    client: Any, choice: dict[str, Any], sentence: str, stream: bool
) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match=sentence):
        list(ask(client, 0, choice, stream=stream))


def test_clients_that_switch_get_nobody_elses_answers(client: Any, expected: dict[str, list[str]]) -> None:
    """64 clients at once for a minute, each request another choice; every answer is the one-variant engine's."""
    wrong: list[str] = []
    num_answers = [0] * 64
    deadline = time.monotonic() + 60

    def switch(client_number: int) -> None:
        turn = client_number
        while time.monotonic() < deadline:
            name, number = list(EDITS)[turn % len(EDITS)], turn * 7 % NUM_PROMPTS
            answer = without_end(ask(client, number, {"mote": name}).choices[0].message.content)
            if answer != expected[name][number]:
                wrong.append(f"{name} {number}: {answer!r}, expected {expected[name][number]!r}")
            num_answers[client_number] += 1
            turn += 1 + client_number % 3

    threads = [threading.Thread(target=switch, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{sum(num_answers)} answers, {len(wrong)} wrong")
    assert min(num_answers) >= 1 and not wrong, wrong[:5]


def refusal_of(command: list[str], environment: dict[str, str]) -> str:
    """What a server that must not start says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    finished = subprocess.run(
        command, env=clean | ENVIRONMENT | environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert finished.returncode != 0
    return finished.stdout


def test_without_the_package_no_runtime_takes_the_folder(dialled: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for load in (AutoConfig.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match="mote_deepseek_v3"):
            load(dialled)
    assert "mote_deepseek_v3" in refusal_of(server_command(dialled, 1), {"VLLM_PLUGINS": "nobody"})
    assert "mote_deepseek_v3" in refusal_of(
        server_command(dialled, 1, "--trust-remote-code"), {"VLLM_PLUGINS": "nobody"}
    )


def test_a_record_of_another_model_does_not_start(dialled: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in dialled.iterdir():
        (broken / path.name).symlink_to(path)
    config = json.loads((dialled / "config.json").read_text()) | {"routed_scaling_factor": 1.5}
    (broken / "config.json").unlink()
    (broken / "config.json").write_text(json.dumps(config))
    assert "the block is of another model" in refusal_of(server_command(broken, 1), {})


def test_a_static_variant_is_its_one_set(tmp_path: Path, expected: dict[str, list[str]]) -> None:
    base = build_tiny_r1(tmp_path / "base")
    sets = write_sets(tmp_path)
    words = ["--semantics", "drop-renorm", "--suppress", str(sets["suppress"]), "--stimulate", str(sets["stimulate"])]
    static = rewrite(base, tmp_path / "static", *words)
    script = (
        "import json, sys; from vllm import LLM, SamplingParams\n"
        "llm = LLM(sys.argv[1], dtype='float32', max_model_len=256, max_num_seqs=8, enforce_eager=True,\n"
        "          attention_backend='CPU_MLA')\n"
        "params = SamplingParams(max_tokens=int(sys.argv[2]), temperature=0, skip_special_tokens=False)\n"
        "chats = [[{'role': 'user', 'content': text}] for text in json.loads(sys.argv[3])]\n"
        "print('TEXTS' + json.dumps([one.outputs[0].text for one in llm.chat(chats, params)]))\n"
    )
    texts = json.dumps([prompt.text for prompt in prompts(NUM_PROMPTS)])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    finished = subprocess.run(
        [sys.executable, "-c", script, str(static), str(MAX_TOKENS), texts],
        env=clean | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    found = json.loads(finished.stdout.split("TEXTS")[-1])
    assert [without_end(text) for text in found] == expected["both"]


def test_the_engine_opens_it_records_and_chooses(dialled: Path, expected: dict[str, list[str]]) -> None:
    """What mote-record and mote-eval do with a served variant: here every prompt under every choice, in one batch."""
    script = (
        "import json, sys\n"
        "from ftri.engine.edits import ServedChoice\n"
        "from ftri.engine.engine import Engine, Sampling\n"
        "from ftri.prompts.sets import PromptRecord\n"
        "arguments = {'dtype': 'float32', 'max_model_len': 256, 'max_num_seqs': 16}\n"
        "texts, names = json.loads(sys.argv[3]), json.loads(sys.argv[4])\n"
        "with Engine(sys.argv[1], engine_arguments=arguments) as engine:\n"
        "    prompts = [engine.render(PromptRecord(str(i), text)) for i, text in enumerate(texts)] * len(names)\n"
        "    edits = [ServedChoice(name) for name in names for _ in texts]\n"
        "    found = list(engine.generate(prompts, Sampling(max_tokens=int(sys.argv[2])), edit=edits))\n"
        "assert all(one.experts.shape[1:] == (3, 4) for one in found)\n"
        "found.sort(key=lambda one: one.index)\n"
        "print('TEXTS' + json.dumps([one.text for one in found]))\n"
    )
    texts = json.dumps([prompt.text for prompt in prompts(NUM_PROMPTS)])
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    finished = subprocess.run(
        [sys.executable, "-c", script, str(dialled), str(MAX_TOKENS), texts, json.dumps(list(EDITS))],
        env=clean | ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert json.loads(finished.stdout.split("TEXTS")[-1]) == [text for name in EDITS for text in expected[name]]


def test_mote_record_keeps_what_a_static_variant_selects(
    tmp_path: Path, tiny_r1: Path, tiny_engine: Engine, expected: dict[str, list[str]]
) -> None:
    """To the end, with weights: rows and weights are those of the live edit, so a suppressed expert's are 0."""
    sets = write_sets(tmp_path)
    static = rewrite(tiny_r1, tmp_path / "static", "--semantics", "drop-renorm", "--suppress", str(sets["suppress"]))
    records = prompts(NUM_PROMPTS)
    lines = [json.dumps({"prompt_id": one.prompt_id, "prompt": one.text}) + "\n" for one in records]
    (tmp_path / "prompts.jsonl").write_text("".join(lines))
    words = ["--model", static, "--prompts", tmp_path / "prompts.jsonl", "-o", tmp_path / "traces", "--json"]
    words += ["--max-tokens", MAX_TOKENS, "--weights", "float32", "--dtype", "float32", "--max-model-len", 256]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    command = [sys.executable, "-c", "from ftri.cli.record import main; main()", *map(str, words)]
    finished = subprocess.run(command, env=clean | ENVIRONMENT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-4000:]
    assert json.loads(finished.stdout)["responses"] == NUM_PROMPTS

    rendered = [tiny_engine.render(one) for one in records]
    live = tiny_engine.generate(rendered, Sampling(max_tokens=MAX_TOKENS), edit=EDITS["refusal"])
    by_prompt = {one.prompt.prompt_id: one for one in live}
    num_zero = 0
    for record in TraceReader(tmp_path / "traces"):
        one = by_prompt[record.prompt_id]
        assert record.completion_token_ids == one.token_ids and record.weights is not None
        np.testing.assert_array_equal(record.experts, one.experts)
        np.testing.assert_array_equal(record.weights, one.weights)
        for layer, expert in SUPPRESS:
            is_suppressed = record.experts[:, layer - 1] == expert
            assert not record.weights[:, layer - 1][is_suppressed].any()
            num_zero += int(is_suppressed.sum())
    assert num_zero > 0
