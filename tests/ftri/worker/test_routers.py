"""Every token's own edit against a slow reference, token by token, without an engine."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from ftri.worker.request import RequestEdit
from ftri.worker.routers import edit_routing, editable_class, routing_rule
from ftri.worker.selection import score
from ftri.worker.tables import EVERYTHING, EditTables

NUM_EXPERTS, TOP_K = 16, 4
MINUS_INFINITY = float("-inf")


@dataclass
class Kind:
    """One kind of router of vLLM's, as a model would make it."""

    scoring: str = "sigmoid"
    groups: int | None = None
    kept: int | None = None
    has_bias: bool = False
    renormalize: bool = True
    scale: float = 1.0
    bias: torch.Tensor | None = field(default=None, repr=False)


KINDS = {
    "DeepSeek-V3": Kind(groups=4, kept=2, has_bias=True, scale=2.5),
    "GLM-4.5": Kind(groups=1, kept=1, has_bias=True),
    "DeepSeek-V2": Kind("softmax", groups=4, kept=2, renormalize=False, scale=16.0),
    "Qwen3-MoE": Kind("softmax"),
    "OLMoE": Kind("softmax", renormalize=False),
}


def make_router(kind: Kind) -> Any:
    from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

    generator = torch.Generator().manual_seed(5)
    kind.bias = 4 + torch.randn(NUM_EXPERTS, generator=generator) * 0.1 if kind.has_bias else None
    router = CPURouter(
        top_k=TOP_K,
        global_num_experts=NUM_EXPERTS,
        use_grouped_topk=kind.groups is not None,
        num_expert_group=kind.groups,
        topk_group=kind.kept,
        renormalize=kind.renormalize,
        scoring_func=kind.scoring,
        routed_scaling_factor=kind.scale,
        e_score_correction_bias=kind.bias,
    )
    router.__class__ = editable_class(type(router))
    router.mote_tables, router.mote_row, router.mote_rule = None, 0, routing_rule(router)
    return router


def make_tables(num_slots: int = 9, is_eager: bool = False) -> EditTables:
    return EditTables([3, 7], NUM_EXPERTS, TOP_K, num_slots, 512, torch.device("cpu"), is_eager)


def slow_selection(logits: np.ndarray, kind: Kind, bias: dict[int, float]) -> dict[int, float]:
    """One token's selection, expert to weight: score, bias, groups, top-k, written out in float64."""
    values = logits.astype(np.float64)
    if kind.scoring == "sigmoid":
        scores = [1 / (1 + np.exp(-value)) for value in values]
    else:
        total = sum(np.exp(value) for value in values)
        scores = [np.exp(value) / total for value in values]
    own = [0.0] * NUM_EXPERTS if kind.bias is None else kind.bias.tolist()
    choice = [scores[expert] + bias.get(expert, own[expert]) for expert in range(NUM_EXPERTS)]
    candidates = list(range(NUM_EXPERTS))
    if kind.groups and kind.groups > 1:
        size = NUM_EXPERTS // kind.groups
        best = [sorted(choice[group * size : (group + 1) * size])[-2:] for group in range(kind.groups)]
        worth = [sum(two) if kind.has_bias else max(two) for two in best]
        kept = sorted(range(kind.groups), key=lambda group: worth[group])[-kind.kept :]  # type: ignore[operator]
        candidates = [expert for expert in candidates if expert // size in kept]
    chosen = sorted(candidates, key=lambda expert: choice[expert])[-TOP_K:]
    total = sum(scores[expert] for expert in chosen) if kind.renormalize else 1.0
    # vLLM's plain softmax routers leave the factor to others.
    scale = kind.scale if kind.groups else 1.0
    return {expert: scores[expert] / total * scale for expert in chosen}


def slow_edit(natural: dict[int, float], layer: int, edit: RequestEdit) -> dict[int, float]:
    """The paper's stimulation, then suppression, then one renormalisation of what was touched."""
    factor = {expert: value for at, expert, value in edit.factor if at == layer}
    stimulated = sorted(expert for at, expert in edit.stimulate if at == layer)
    total, largest, changed = sum(natural.values()), max(natural.values()), dict(natural)
    for expert in stimulated:
        if expert in natural:
            changed[expert] = natural[expert] + edit.strength * (largest - natural[expert])
            continue
        others = [other for other in natural if other in changed and other not in stimulated]
        preferred = [other for other in others if factor.get(other, 1.0) == 1] or others
        del changed[min(preferred, key=lambda other: (natural[other], other))]
        changed[expert] = edit.strength * largest
    changed = {expert: weight * factor.get(expert, 1.0) for expert, weight in changed.items()}
    is_touched = bool(stimulated) or any(factor.get(expert, 1.0) != 1 for expert in natural)
    if edit.renormalize and is_touched:
        left = sum(changed.values())
        changed = {expert: weight * total / left if left else 0.0 for expert, weight in changed.items()}
    return changed


def random_edit(generator: np.random.Generator) -> RequestEdit:
    """Any mixture of what an edit can say, of both layers."""
    factor, stimulate, bias, centroid = [], [], [], []
    strength = float(generator.choice([1.0, 0.3]))
    for layer in (3, 7):
        experts = generator.permutation(NUM_EXPERTS).tolist()
        suppressed, stimulated = experts[: generator.integers(0, 7)], experts[7 : 7 + generator.integers(0, TOP_K + 1)]
        if generator.random() < 0.5:
            values = [MINUS_INFINITY if generator.random() < 0.7 else float(generator.normal()) for _ in suppressed[:4]]
            bias += [(layer, expert, value) for expert, value in zip(suppressed[:4], values, strict=True)]
        elif generator.random() < 0.3:
            # One: the logits of several would be equal, and which of them is selected a matter of taste.
            centroid += [(layer, expert) for expert in suppressed[:1]]
            factor += [(layer, expert, 0.0) for expert in suppressed[:1]]
        else:
            factor += [(layer, expert, 1 - strength) for expert in suppressed]
            stimulate += [(layer, expert) for expert in stimulated]
    return RequestEdit(bias, factor, stimulate, bool(generator.random() < 0.7), strength, centroid)


def with_means(logits: np.ndarray, layer: int, edit: RequestEdit) -> np.ndarray:
    """One token's logits in which a centroid's is the mean of the others'."""
    moved = [expert for at, expert in edit.centroid if at == layer]
    others = [float(value) for expert, value in enumerate(logits) if expert not in moved]
    return np.array([sum(others) / len(others) if expert in moved else value for expert, value in enumerate(logits)])


@pytest.mark.parametrize("name", KINDS)
def test_every_token_gets_its_own_edit(name: str) -> None:
    kind, generator = KINDS[name], np.random.default_rng(11)
    router, plain = make_router(kind), make_router(kind)
    num_cases = 0
    for _ in range(12):
        tables = make_tables(is_eager=bool(generator.random() < 0.5))
        router.mote_tables = tables
        edits = [None if number % 3 == 0 else (number, random_edit(generator)) for number in range(9)]
        counts = generator.integers(1, 12, len(edits)).tolist()
        num_padding = 3
        tables.write_step(edits, counts)
        per_token = [edit for edit, count in zip(edits, counts, strict=True) for _ in range(count)]
        for row, layer in enumerate((3, 7)):
            router.mote_row = row
            logits = torch.tensor(generator.normal(size=(len(per_token) + num_padding, NUM_EXPERTS)) * 2).float()
            hidden = torch.zeros(len(logits), 8)
            weights, ids = router.select_experts(hidden, logits)
            base_weights, base_ids = plain.select_experts(hidden, logits)
            for token, edit in enumerate([*per_token, *[None] * num_padding]):
                found = dict(zip(ids[token].tolist(), weights[token].tolist(), strict=True))
                if edit is None:
                    assert torch.equal(weights[token], base_weights[token]) and torch.equal(ids[token], base_ids[token])
                    continue
                bias = {expert: value for at, expert, value in edit[1].bias if at == layer}
                natural = slow_selection(with_means(logits[token].numpy(), layer, edit[1]), kind, bias)
                expected = slow_edit(natural, layer, edit[1])
                assert found.keys() == expected.keys()
                for expert, weight in expected.items():
                    assert found[expert] == pytest.approx(weight, abs=1e-6 * kind.scale)
                num_cases += 1
    assert num_cases > 500


def test_slots_are_reused_when_edits_outnumber_them() -> None:
    tables = make_tables(num_slots=4)
    generator = np.random.default_rng(3)
    edits = [(number, random_edit(generator)) for number in range(10)]
    for start in range(20):
        step = [edits[(start + offset) % 10] for offset in (0, 3, 6)]
        tables.write_step(step, [1, 2, 1])
        for token, edit in zip((0, 1, 3), step, strict=True):
            fresh = make_tables(num_slots=2)
            fresh.write_step([edit], [1])
            slot = int(tables.slots[token])
            for mine, other in (
                (tables.factor[:, slot], fresh.factor[:, 1]),
                (tables.stimulated[:, slot], fresh.stimulated[:, 1]),
                (tables.is_centroid[:, slot], fresh.is_centroid[:, 1]),
                (tables.is_rerouted[:, slot], fresh.is_rerouted[:, 1]),
                (tables.bias[:, slot], fresh.bias[:, 1]),
                (tables.renormalizes[slot], fresh.renormalizes[1]),
                (tables.strength[slot], fresh.strength[1]),
            ):
                assert torch.equal(torch.nan_to_num(mine, nan=7.0), torch.nan_to_num(other, nan=7.0))
    # The base has slot 0, which nothing is ever written to.
    tables.write_step([None], [4])
    assert not tables.slots.any() and (tables.factor[:, 0] == 1).all() and tables.bias[:, 0].isnan().all()


def test_a_step_of_the_same_requests_is_not_written_again() -> None:
    tables, edit = make_tables(), ("a", RequestEdit(factor=[(7, 2, 0.0)], renormalize=True))
    for _ in range(2):
        tables.write_step([None, edit], [1, 2])
        assert tables.slots[:4].tolist() == [0, 1, 1, 0]
        assert tables.starts[:4, 0].tolist() == [0, NUM_EXPERTS, NUM_EXPERTS, 0]
        assert tables.token_renormalizes[:4, 0].tolist() == [False, True, True, False]
        tables.slots[3] = 5  # what a second writing would take back
        tables.write_step([None, edit], [1, 2])
        assert tables.slots[3] == 5
        tables.write_step([edit], [4])
        assert tables.slots[:5].tolist() == [1, 1, 1, 1, 0]
        tables.write_step([None], [2])
        assert not tables.slots.any() and not tables.starts.any() and not tables.token_renormalizes.any()


def test_an_eager_step_computes_only_what_its_edits_need() -> None:
    tables = make_tables(is_eager=True)
    assert tables.needed == [0, 0]
    tables.write_step([("a", RequestEdit(factor=[(7, 2, 0.0)])), None], [3, 2])
    assert tables.needed[0] == 0 and tables.needed[1] != 0
    tables.write_step([None], [2])
    assert tables.needed == [0, 0]
    assert make_tables(is_eager=False).needed == [EVERYTHING, EVERYTHING]


def test_shared_experts_behind_the_selection_stay() -> None:
    """Some kernels run shared experts along, in columns behind the selected ones, and mark padding by an id of -1."""
    tables = make_tables()
    tables.write_step([("a", RequestEdit(factor=[(3, 1, 0.0)], renormalize=True))], [2])
    weights = torch.tensor([[0.4, 0.3, 0.2, 0.1, 1.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    ids = torch.tensor([[1, 2, 3, 4, 16], [-1, -1, -1, -1, 16]], dtype=torch.int32)
    edited, selected = edit_routing(weights, ids, tables, 0, lambda bias, is_centroid: (weights[:, :4], ids[:, :4]))
    assert torch.equal(selected, ids)
    np.testing.assert_allclose(edited[0], [0.0, 0.5, 1 / 3, 1 / 6, 1.0], rtol=1e-6)
    assert edited[1].tolist() == weights[1].tolist()


def test_an_unknown_scoring_function_is_named() -> None:
    with pytest.raises(ValueError, match="'cosine' has no formula"):
        score(torch.zeros(1, 4), "cosine")


def test_an_edit_survives_the_way_to_the_workers() -> None:
    edit = random_edit(np.random.default_rng(1))
    assert RequestEdit.from_plain(edit.as_plain()) == edit
