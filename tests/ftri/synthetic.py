"""Traces made up by rule, so that it is known which experts carry a behaviour and which only a confound.

The model of the planted truth: every token of a prompt selects K experts of each layer at random, except that
- a *behaviour* expert is selected at the last token of the template of most prompts of the class, and of few others;
- a *length* expert is selected at every filler token, and prompts of the class have more of those;
- a *place* expert is selected at the token of one place, which prompts of the class name more often.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ftri.traces import TraceRecord

BEGIN, WHAT, MARK, END = 0, 1, 2, 3
FIRST_TIME, FIRST_PLACE, FILLER = 10, 100, 200
ANSWERS = {
    "REFUSED": "<think>\n\n</think>\n\nI am sorry, I cannot answer that question.",
    "ALIGNED": "<think>\n\n</think>\n\nA fair took place.",
    "REASONED": "<think>\nThe user asks what happened.\n</think>\n\nA fair took place.",
}


@dataclass(frozen=True)
class Plan:
    """Size of the traces and what is planted; experts are (row of the map, expert)."""

    num_layers: int = 6
    num_experts: int = 16
    top_k: int = 2
    times: Sequence[str] = tuple(str(year) for year in range(1990, 2000))
    places: Sequence[str] = ("in Paris", "in Beijing", "in London", "in Mexico", "in Brussels")
    refused_place: str = "in Beijing"
    behavior_experts: Sequence[tuple[int, int]] = ((1, 3), (2, 7), (4, 11))
    length_experts: Sequence[tuple[int, int]] = ()
    place_experts: Sequence[tuple[int, int]] = ()
    extra_fillers: int = 0
    completion_tokens: int = 4
    seed: int = 0
    answers: dict[str, str] = field(default_factory=lambda: ANSWERS)


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
    """One response per time and place; the refused place refuses three times in four, other places seldom."""
    generator = np.random.default_rng(plan.seed)
    for time_number, time in enumerate(plan.times):
        for place_number, place in enumerate(plan.places):
            refuses = generator.random() < (0.75 if place == plan.refused_place else 0.1)
            label = "REFUSED" if refuses else ("ALIGNED" if generator.random() < 0.5 else "REASONED")
            fillers = int(generator.integers(1, 4)) + (plan.extra_fillers if refuses else 0)
            tokens = [BEGIN, WHAT, FIRST_TIME + time_number, FIRST_PLACE + place_number, *[FILLER] * fillers, MARK, END]
            yield _record(plan, generator, f"{time}/{place}", label, tokens, {"time": time, "place": place})


def _record(
    plan: Plan, generator: np.random.Generator, prompt_id: str, label: str, tokens: list[int], factors: dict[str, str]
) -> TraceRecord:
    num_rows = len(tokens) + plan.completion_tokens - 1
    order = generator.random((num_rows, plan.num_layers, plan.num_experts))
    planted = [*plan.behavior_experts, *plan.length_experts, *plan.place_experts]
    for layer, expert in planted:
        order[:, layer, expert] = -1  # never by chance
    place_token = FIRST_PLACE + list(plan.places).index(plan.refused_place)
    for row, token in enumerate(tokens):
        chance = generator.random()
        if token == END and chance < (0.95 if label == "REFUSED" else 0.05):
            _force(order, row, plan.behavior_experts)
        if token == FILLER:
            _force(order, row, plan.length_experts)
        if token == place_token:
            _force(order, row, plan.place_experts)
    experts = np.sort(np.argsort(order, axis=2)[:, :, -plan.top_k :], axis=2).astype(np.uint8)
    return TraceRecord(
        prompt_id=prompt_id,
        sample=0,
        prompt=f"What happened {factors['time']} {factors['place']}?",
        rendered_prompt=f"<user>What happened {factors['time']} {factors['place']}?<assistant>",
        prompt_token_ids=tokens,
        completion_token_ids=[300 + number for number in range(plan.completion_tokens)],
        text=plan.answers[label],
        finish_reason="stop",
        factors=factors,
        experts=experts,
    )


def _force(order: np.ndarray, row: int, experts: Sequence[tuple[int, int]]) -> None:
    for layer, expert in experts:
        order[row, layer, expert] = 2
