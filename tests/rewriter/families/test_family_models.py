"""Each family row, proven on a model: a tiny checkpoint is rewritten and loaded by transformers, its routers watched.

Legend: T tokens, K selected experts, E experts.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from family_models import NUM_EXPERTS, TINY_MODELS, TinyModel, build_tiny_model, raw_tensors
from routing_capture import Routing, capture, expert_output, experts_modules, experts_output, load, prompt_ids

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import Plan, make_plan
from rewriter.errors import PlanError
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.families.family import RouterLayout
from rewriter.families.lookup import FAMILIES
from rewriter.variant.verify import verify
from rewriter.variant.write import write_variant

Pairs = list[tuple[int, int]]  # (model layer, expert)

# Rows and model types that no test can run, as docs/families.md says.
UNTESTABLE_ROWS = {"openpangu", "bailing_moe", "param2moe", "sarvam", "deepseek_v41"}
# Model types of tested rows whose class is another's: Kimi K2 is DeepSeek-V3 under its own name; Step 3.5 is the language model
# of Step 3.7, the only one of the two that transformers has.
UNTESTED_MODEL_TYPES = {"kimi_k2", "step3p5"}


@dataclass(frozen=True)
class Base:
    """A tiny checkpoint, loaded and run once."""

    tiny: TinyModel
    folder: Path
    layout: RouterLayout
    model: Any
    routing: dict[int, Routing]
    logits: torch.Tensor

    @property
    def biased_layers(self) -> tuple[int, ...]:
        return tuple(layer for layer in self.layout.moe_layers if layer not in self.layout.unbiased_layers)

    def by_frequency(self, layer: int) -> list[int]:
        """Routed experts of a layer, most often selected first."""
        counts = Counter(self.routing[layer].selected.flatten().tolist())
        return sorted(range(NUM_EXPERTS), key=lambda expert: -counts[expert])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=TINY_MODELS, ids=str)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Base]:
    tiny: TinyModel = request.param
    folder = build_tiny_model(tiny, tmp_path_factory.mktemp(str(tiny)) / "base")
    model = load(tiny, folder)
    routing, logits = capture(model, prompt_ids())
    yield Base(tiny, folder, Checkpoint.open(folder).layout, model, routing, logits)


def expert_set(behavior: str, pairs: Pairs) -> ExpertSet:
    experts = [ExpertEntry(layer=layer, expert=expert) for layer, expert in pairs]
    return ExpertSet(layer_index="model", behavior=behavior, experts=experts)


def rewrite(folder: Path, target: Path, suppress: Pairs, stimulate: Pairs, **options: Any) -> Plan:
    """Rewrite a checkpoint as mote-rewrite does, and have mote-verify prove it."""
    plan = make_plan(
        Checkpoint.open(folder),
        expert_set("suppressed", suppress) if suppress else None,
        expert_set("stimulated", stimulate) if stimulate else None,
        EditOptions(**options),
    )
    write_variant(plan, folder, target)
    verify(target, folder, full=True)
    return plan


def changed_tensors(base: Base, variant: Any) -> dict[str, set[int]]:
    """What differs between two loaded models: tensor -> the experts whose part differs."""
    before, after = base.model.state_dict(), variant.state_dict()
    assert before.keys() == after.keys()
    changed = {}
    for name, old in before.items():
        new = after[name]
        assert old.shape == new.shape and old.dtype == new.dtype
        if not torch.equal(old, new):
            rows = (
                (old.flatten() != new.flatten())
                if old.dim() <= 2 and 1 in (old.dim(), old.shape[0])
                else ((old != new).flatten(1).any(1))
            )
            changed[name] = set(rows.nonzero().flatten().tolist())
    return changed


def by_layer(pairs: Pairs) -> dict[int, set[int]]:
    return {layer: {expert for at, expert in pairs if at == layer} for layer, _ in pairs}


def layer_of(name: str) -> int:
    found = re.search(r"layers\.(\d+)\.", name)
    assert found, name
    return int(found.group(1))


def untouched_tensors_are_identical(folder: Path, target: Path, plan: Plan) -> None:
    """Tensors outside the plan hold the same bytes, by a reader that shares no code with the rewriter."""
    before, after = raw_tensors(folder), raw_tensors(target)
    assert before.keys() == after.keys()
    planned = {patch.tensor for patch in plan.patches}
    assert {name for name in before if before[name] != after[name]} == planned
    assert all(before[name][:2] == after[name][:2] for name in planned)


def test_the_row_describes_what_the_class_saves(base: Base) -> None:
    """Layers, numbers and tensor names of the row are those of the saved checkpoint and the loaded model."""
    layout, tensors = base.layout, raw_tensors(base.folder)
    assert tuple(sorted(experts_modules(base.model))) == layout.moe_layers
    assert layout.num_experts == NUM_EXPERTS
    for layer in layout.moe_layers:
        selected = base.routing[layer].selected
        assert selected.shape[-1] == layout.top_k
        assert int(selected.max()) < layout.num_experts + layout.num_other_choices
        for expert in (0, layout.num_experts - 1):
            alternatives = layout.expert_output_names(layer, expert)
            assert any(all(name in tensors for name in names) for names in alternatives), alternatives
    if layout.has_bias:
        for layer in base.biased_layers:
            found = [tensors[name] for name in layout.bias_names(layer) if name in tensors]
            assert len(found) == 1
            assert np.prod(found[0][1]) == layout.num_experts + layout.num_other_choices
    looks_like_bias = re.compile(r"(e_score_correction_bias|expert_bias|router_bias|gate\.bias|router\.bias)$")
    biased = {layer_of(name) for name in tensors if looks_like_bias.search(name)}
    assert biased == (set(base.biased_layers) if layout.has_bias else set())


@pytest.mark.parametrize("suppress_bias", ["-inf", "margin"])
def test_reroute(base: Base, suppress_bias: str, tmp_path: Path) -> None:
    """No suppressed expert is ever selected, every stimulated one always is, and nothing else changed."""
    layout, family = base.layout, base.layout.family
    layers = base.biased_layers
    suppress = [(layer, expert) for layer in layers for expert in base.by_frequency(layer)[:2]]
    # The rarest expert, but of another group, so that no group runs out of live experts.
    group_size = layout.num_experts // layout.num_groups
    stimulate = []
    for layer in layers:
        taken = {expert // group_size for at, expert in suppress if at == layer} if layout.num_groups > 1 else set()
        rare = [expert for expert in reversed(base.by_frequency(layer)) if expert // group_size not in taken]
        stimulate.append((layer, rare[0]))

    if not layout.has_bias:
        with pytest.raises(PlanError, match=f"family {family.name} has no router bias, so .* cannot stimulate"):
            rewrite(base.folder, tmp_path / "variant", [], stimulate, suppress_bias=suppress_bias)
        return
    if layout.score_range is None:
        with pytest.raises(PlanError, match="experts can only be suppressed"):
            rewrite(base.folder, tmp_path / "variant", suppress, stimulate, suppress_bias=suppress_bias)
        stimulate = []
        if suppress_bias == "margin":
            with pytest.raises(PlanError, match="unbounded score"):
                rewrite(base.folder, tmp_path / "variant", suppress, [], suppress_bias=suppress_bias)
            return

    plan = rewrite(base.folder, tmp_path / "variant", suppress, stimulate, suppress_bias=suppress_bias)
    untouched_tensors_are_identical(base.folder, tmp_path / "variant", plan)
    variant = load(base.tiny, tmp_path / "variant")
    changed = changed_tensors(base, variant)
    assert {layer_of(name): rows for name, rows in changed.items()} == by_layer(suppress + stimulate)
    assert len(changed) == len(layers)

    routing, logits = capture(variant, prompt_ids())
    assert torch.isfinite(logits).all()
    for layer in layers:
        selected, before = routing[layer].selected, base.routing[layer].selected
        assert selected.shape == before.shape
        assert all(len(set(row)) == layout.top_k for row in selected.tolist()), "an expert was selected twice"
        for expert in by_layer(suppress)[layer]:
            assert (before == expert).any(), "the test has no power: the base never selects it"
            assert not (selected == expert).any()
        for expert in by_layer(stimulate).get(layer, set()):
            assert not (before == expert).any(1).all(), "the test has no power: the base always selects it"
            assert (selected == expert).any(1).all()
    _weights_are_natural(base, routing, layers[0], suppress, stimulate)


def test_reroute_without_a_bias(base: Base, tmp_path: Path) -> None:
    """A suppressed expert is never the first choice (of one, never a choice), adds nothing, and nothing else changed."""
    layout = base.layout
    if layout.has_bias:
        return
    suppress = [(layer, expert) for layer in layout.moe_layers for expert in base.by_frequency(layer)[:2]]
    plan = rewrite(base.folder, tmp_path / "variant", suppress, [], semantics="reroute")
    untouched_tensors_are_identical(base.folder, tmp_path / "variant", plan)
    variant = load(base.tiny, tmp_path / "variant")
    changed = changed_tensors(base, variant)
    assert all(rows == by_layer(suppress)[layer_of(name)] for name, rows in changed.items())
    assert len(changed) == 2 * len(layout.moe_layers)  # a router and the experts' outputs, which the class stacks

    routing, logits = capture(variant, prompt_ids())
    assert torch.isfinite(logits).all()
    for layer, gone in by_layer(suppress).items():
        seen = routing[layer]
        assert all(len(set(row)) == layout.top_k for row in seen.selected.tolist()), "an expert was selected twice"
        # PhiMoE's second weight is a softmax of its own, without the first: its first choice stands in front.
        first = (
            seen.selected[:, 0] if layout.family.router_norm else seen.selected.gather(1, seen.weights.argmax(1, True))
        )
        for expert in gone:
            assert (base.routing[layer].selected == expert).any(), "the test has no power: the base never selects it"
            assert not (first == expert).any()
            assert not expert_output(experts_modules(variant)[layer], seen, expert).any()


def _weights_are_natural(
    base: Base, routing: dict[int, Routing], first: int, suppress: Pairs, stimulate: Pairs
) -> None:
    """The edited bias decides who is selected and never enters a weight.

    In the first edited layer both models' routers see the same tokens, so an expert that both select for a token has
    the same weight in both where weights are not renormalised, and in the same proportions where they are.
    """
    before, after = base.routing[first], routing[first]
    assert torch.equal(before.hidden, after.hidden)
    width = base.layout.num_experts + base.layout.num_other_choices
    dense_before = torch.zeros(len(before.selected), width).scatter(1, before.selected, before.weights.float())
    dense_after = torch.zeros(len(after.selected), width).scatter(1, after.selected, after.weights.float())
    both = (dense_before > 0) & (dense_after > 0)
    assert both.any()
    if base.layout.renormalize:
        torch.testing.assert_close(dense_before.sum(1), dense_after.sum(1))
        dense_before = dense_before / (dense_before * both).sum(1, keepdim=True)
        dense_after = dense_after / (dense_after * both).sum(1, keepdim=True)
    torch.testing.assert_close(dense_before[both], dense_after[both])


def test_drop(base: Base, tmp_path: Path) -> None:
    """A dropped expert's output is zero, it keeps its selection and share, and all other experts are as they were."""
    layout = base.layout
    first, last = layout.moe_layers[0], layout.moe_layers[-1]
    frequent = base.by_frequency(first)
    dropped = [(first, frequent[0]), (first, frequent[1])]
    if last != first:
        dropped.append((last, base.by_frequency(last)[2]))
    plan = rewrite(base.folder, tmp_path / "variant", dropped, [], semantics="drop")
    untouched_tensors_are_identical(base.folder, tmp_path / "variant", plan)
    variant = load(base.tiny, tmp_path / "variant")
    changed = changed_tensors(base, variant)
    assert {layer_of(name) for name in changed} == {first, last}
    assert all(rows == by_layer(dropped)[layer_of(name)] for name, rows in changed.items())
    # Checkpoints have a tensor an expert where transformers' classes have one for all.
    assert len(changed) == len({re.sub(r"\.experts\.\d+\.", ".experts.", patch.tensor) for patch in plan.patches})

    routing, logits = capture(variant, prompt_ids())
    assert torch.isfinite(logits).all() and not torch.equal(logits, base.logits)
    modules, base_modules = experts_modules(variant), experts_modules(base.model)
    for layer, gone in by_layer(dropped).items():
        seen = base.routing[layer]
        assert any((seen.selected == expert).any() for expert in gone), "the test has no power: the base selects none"
        removed = torch.zeros_like(seen.hidden)
        for expert in gone:
            output = expert_output(base_modules[layer], seen, expert)
            removed += (seen.weights * (seen.selected == expert)).sum(1, keepdim=True) * output
            assert output.abs().max() > 0
            assert not expert_output(modules[layer], seen, expert).any()
        kept = min(set(range(NUM_EXPERTS)) - gone)
        assert torch.equal(expert_output(modules[layer], seen, kept), expert_output(base_modules[layer], seen, kept))
        expected = experts_output(base_modules[layer], seen) - removed
        torch.testing.assert_close(experts_output(modules[layer], seen), expected, atol=1e-5, rtol=1e-4)
    # The routers see the same tokens up to the first layer that was edited, and choose alike there.
    assert torch.equal(base.routing[first].selected, routing[first].selected)
    assert torch.equal(base.routing[first].weights, routing[first].weights)


# One of each kind: experts in tensors of their own (w2, down_proj), stacked beside a bias, and beside a router bias.
SCALED_FAMILIES = [tiny for tiny in TINY_MODELS if str(tiny) in {"mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"}]


@pytest.mark.parametrize("base", SCALED_FAMILIES, ids=str, indirect=True)
def test_a_drop_in_part_and_a_gain(base: Base, tmp_path: Path) -> None:
    """An output times a power of two is that of the base to the bit, and nothing else is another."""
    layer = base.layout.moe_layers[0]
    frequent = base.by_frequency(layer)
    down, up, kept = frequent[0], frequent[-1], frequent[1]
    can_stimulate = base.layout.has_bias and base.layout.family.can_stimulate
    factors = {down: 0.25} | ({up: 2.0} if can_stimulate else {})
    suppress = ExpertSet(
        layer_index="model", behavior="down", experts=[ExpertEntry(layer=layer, expert=down, strength=0.75)]
    )
    stimulate = ExpertSet(layer_index="model", behavior="up", experts=[ExpertEntry(layer=layer, expert=up, gain=2.0)])
    checkpoint = Checkpoint.open(base.folder)
    plan = make_plan(checkpoint, suppress, stimulate if can_stimulate else None, EditOptions())
    assert plan.record.semantics == "drop" and "Scaled outputs are stored exactly." in plan.notes
    write_variant(plan, base.folder, tmp_path / "variant")
    verify(tmp_path / "variant", base.folder, full=True)
    variant = load(base.tiny, tmp_path / "variant")
    seen, modules = base.routing[layer], experts_modules(variant)
    for expert, factor in (factors | {kept: 1.0}).items():
        output = expert_output(experts_modules(base.model)[layer], seen, expert)
        assert output.abs().max() > 0
        assert torch.equal(expert_output(modules[layer], seen, expert), output * factor)
    routing, _ = capture(variant, prompt_ids())
    assert not can_stimulate or (routing[layer].selected == up).any(dim=1).all()


def test_layers_that_route_by_a_table_are_refused(base: Base, tmp_path: Path) -> None:
    layout = base.layout
    if not layout.unbiased_layers:
        assert layout.family.unbiased_layers is None
        return
    layer = layout.unbiased_layers[0]
    with pytest.raises(PlanError, match=f"layer {layer}: .* by a table of tokens.*--semantics drop"):
        rewrite(base.folder, tmp_path / "variant", [(layer, 0)], [])
    plan = rewrite(base.folder, tmp_path / "dropped", [(layer, 0)], [], semantics="drop")
    assert plan.patches


def test_what_could_not_be_tested_is_what_the_table_says() -> None:
    assert {family.name for family in FAMILIES if family.untestable} == UNTESTABLE_ROWS
    tested = {tiny.model_type for tiny in TINY_MODELS}
    expected = {name for family in FAMILIES if not family.untestable for name in family.model_types}
    assert expected - tested == UNTESTED_MODEL_TYPES
    assert not tested - expected
