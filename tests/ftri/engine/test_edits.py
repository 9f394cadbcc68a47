"""Edits that requests carry do what they are called, layer by layer, and touch no other request."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engines import prompts

from ftri.engine.edits import RouterEdit, plan_edit
from ftri.engine.engine import Edits, Engine, Generation, Sampling
from ftri.worker.routers import moe_runners
from rewriter.checkpoint.reader import Checkpoint
from rewriter.errors import ExpertSetError, InputError, PlanError

pytestmark = pytest.mark.vllm
SAMPLING = Sampling(max_tokens=10, temperature=0.0)
COUNT = 12

# weights [N, K], ids [N, K] -> the same after an edit
Reference = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def run(engine: Engine, edit: Edits = None) -> list[Generation]:
    rendered = [engine.render(prompt) for prompt in prompts(COUNT)]
    return sorted(engine.generate(rendered, SAMPLING, edit=edit), key=lambda generation: generation.index)


def runners_of(engine: Engine) -> dict[int, Any]:
    return moe_runners(engine._llm.model_executor.driver_worker.worker.model_runner.get_model())


def same(left: Sequence[Generation], right: Sequence[Generation]) -> bool:
    return all(
        one.token_ids == other.token_ids and np.array_equal(one.experts, other.experts)
        for one, other in zip(left, right, strict=True)
    )


def rows_of(generations: Sequence[Generation], layer_row: int) -> np.ndarray:
    """The experts [T of all, K] of one MoE layer."""
    return np.concatenate([one.experts[:, layer_row] for one in generations if one.experts is not None])


@pytest.fixture(scope="module")
def base(tiny_engine: Engine) -> list[Generation]:
    return run(tiny_engine)


@pytest.fixture(scope="module")
def popular(base: list[Generation]) -> list[tuple[int, int]]:
    """The most selected expert of every MoE layer, as (model layer, expert)."""
    return [(row + 1, int(np.bincount(rows_of(base, row).ravel()).argmax())) for row in range(3)]


@contextmanager
def watched_routers(engine: Engine) -> Iterator[dict[int, list[Any]]]:
    """What each layer's router returned, (logits, weights, ids) per step, seen from outside the edit."""
    seen: dict[int, list[Any]] = {}
    routers = {layer: runner.router for layer, runner in runners_of(engine).items()}

    def watch(layer: int, select: Any) -> Any:
        def selecting(hidden_states: Any, router_logits: Any, *arguments: Any, **keywords: Any) -> Any:
            weights, ids = select(hidden_states, router_logits, *arguments, **keywords)
            seen.setdefault(layer, []).append([value.clone().numpy() for value in (router_logits, weights, ids)])
            return weights, ids

        return selecting

    for layer, router in routers.items():
        router.select_experts = watch(layer, router.select_experts)
    try:
        yield seen
    finally:
        for router in routers.values():
            del router.select_experts


def slow_router(logits: np.ndarray, bias: np.ndarray) -> tuple[list[list[int]], list[dict[int, float]]]:
    """DeepSeek-V3's router for 16 experts in 4 groups of which 2 are kept, top-4, normalised, token by token.

    vLLM applies the routed scaling factor to the experts' summed output, behind the router.
    """
    selections, weights = [], []
    for row in logits.astype(np.float64):
        score = 1 / (1 + np.exp(-row))
        choice = score + bias
        group_scores = [sum(sorted(choice[group * 4 : group * 4 + 4])[-2:]) for group in range(4)]
        kept = sorted(range(4), key=lambda group: group_scores[group])[-2:]
        candidates = [expert for expert in range(16) if expert // 4 in kept]
        chosen = sorted(candidates, key=lambda expert: choice[expert])[-4:]
        total = sum(score[expert] for expert in chosen)
        selections.append(sorted(chosen))
        weights.append({expert: score[expert] / total for expert in chosen})
    return selections, weights


def paper_suppression(weights: dict[int, float], suppressed: Sequence[int]) -> dict[int, float]:
    """If the expert is among the selected top-k: its weight 0, the other selected weights renormalised, nobody steps in."""
    if not set(suppressed) & weights.keys():
        return weights
    total = sum(weights.values())
    left = {expert: 0.0 if expert in suppressed else weight for expert, weight in weights.items()}
    remaining = sum(left.values())
    return {expert: weight * total / remaining if remaining else 0.0 for expert, weight in left.items()}


def paper_stimulation(weights: dict[int, float], stimulated: Sequence[int]) -> dict[int, float]:
    """Added to the top-k whatever its score, the lowest selected one dropped to keep the count; its weight the maximum of
    all weights; renormalised."""
    total, largest = sum(weights.values()), max(weights.values())
    changed = dict(weights)
    for expert in stimulated:
        if expert not in changed:
            others = [other for other in changed if other not in stimulated]
            del changed[min(others, key=lambda other: (changed[other], other))]
        changed[expert] = largest
    scale = total / sum(changed.values())
    return {expert: weight * scale for expert, weight in changed.items()}


def biases(engine: Engine) -> dict[int, np.ndarray]:
    """The checkpoint's own selection bias of every MoE layer."""
    checkpoint = Checkpoint.open(engine.folder)
    entries = {layer: checkpoint.find(engine.layout.bias_names(layer)) for layer in engine.layout.moe_layers}
    return {layer: np.frombuffer(checkpoint.read(entry), np.float32) for layer, entry in entries.items() if entry}


@pytest.mark.parametrize("kind", ["base", "suppress one", "suppress two", "stimulate one", "stimulate two", "both"])
def test_drop_renorm_is_the_papers_edit_layer_by_layer(
    tiny_engine: Engine, popular: list[tuple[int, int]], kind: str
) -> None:
    suppress = {"suppress one": popular, "suppress two": [*popular, (1, (popular[0][1] + 5) % 16)], "both": popular}
    rare = [(layer, (expert + 3) % 16) for layer, expert in popular]
    stimulate = {"stimulate one": rare, "stimulate two": [*rare, (2, (rare[1][1] + 4) % 16)], "both": rare[:2]}
    edit = RouterEdit("drop-renorm", suppress.get(kind, ()), stimulate.get(kind, ()))
    with watched_routers(tiny_engine) as seen:
        generations = run(tiny_engine, None if kind == "base" else edit)
    num_touched = num_tokens = 0
    for layer, bias in biases(tiny_engine).items():
        suppressed = [expert for at, expert in edit.suppress if at == layer]
        stimulated = sorted(expert for at, expert in edit.stimulate if at == layer)
        for logits, weights, ids in seen[layer]:
            for row, (_, natural) in enumerate(zip(*slow_router(logits, bias), strict=True)):
                expected = paper_suppression(natural, suppressed)
                if stimulated:
                    expected = combined(natural, suppressed, stimulated)
                found = dict(zip(ids[row].tolist(), weights[row].tolist(), strict=True))
                assert found.keys() == expected.keys()
                for expert, weight in expected.items():
                    assert found[expert] == pytest.approx(weight, abs=1e-6)
                num_touched += found.keys() != natural.keys() or any(
                    abs(found[expert] - natural[expert]) > 1e-6 for expert in found
                )
                num_tokens += 1
    assert num_tokens >= 3 * sum(len(one.token_ids) for one in generations)
    assert (num_touched == 0) == (kind == "base")


def combined(natural: dict[int, float], suppressed: Sequence[int], stimulated: Sequence[int]) -> dict[int, float]:
    """Stimulation and suppression in one layer: the stimulated take the slots of unsuppressed experts and the router's own
    largest weight, the suppressed get 0, and one renormalisation follows."""
    if not suppressed:
        return paper_stimulation(natural, stimulated)
    total, largest = sum(natural.values()), max(natural.values())
    changed = dict(natural)
    for expert in stimulated:
        if expert not in changed:
            others = [other for other in changed if other not in stimulated and other not in suppressed]
            others = others or [other for other in changed if other not in stimulated]
            del changed[min(others, key=lambda other: (changed[other], other))]
        changed[expert] = largest
    changed = {expert: 0.0 if expert in suppressed else weight for expert, weight in changed.items()}
    scale = total / sum(changed.values())
    return {expert: weight * scale for expert, weight in changed.items()}


def test_records_show_what_was_selected(
    tiny_engine: Engine, base: list[Generation], popular: list[tuple[int, int]]
) -> None:
    rerouted = run(tiny_engine, RouterEdit("reroute", suppress=popular))
    for row, (_, expert) in enumerate(popular):
        assert (rows_of(base, row) == expert).any()
        assert not (rows_of(rerouted, row) == expert).any()
    rare = [(layer, (expert + 3) % 16) for layer, expert in popular]
    for semantics in ("reroute", "drop-renorm"):
        stimulated = run(tiny_engine, RouterEdit(semantics, stimulate=rare))
        for row, (_, expert) in enumerate(rare):
            assert (rows_of(stimulated, row) == expert).any(axis=-1).all()
    # Under drop the selection of the first layer stays as it was: nobody steps in.
    dropped = run(tiny_engine, RouterEdit("drop", suppress=popular[:1]))
    for one, other in zip(dropped, base, strict=True):
        length = len(one.prompt.token_ids)
        assert one.experts is not None and other.experts is not None
        np.testing.assert_array_equal(one.experts[:length, 0], other.experts[:length, 0])


def all_kinds(popular: list[tuple[int, int]]) -> list[RouterEdit]:
    """One edit of every semantics, whole and in part."""
    return [
        RouterEdit("reroute", suppress=popular),
        RouterEdit("drop", suppress=popular, stimulate=[(1, (popular[0][1] + 1) % 16)]),
        RouterEdit("drop-renorm", suppress=popular[:1], stimulate=[(2, (popular[1][1] + 1) % 16)]),
        RouterEdit("drop-renorm", suppress=popular, strength=0.5),
        RouterEdit("reroute", suppress=popular, strength=0.05),
    ]


def test_requests_without_an_edit_are_the_base_bit_for_bit(
    tiny_engine: Engine, base: list[Generation], popular: list[tuple[int, int]]
) -> None:
    scored = [list(one.prompt.token_ids) for one in base[:4]]
    before = [score.logprobs.tobytes() for score in tiny_engine.score(scored)]
    for edit in all_kinds(popular):
        assert not same(run(tiny_engine, edit), base)
        assert same(run(tiny_engine), base)
        # Beside edited requests too, sequence by sequence.
        edits = [None, edit, None, edit]
        beside = [score.logprobs.tobytes() for score in tiny_engine.score(scored, edit=edits)]
        assert [one == other for one, other in zip(beside, before, strict=True)] == [True, False, True, False]


def test_every_prompt_of_a_batch_has_its_own_edit(tiny_engine: Engine, popular: list[tuple[int, int]]) -> None:
    edits = [None, *all_kinds(popular)]
    alone = [run(tiny_engine, edit) for edit in edits]
    mixed = run(tiny_engine, [edits[number % len(edits)] for number in range(COUNT)])
    for number, generation in enumerate(mixed):
        assert same([generation], [alone[number % len(edits)][number]])
    with pytest.raises(InputError, match="fewer edits than prompts"):
        run(tiny_engine, edits)
    with pytest.raises(InputError, match="more edits than prompts"):
        run(tiny_engine, edits * 3)


def test_more_edits_than_slots_take_turns(tiny_engine: Engine) -> None:
    """Screening: each request brings one expert of its own, many more in all than a step can hold."""
    prompt = tiny_engine.render(prompts(1)[0])
    pairs = [(layer, expert) for layer in (1, 2, 3) for expert in range(16)]
    edits = [RouterEdit("reroute", suppress=[pair]) for pair in pairs]
    for generation in tiny_engine.generate([prompt] * len(pairs), Sampling(max_tokens=1), edit=edits):
        layer, expert = pairs[generation.index]
        assert generation.experts is not None
        assert not (generation.experts[:, layer - 1] == expert).any()


def test_strength_goes_from_the_base_to_the_whole_edit(
    tiny_engine: Engine, base: list[Generation], popular: list[tuple[int, int]]
) -> None:
    scored = [list(base[0].prompt.token_ids)]
    (plain,) = tiny_engine.score(scored)
    for semantics in ("reroute", "drop", "drop-renorm"):
        whole = RouterEdit(semantics, suppress=popular)
        assert same(run(tiny_engine, replace(whole, strength=0.0)), base)
        (full,) = tiny_engine.score(scored, edit=whole)
        (nearly,) = tiny_engine.score(scored, edit=replace(whole, strength=1 - 1e-6))
        np.testing.assert_allclose(nearly.token_logprobs, full.token_logprobs, atol=1e-3)
        distances = []
        for strength in (0.1, 0.5, 1.0):
            (part,) = tiny_engine.score(scored, edit=replace(whole, strength=strength))
            distances.append(float(np.abs(part.logprobs - plain.logprobs).sum()))
        assert 0 < distances[0] <= distances[1] <= distances[2]


def test_drop_is_a_zeroed_expert_output(tiny_engine: Engine, popular: list[tuple[int, int]]) -> None:
    """The expert's down projection zeroed where vLLM keeps it, against the live edit, bit for bit."""
    import torch

    scored = [tiny_engine.render(prompt).token_ids for prompt in prompts(4)]
    edit = RouterEdit("drop", suppress=popular)
    dropped = [score.logprobs.tobytes() for score in tiny_engine.score(scored, edit=edit)]
    runners, kept = runners_of(tiny_engine), {}
    for layer, expert in popular:
        weight = runners[layer].routed_experts.w2_weight
        kept[layer] = weight[expert].clone()
        with torch.no_grad():
            weight[expert].zero_()
    try:
        zeroed = [score.logprobs.tobytes() for score in tiny_engine.score(scored)]
    finally:
        for layer, expert in popular:
            with torch.no_grad():
                runners[layer].routed_experts.w2_weight[expert].copy_(kept[layer])
    assert dropped == zeroed


def test_wrong_edits_are_named(tiny_engine: Engine, tiny_r1: Path) -> None:
    layout, checkpoint = tiny_engine.layout, Checkpoint.open(tiny_r1)
    for edit, sentence in (
        (RouterEdit("reroute"), "names no expert"),
        (RouterEdit("reroute", suppress=[(0, 1)]), "layer 0 expert 1, expected a MoE layer of 1..3"),
        (RouterEdit("drop", suppress=[(1, 16)]), "layer 1 expert 16"),
        (RouterEdit("drop", suppress=[(1, 2)], stimulate=[(1, 2)]), "layer 1 expert 2 more than once"),
        (RouterEdit("drop-renorm", stimulate=[(1, e) for e in range(5)]), "5 experts are stimulated"),
    ):
        with pytest.raises(ExpertSetError, match=sentence):
            plan_edit(edit, checkpoint, layout)
    with pytest.raises(InputError, match="semantics 'mute' is not known"):
        plan_edit(RouterEdit("mute", suppress=[(1, 1)]), checkpoint, layout)  # type: ignore[arg-type]
    for strength in (-0.1, 1.5, float("nan")):
        with pytest.raises(InputError, match="expected a number of 0 to 1"):
            plan_edit(RouterEdit("drop", suppress=[(1, 1)], strength=strength), checkpoint, layout)
    with pytest.raises(PlanError, match="layer 1"):
        run(tiny_engine, RouterEdit("reroute", suppress=[(1, expert) for expert in range(13)]))
