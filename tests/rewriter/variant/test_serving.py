"""A variant of a tiny R1 on real runtimes: unmodified vLLM and transformers never select what was suppressed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_models import build_tiny_r1

SUPPRESS = [[1, 3], [1, 7], [2, 5], [3, 0], [3, 15]]
STIMULATE = [[1, 9], [2, 1]]
MOE_LAYERS = (1, 2, 3)
NUM_PROMPTS, PROMPT_TOKENS, GENERATED_TOKENS = 40, 48, 16

pytestmark = pytest.mark.vllm

RECORD = """
import sys, json
import numpy as np
from ftri.engine.engine import Engine, Sampling
from ftri.prompts.rendering import RenderedPrompt
folder, output, prompts, new_tokens = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
rendered = [RenderedPrompt(prompt_id=str(n), prompt="", text="", token_ids=ids, template_sha256="", factors={})
            for n, ids in enumerate(prompts)]
arguments = {"max_model_len": 128, "max_num_seqs": 16, "dtype": "float32"}
with Engine(folder, record=True, engine_arguments=arguments) as engine:
    runs = [sorted(engine.generate(rendered, Sampling(max_tokens=new_tokens, temperature=0.0)), key=lambda g: g.index)
            for _ in range(2)]
    scores = engine.score([prompts[0]], num_logprobs=4)
np.savez(output, experts=np.stack([g.experts for g in runs[0]]), tokens=np.array([g.token_ids for g in runs[0]]),
         tokens_again=np.array([g.token_ids for g in runs[1]]), logprobs=scores[0].token_logprobs)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # No token ends a response, so that all responses have the same length.
    return build_tiny_r1(tmp_path_factory.mktemp("serving") / "base", seed=3, eos_token_id=511)


@pytest.fixture(scope="module")
def variant(base: Path) -> Path:
    target = base.with_name("variant")
    for name, pairs in (("suppress", SUPPRESS), ("stimulate", STIMULATE)):
        base.with_name(f"{name}.json").write_text(json.dumps(pairs))
    command = [
        sys.executable,
        "-m",
        "ftri.cli.rewrite",
        "--model",
        str(base),
        "--layer-index",
        "model",
        "-o",
        str(target),
    ]
    command += [
        "--suppress",
        str(base.with_name("suppress.json")),
        "--stimulate",
        str(base.with_name("stimulate.json")),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    random = np.random.default_rng(0)
    return [random.integers(6, 260, PROMPT_TOKENS).tolist() for _ in range(NUM_PROMPTS)]


@pytest.fixture(scope="module")
def recorded(variant: Path, prompts: list[list[int]]) -> dict[str, np.ndarray]:
    """What vLLM did with the variant: experts [P, T, L, K], tokens [P, generated]; one engine load for all tests."""
    output = variant.with_name("recorded.npz")
    arguments = [str(variant), str(output), json.dumps(prompts), str(GENERATED_TOKENS)]
    subprocess.run([sys.executable, "-c", RECORD, *arguments], check=True)
    with np.load(output) as loaded:
        return dict(loaded)


def selected(experts: np.ndarray, layer: int, expert: int) -> np.ndarray:
    """Which tokens selected an expert. experts: [..., L, K]."""
    return (experts[..., MOE_LAYERS.index(layer), :] == expert).any(-1)


def test_vllm_never_selects_a_suppressed_expert(recorded: dict[str, np.ndarray]) -> None:
    experts = recorded["experts"]
    assert experts.shape[0] * experts.shape[1] >= 2000
    for layer, expert in SUPPRESS:
        assert not selected(experts, layer, expert).any()


def test_vllm_always_selects_a_stimulated_expert(recorded: dict[str, np.ndarray]) -> None:
    for layer, expert in STIMULATE:
        assert selected(recorded["experts"], layer, expert).all()


def test_vllm_selects_distinct_experts(recorded: dict[str, np.ndarray]) -> None:
    ordered = np.sort(recorded["experts"], -1)
    assert (ordered[..., 1:] != ordered[..., :-1]).all()


def test_vllm_generation_is_finite_and_deterministic(recorded: dict[str, np.ndarray]) -> None:
    assert recorded["tokens"].shape == (NUM_PROMPTS, GENERATED_TOKENS)
    assert (recorded["tokens"] == recorded["tokens_again"]).all()
    assert np.isfinite(recorded["logprobs"]).all()


def test_transformers_selects_the_same_experts(
    variant: Path, prompts: list[list[int]], recorded: dict[str, np.ndarray]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(variant, dtype=torch.float32).eval()
    captured: dict[int, torch.Tensor] = {}
    for layer in MOE_LAYERS:

        def keep(module: torch.nn.Module, inputs: tuple, layer: int = layer) -> None:
            captured[layer] = inputs[1]  # (hidden states, selected experts, weights)

        model.model.layers[layer].mlp.experts.register_forward_pre_hook(keep)
    tokens = [[*prompt, *generated] for prompt, generated in zip(prompts, recorded["tokens"].tolist(), strict=True)]
    agreeing = total = 0
    for index, token_ids in enumerate(tokens):
        with torch.no_grad():
            model(torch.tensor([token_ids[:-1]]))
        ours = np.stack([captured[layer].numpy() for layer in MOE_LAYERS], 1)  # [T, L, K]
        for layer, expert in SUPPRESS:
            assert not selected(ours, layer, expert).any()
        for layer, expert in STIMULATE:
            assert selected(ours, layer, expert).all()
        same = np.sort(ours, -1) == np.sort(recorded["experts"][index], -1)
        agreeing += int(same.all(-1).sum())
        total += same.shape[0] * same.shape[1]
    # In float32 on both sides, so that only ties closer than a rounding error could fall either way.
    print(f"vLLM and transformers agree on {agreeing} of {total} token-layer selections")
    assert agreeing / total >= 0.999


def test_the_base_does_select_them(base: Path, prompts: list[list[int]]) -> None:
    """Else the tests above would prove nothing."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    captured: dict[int, torch.Tensor] = {}
    for layer in MOE_LAYERS:

        def keep(module: torch.nn.Module, inputs: tuple, layer: int = layer) -> None:
            captured[layer] = inputs[1]

        model.model.layers[layer].mlp.experts.register_forward_pre_hook(keep)
    with torch.no_grad():
        model(torch.tensor(prompts))
    experts = np.stack([captured[layer].numpy() for layer in MOE_LAYERS], 1)
    assert all(selected(experts, layer, expert).any() for layer, expert in SUPPRESS)
    assert not all(selected(experts, layer, expert).all() for layer, expert in STIMULATE)
