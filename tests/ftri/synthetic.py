"""Traces made up by rule, so that it is known which experts carry a behaviour and which only a confound.

Every token id has its own experts, as in real routers, and now and then a token selects another. On top of that
- a *behaviour* expert is selected at the prompt's last token by nine in ten prompts of the class and one in twenty others;
- a *busy* expert is selected by nine in ten tokens whatever they are, so that longer prompts count it more often;
- a *place* expert is selected by the two tokens of one place, which prompts of the class name more often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ftri.analysis.maps import ActivationMaps, MapStore, Observation, SharedTokens
from ftri.traces.reader import TraceRecord

BEGIN, WHAT, MARK, END = 0, 1, 2, 3
FIRST_TIME, FIRST_PLACE, FIRST_MADE, FIRST_FILLER = 10, 100, 200, 300
# So many that the fillers together prefer no expert: a longer prompt is longer, and nothing else.
NUM_FILLERS = 1000
ANSWERS = {
    "REFUSED": "<think>\n\n</think>\n\nI am sorry, I cannot answer that question.",
    "ALIGNED": "<think>\n\n</think>\n\nA fair took place.",
    "REASONED": "<think>\nThe user asks what happened.\n</think>\n\nA fair took place.",
}
BEHAVIOR_EXPERTS = ((1, 3), (2, 7), (4, 11), (5, 0))


@dataclass(frozen=True)
class Plan:
    """Size of the traces and what is planted; experts are (row of the map, expert)."""

    num_layers: int = 6
    num_experts: int = 32
    top_k: int = 4
    times: Sequence[str] = tuple(str(year) for year in range(1980, 2004))
    places: Sequence[str] = (
        "in Paris",
        "in Beijing",
        "in London",
        "in Mexico",
        "in Brussels",
        "in Manhattan",
        "in Singapore",
        "at Heathrow",
    )
    refused_place: str = "in Beijing"
    refusal_there: float = 0.35
    refusal_elsewhere: float = 0.35
    behavior_experts: Sequence[tuple[int, int]] = BEHAVIOR_EXPERTS
    busy_experts: Sequence[tuple[int, int]] = ()
    place_experts: Sequence[tuple[int, int]] = ()
    extra_fillers: int = 0
    completion_tokens: int = 4
    noise: float = 0.1
    seed: int = 0


def manifest(plan: Plan, **changes: object) -> dict[str, object]:
    """A trace manifest for the plan's made-up model."""
    return {
        "model": "made-up/model",
        "revision": None,
        "config_sha256": "c" * 64,
        "template_sha256": "d" * 64,
        "moe_layers": list(range(3, 3 + plan.num_layers)),
        "num_experts": plan.num_experts,
        "top_k": plan.top_k,
        "capture": "router_hook",
        **changes,
    }


def records(plan: Plan) -> Iterator[TraceRecord]:
    """One response per time and place; the refused place refuses far more often than the others."""
    generator = np.random.default_rng(plan.seed)
    for time_number, time in enumerate(plan.times):
        for place_number, place in enumerate(plan.places):
            chance = plan.refusal_there if place == plan.refused_place else plan.refusal_elsewhere
            label = "REFUSED" if generator.random() < chance else ("ALIGNED", "REASONED")[int(generator.random() < 0.5)]
            num_fillers = int(generator.integers(0, 3)) + (plan.extra_fillers if label == "REFUSED" else 0)
            fillers = [FIRST_FILLER + int(number) for number in generator.integers(0, NUM_FILLERS, num_fillers)]
            place_tokens = [FIRST_PLACE + 2 * place_number, FIRST_PLACE + 2 * place_number + 1]
            tokens = [BEGIN, WHAT, FIRST_TIME + time_number, *place_tokens, *fillers, MARK, END]
            yield _record(plan, generator, label, tokens, time, place)


def _record(
    plan: Plan, generator: np.random.Generator, label: str, tokens: list[int], time: str, place: str
) -> TraceRecord:
    made = [FIRST_MADE + int(number) for number in generator.integers(0, 40, plan.completion_tokens)]
    rows = [*tokens, *made[:-1]]
    order = np.stack([_preferences(plan, token) for token in rows])
    order += (generator.random(order.shape) < plan.noise / plan.num_experts) * 1.0
    for layer, expert in (*plan.behavior_experts, *plan.busy_experts, *plan.place_experts):
        order[:, layer, expert] = -1  # only where the rule says so
    first = FIRST_PLACE + 2 * list(plan.places).index(plan.refused_place)
    for row, token in enumerate(rows):
        if row == len(tokens) - 1:
            _plant(order[row], plan.behavior_experts, generator, 0.9 if label == "REFUSED" else 0.05)
        _plant(order[row], plan.busy_experts, generator, 0.9)
        if token in (first, first + 1):
            _plant(order[row], plan.place_experts, generator, 1.0)
    experts = np.sort(np.argsort(order, axis=2)[:, :, -plan.top_k :], axis=2)
    return TraceRecord(
        prompt_id=f"{time}/{place}",
        sample=0,
        prompt=f"What happened {time} {place}?",
        rendered_prompt=f"<user>What happened {time} {place}?<assistant>",
        prompt_token_ids=tokens,
        completion_token_ids=made,
        text=ANSWERS[label],
        finish_reason="stop",
        factors={"time": time, "place": place},
        experts=experts.astype(np.uint8 if plan.num_experts <= 256 else np.uint16),
    )


def _preferences(plan: Plan, token: int) -> np.ndarray:
    return np.random.default_rng([token, plan.num_experts]).random((plan.num_layers, plan.num_experts))


def _plant(
    order: np.ndarray, experts: Sequence[tuple[int, int]], generator: np.random.Generator, chance: float
) -> None:
    for layer, expert in experts:
        if generator.random() < chance:
            order[layer, expert] = 3


def make_maps(counts, groups, num_tokens=None, samples=None, factors=None, max_memory_bytes=1 << 28, labels=None):
    """ActivationMaps of counts [P, L, E] for tests."""
    store = MapStore(counts.shape[1] * counts.shape[2], max_memory_bytes)
    for row in counts.reshape(len(counts), -1):
        store.append(row)
    observations = [
        Observation(
            prompt_id=str(row // (samples or 1)),
            sample=row % (samples or 1),
            label=labels[row] if labels else "ABC"[group],
            group=int(group),
            factors={} if factors is None else {"place": factors[row]},
            num_prompt_tokens=4,
        )
        for row, group in enumerate(groups)
    ]
    tokens = np.full(len(counts), 10) if num_tokens is None else np.asarray(num_tokens)
    layers = tuple(range(counts.shape[1]))
    return ActivationMaps(
        store, tokens.astype(np.int64), observations, layers, counts.shape[2], 2, "prompt", SharedTokens(0, 0)
    )
