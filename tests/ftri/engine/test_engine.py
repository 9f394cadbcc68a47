"""Every token's experts are its own, however vLLM batches, against transformers and one request at a time."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import ENGINE_ARGUMENTS, MAX_TOKENS, prompts, ran, reference_experts, reference_rows, run_engine, runner_v2

from ftri.engine.edits import RouterEdit
from ftri.engine.engine import Engine, EngineError, Generation, Sampling
from ftri.prompts.rendering import RenderedPrompt
from ftri.prompts.sets import PromptRecord
from rewriter.errors import InputError, MoteError

pytestmark = pytest.mark.vllm
SAMPLING = Sampling(max_tokens=MAX_TOKENS, temperature=1.0)


@pytest.fixture(scope="module")
def batched(tiny_engine: Engine) -> list[Generation]:
    # Three times as many as the engine takes at once: requests join while others decode.
    rendered = [tiny_engine.render(prompt) for prompt in prompts(24)]
    return sorted(tiny_engine.generate(rendered, SAMPLING), key=lambda generation: generation.index)


def test_shapes_and_dtype(tiny_engine: Engine, batched: list[Generation]) -> None:
    assert tiny_engine.capture == "router_hook"
    assert [generation.index for generation in batched] == list(range(24))
    for generation in batched:
        assert generation.experts is not None and generation.experts.dtype == np.uint8
        num_tokens = len(generation.prompt.token_ids) + len(generation.token_ids) - 1
        assert generation.experts.shape == (num_tokens, 3, 4)
        assert (np.diff(generation.experts.astype(int), axis=-1) > 0).all()
        assert len(generation.token_ids) <= MAX_TOKENS
        assert (generation.finish_reason == "length") == (generation.token_ids[-1] != 1)


def test_all_tokens_route_as_in_transformers(tiny_r1: Path, batched: list[Generation]) -> None:
    sequences = [ran(generation.prompt.token_ids, generation.token_ids) for generation in batched]
    for generation, (experts, weights) in zip(batched, reference_rows(tiny_r1, sequences), strict=True):
        np.testing.assert_array_equal(generation.experts, experts)
        assert generation.weights is not None and generation.weights.dtype == np.float32
        np.testing.assert_allclose(generation.weights, weights, rtol=1e-5)


def test_one_at_a_time_gives_the_same_tokens_and_rows(tiny_engine: Engine, batched: list[Generation]) -> None:
    for generation in batched[:8]:
        (alone,) = tiny_engine.generate([generation.prompt], SAMPLING)
        assert alone.token_ids == generation.token_ids
        np.testing.assert_array_equal(alone.experts, generation.experts)


def test_samples_have_seeds_of_their_own_and_skipped_ones_are_not_run(tiny_engine: Engine) -> None:
    (prompt,) = (tiny_engine.render(prompt) for prompt in prompts(1))
    three = {one.sample: one.token_ids for one in tiny_engine.generate([prompt], SAMPLING, samples=3)}
    assert sorted(three) == [0, 1, 2] and len({tuple(ids) for ids in three.values()}) == 3
    skip = {(prompt.prompt_id, 0), (prompt.prompt_id, 2)}
    (second,) = tiny_engine.generate([prompt], SAMPLING, samples=3, skip=skip)
    assert (second.sample, second.token_ids) == (1, three[1])


def test_a_caller_may_stop_early(tiny_engine: Engine, batched: list[Generation]) -> None:
    stopped = tiny_engine.generate([generation.prompt for generation in batched], SAMPLING)
    next(stopped)
    stopped.close()
    (again,) = tiny_engine.generate([batched[3].prompt], SAMPLING)
    np.testing.assert_array_equal(again.experts, batched[3].experts)


def test_a_prompt_beyond_the_context_is_named(tiny_engine: Engine) -> None:
    long = tiny_engine.render(PromptRecord("too-long", "x" * 300))
    with pytest.raises(EngineError, match="prompt 'too-long' cannot be run: .*256"):
        list(tiny_engine.generate([long], SAMPLING))
    assert list(tiny_engine.generate([tiny_engine.render(PromptRecord("short", "x"))], SAMPLING))


def test_scores_are_the_log_probabilities_of_transformers(tiny_engine: Engine, tiny_r1: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    sequences = [tiny_engine.render(prompt).token_ids for prompt in prompts(3)]
    model = AutoModelForCausalLM.from_pretrained(tiny_r1, dtype=torch.float32)
    full, top = tiny_engine.score(sequences), tiny_engine.score(sequences, num_logprobs=5)
    for token_ids, score, short, experts in zip(
        sequences, full, top, reference_experts(tiny_r1, sequences), strict=True
    ):
        with torch.no_grad():
            expected = model(torch.tensor([token_ids])).logits[0].log_softmax(-1)[:-1].numpy()
        np.testing.assert_allclose(score.logprobs, expected, atol=2e-4)
        own = expected[np.arange(len(token_ids) - 1), token_ids[1:]]
        np.testing.assert_allclose(score.token_logprobs, own, atol=2e-4)
        assert score.token_ids is None and not score.remainder.any()
        np.testing.assert_array_equal(score.experts, experts)
        assert short.token_ids is not None and short.token_ids.shape == (len(token_ids) - 1, 5)
        np.testing.assert_array_equal(short.logprobs, np.sort(score.logprobs, axis=-1)[:, :-6:-1])
        np.testing.assert_array_equal(np.take_along_axis(score.logprobs, short.token_ids, -1), short.logprobs)
        np.testing.assert_allclose(short.remainder, 1 - np.exp(short.logprobs).sum(-1), atol=1e-5)


# Chunked prefill, prefix caching and preemption, which vLLM's CPU build forbids with latent attention: the same model
# with its attention written out. A step takes less than a prompt; the 9 usable blocks hold three requests, but not to
# their end; the first block is the same for all.
CROWDED = ENGINE_ARGUMENTS | {
    "enable_chunked_prefill": True,
    "max_num_batched_tokens": 24,
    "enable_prefix_caching": True,
    "block_size": 32,
    "num_gpu_blocks_override": 10,
    "max_model_len": 160,
}
SHARED_BEGINNING = "Please answer in a few plain words only. "


EDITS = [
    None,
    {"semantics": "drop-renorm", "suppress": [[1, 12], [2, 11], [3, 4]], "stimulate": [[2, 5]]},
    {"semantics": "reroute", "suppress": [[1, 12], [2, 11], [3, 4]]},
    {"semantics": "drop", "suppress": [[1, 12]]},
]


def assert_as_the_eager_engine(
    found: list[dict[str, Any]], edits: list[Any], engine: Engine, rendered: list[RenderedPrompt], max_tokens: int
) -> None:
    """Each prompt's answer and rows under each edit are those of the roomy, eager engine with model runner V1, and the edits'
    are not the base's."""
    for number, given in enumerate(edits):
        edit = None if given is None else RouterEdit(**given)
        for expected in engine.generate(rendered, Sampling(max_tokens=max_tokens), edit=edit):
            one, base = found[expected.index * len(edits) + number], found[expected.index * len(edits)]
            assert one["token_ids"] == expected.token_ids
            np.testing.assert_array_equal(one["experts"], expected.experts)
            assert given is None or not np.array_equal(one["experts"], base["experts"]) or given["semantics"] == "drop"


@pytest.mark.parametrize(
    ("runner", "capture"),
    [
        ("V1", "router_hook"),
        pytest.param("V2", "router_hook", marks=pytest.mark.slow),
        pytest.param("V2", "routed_experts", marks=pytest.mark.slow),
    ],
)
def test_chunks_preemption_and_cached_prefixes_change_no_row(
    tiny_engine: Engine, tiny_r1: Path, tmp_path: Path, runner: str, capture: str
) -> None:
    """Nor does the edit of the next request: every prompt is run as it is and with two edits, whose cached prefixes would be
    wrong for each other."""
    edits = EDITS[:3]
    job = {"model": str(tiny_r1), "count": 16, "prefix": SHARED_BEGINNING, "arguments": CROWDED, "max_tokens": 24}
    if (runner, capture) == ("V2", "router_hook"):
        job["weights"] = "float32"  # which vLLM's own capture does not keep
    environment = {"VLLM_MLA_DISABLE": "1"} | (runner_v2(tmp_path) if runner == "V2" else {})
    found = run_engine(tmp_path, environment, **job, edits=edits)
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert all(facts.values()), f"the test means to provoke all of these: {facts}"
    assert facts["capture"] == capture and ("worker.cpu." in facts["runner"]) == (runner == "V2")
    base = found[:: len(edits)]
    sequences = [ran(one["prompt_token_ids"], one["token_ids"]) for one in base]
    for one, expected in zip(base, reference_experts(tiny_r1, sequences), strict=True):
        np.testing.assert_array_equal(one["experts"], expected)
    rendered = [tiny_engine.render(prompt) for prompt in prompts(16, SHARED_BEGINNING)]
    assert_as_the_eager_engine(found, edits, tiny_engine, rendered, 24)


@pytest.mark.slow
def test_a_compiled_engine_edits_and_records_as_an_eager_one(
    tiny_engine: Engine, tiny_r1: Path, tmp_path: Path
) -> None:
    """Also the second of a process, which takes the first one's graphs from disk."""
    arguments = ENGINE_ARGUMENTS | {"enforce_eager": False}
    found = run_engine(tmp_path, model=str(tiny_r1), count=16, arguments=arguments, edits=EDITS, starts=2)
    rendered = [tiny_engine.render(prompt) for prompt in prompts(16)]
    assert_as_the_eager_engine(found, EDITS, tiny_engine, rendered, MAX_TOKENS)


@pytest.mark.slow
@pytest.mark.parametrize("capture", ["routed_experts", "router_hook"])
def test_vllms_own_capture_is_read(tiny_r1: Path, tmp_path: Path, capture: str) -> None:
    """AuxOutput wants model runner V2 and prefix caching. On a CPU it has nothing but zeros where the routers are not editable,
    so that the hook is taken there."""
    arguments = ENGINE_ARGUMENTS | {"enable_prefix_caching": True}
    job = {"model": str(tiny_r1), "count": 8, "arguments": arguments, "live_edits": capture == "routed_experts"}
    found = run_engine(tmp_path, {"VLLM_MLA_DISABLE": "1"} | runner_v2(tmp_path), **job)
    assert json.loads((tmp_path / "facts.json").read_text())["capture"] == capture
    sequences = [ran(one["prompt_token_ids"], one["token_ids"]) for one in found]
    for one, expected in zip(found, reference_experts(tiny_r1, sequences), strict=True):
        np.testing.assert_array_equal(one["experts"], expected)


@pytest.mark.slow
def test_in_bfloat16_only_near_ties_differ(tiny_r1: Path, tmp_path: Path) -> None:
    arguments = ENGINE_ARGUMENTS | {"dtype": "bfloat16"}
    found = run_engine(tmp_path, model=str(tiny_r1), count=24, arguments=arguments, temperature=1.0)
    sequences = [ran(one["prompt_token_ids"], one["token_ids"]) for one in found]
    expected = reference_experts(tiny_r1, sequences, "bfloat16")
    num_slots = sum(experts.size for experts in expected)
    num_different = sum(
        int((~np.isin(row, other)).sum())
        for one, experts in zip(found, expected, strict=True)
        for row, other in zip(one["experts"].reshape(-1, 4), experts.reshape(-1, 4), strict=True)
    )
    print(f"bfloat16: {num_different} of {num_slots} selected experts differ from transformers")
    assert num_different <= 0.02 * num_slots


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"max_modle_len": 1}, "max_modle_len is not an engine argument of this vLLM"),
        ({"worker_extension_cls": "x"}, "worker_extension_cls is set by MoTE itself"),
        ({"aux_output_config": {"max_bytes": 1}}, "aux_output_config is set by MoTE itself"),
    ],
)
def test_wrong_engine_arguments_are_named(tiny_r1: Path, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Engine(str(tiny_r1), live_edits=True, engine_arguments=arguments)


def test_what_moves_cached_tokens_is_refused_before_the_engine_starts(tiny_r1: Path) -> None:
    with pytest.raises(InputError, match="engine argument kv_offloading_size moves cached tokens"):
        Engine(str(tiny_r1), engine_arguments={"kv_offloading_size": 1.0}, weights="float16")


def test_a_model_that_is_no_known_mixture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(MoteError, match="llama"):
        Engine(str(tmp_path))
