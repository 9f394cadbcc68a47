"""Families on unmodified vLLM: a tiny checkpoint and its variant are served, the routers' choices recorded (docs/families.md).

Legend: T tokens, K selected experts.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from centroid_proof import resized
from family_models import NUM_EXPERTS, TINY_MODELS, TinyModel, build_tiny_model
from family_serving import NUM_PROMPTS, PROMPT_TOKENS
from routing_capture import Routing, capture, load, prompt_ids

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.families.family import RouterLayout
from rewriter.variant.write import write_variant
from tests.tiny_models import write_tiny_tokenizer

Pairs = Sequence[tuple[int, int]]  # (model layer, expert)

pytestmark = [pytest.mark.slow, pytest.mark.vllm]

VOCABULARY = 320
# Sizes that vLLM's kernels take.
WIDE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 128,
    "head_dim": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64,
    "intermediate_size_mlp": 64,
}
# The models served, with what vLLM reads from a published config and transformers does not write.
REROUTED: dict[str, dict[str, Any]] = {
    "glm4_moe": {},
    "gpt_oss": {},
    "lfm2_moe": {},
    "exaone_moe": {},
    "hy_v3": {"first_k_dense_replace": 1, "route_norm": True, "expert_hidden_dim": 64, "qk_norm": True},
    "afmoe": {"n_group": 1, "topk_group": 1, "route_norm": True, "score_func": "sigmoid"},
}
DROPPED: dict[str, dict[str, Any]] = {"qwen3_moe": {}, "mixtral": {}}


@dataclass(frozen=True)
class Built:
    """A tiny checkpoint in sizes for vLLM, with a tokenizer."""

    tiny: TinyModel
    folder: Path
    layout: RouterLayout

    def by_frequency(self, layer: int) -> list[int]:
        """Experts of a layer, most often selected first, by transformers on random tokens."""
        counts = Counter(self._routing[layer].selected.flatten().tolist())
        return sorted(range(self.layout.num_experts), key=lambda expert: -counts[expert])

    @cached_property
    def _routing(self) -> dict[int, Routing]:
        return capture(load(self.tiny, self.folder), prompt_ids())[0]

    def variant(self, name: str, suppress: Pairs, stimulate: Pairs = (), **options: Any) -> Path:
        """Rewrite it into a folder beside it."""
        plan = make_plan(
            Checkpoint.open(self.folder),
            expert_set("suppressed", suppress),
            expert_set("stimulated", stimulate) if stimulate else None,
            EditOptions(**options),
        )
        target = self.folder.with_name(name)
        write_variant(plan, self.folder, target)
        return target


def build(label: str, folder: Path, config_edits: Mapping[str, Any]) -> Built:
    """Build one family's model, `config_edits` added to its config.json."""
    return build_widened(next(tiny for tiny in TINY_MODELS if str(tiny) == label), folder, config_edits)


def build_widened(tiny: TinyModel, folder: Path, config_edits: Mapping[str, Any]) -> Built:
    """Build a model in sizes for vLLM, `config_edits` added to its config.json."""
    tiny = replace(tiny, config=widened(tiny), config_edits=tuple(config_edits.items()))
    build_tiny_model(tiny, folder)
    write_tiny_tokenizer(folder, VOCABULARY)
    return Built(tiny, folder, Checkpoint.open(folder).layout)


def widened(tiny: TinyModel) -> dict[str, Any]:
    return {key: WIDE.get(key, value) for key, value in tiny.config.items()}


def serve(*folders: Path, num_prompts: int = NUM_PROMPTS, prompt_tokens: int = PROMPT_TOKENS) -> list[dict[str, Any]]:
    """What vLLM did with each folder, see family_serving.py."""
    answer = folders[0].with_name(f"{folders[0].name}-answer.json")
    program = Path(__file__).parents[1] / "family_serving.py"
    threads = {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, program, f"--prompts={num_prompts}", f"--prompt-tokens={prompt_tokens}", answer, *folders],
        env=os.environ | threads,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(answer.read_text())


def expert_set(behavior: str, pairs: Pairs) -> ExpertSet:
    experts = [ExpertEntry(layer=layer, expert=expert) for layer, expert in pairs]
    return ExpertSet(layer_index="model", behavior=behavior, experts=experts)


@pytest.mark.parametrize("label", REROUTED)
def test_reroute_on_vllm(label: str, tmp_path: Path) -> None:
    """Suppressed experts are never selected, stimulated ones always, and no token has an expert twice."""
    built = build(label, tmp_path / "base", REROUTED[label])
    layout = built.layout
    suppress = [(layer, expert) for layer in layout.moe_layers for expert in built.by_frequency(layer)[:2]]
    stimulate = [(layer, built.by_frequency(layer)[-1]) for layer in layout.moe_layers] if layout.score_range else []
    values = ("-inf", "margin") if layout.score_range else ("-inf",)
    folders = [built.variant(value, suppress, stimulate, suppress_bias=value) for value in values]

    base, *variants = serve(built.folder, *folders)
    assert sorted(map(int, base["selected"])) == list(layout.moe_layers)
    for variant in variants:
        for layer in layout.moe_layers:
            rows, before = variant["selected"][str(layer)], base["selected"][str(layer)]
            assert len(rows) >= NUM_PROMPTS * PROMPT_TOKENS
            assert all(len(set(row)) == layout.top_k for row in rows)
            for expert in (expert for at, expert in suppress if at == layer):
                assert any(expert in row for row in before), "the test has no power: the base never selects it"
                assert not any(expert in row for row in rows)
            for expert in (expert for at, expert in stimulate if at == layer):
                assert not all(expert in row for row in before), "the test has no power: the base always selects it"
                assert all(expert in row for row in rows)


# Families of routers without a bias that vLLM's CPU build serves, at 64 experts of which a token selects four. It has no kernel
# for the head sizes of the random Gemma 4 and DeepSeek-V2; routing_capture.py takes no Llama 4 of 64 experts.
REROUTED_BY_ROW = ("qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "granitemoe")
ROW_PROMPTS, ROW_PROMPT_TOKENS = 460, 110


@pytest.mark.parametrize("model_type", REROUTED_BY_ROW)
def test_reroute_centroid_on_vllm(model_type: str, tmp_path: Path) -> None:
    """Of over 50,000 tokens none selects a suppressed expert, many of the base's do (the figures of docs/bias-free.md)."""
    built = build_widened(resized(model_type, 64, 4), tmp_path / "base", {})
    layers = built.layout.moe_layers
    suppress = [(layer, expert) for layer in layers for expert in built.by_frequency(layer)[:2]]
    variant = built.variant("variant", suppress)
    base, rerouted = serve(built.folder, variant, num_prompts=ROW_PROMPTS, prompt_tokens=ROW_PROMPT_TOKENS)
    before, after = num_selections(base, suppress), num_selections(rerouted, suppress)
    num_tokens = min(len(rows) for rows in rerouted["selected"].values())
    print(f"{model_type}: {num_tokens} tokens, {len(suppress)} experts, {before} selections by the base, {after} after")
    assert num_tokens > 50_000
    assert before > 1000, "the test has no power: the base hardly selects them"
    assert after == 0
    assert {(int(layer), expert) for layer, experts in rerouted["zero"].items() for expert in experts} == set(suppress)


def num_selections(answer: Mapping[str, Any], pairs: Pairs) -> int:
    """How many times tokens selected one of the experts."""
    return sum(expert in row for layer, expert in pairs for row in answer["selected"][str(layer)])


@pytest.mark.parametrize("label", DROPPED)
def test_drop_on_vllm(label: str, tmp_path: Path) -> None:
    """The dropped experts' output matrices are zero as vLLM holds them, and no others are."""
    built = build(label, tmp_path / "base", DROPPED[label])
    layers = built.layout.moe_layers
    dropped = {layers[0]: [1, 5], layers[-1]: [NUM_EXPERTS - 1]}
    pairs = [(layer, expert) for layer, experts in dropped.items() for expert in experts]
    base, variant = serve(built.folder, built.variant("variant", pairs, semantics="drop"))
    assert sorted(map(int, base["selected"])) == list(layers)
    assert base["zero"] == {str(layer): [] for layer in layers}
    assert variant["zero"] == {str(layer): dropped.get(layer, []) for layer in layers}


def test_vllms_cpu_build_ignores_ernies_bias(tmp_path: Path) -> None:
    """vLLM 0.32's CPU router reads no bias outside grouped routing, so ERNIE's variants route as their base there.

    When this fails, vLLM reads it: move the family to REROUTED and correct its row's notes.
    """
    built = build("ernie4_5_moe", tmp_path / "base", {})
    layer = built.layout.moe_layers[0]
    base, variant = serve(built.folder, built.variant("variant", [(layer, built.by_frequency(layer)[0])]))
    assert base["selected"] == variant["selected"]
