"""Refusals that protect people, before and after: a harm set and XSTest, so that a variant that stops protecting is visible."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, Field

from eval.answers.arms import Arm, Request, Sampling
from eval.answers.journal import Collector
from eval.answers.plan import sampling_of, spread
from eval.display.drawing import dumbbell
from eval.display.words import interval_words, p_words, percent, rate_words
from eval.measures.measure import Found, Measure, Part, Scene, Shown, SideBySide
from eval.options import EvalRequest
from eval.outcomes.held_out import cluster_of
from eval.outcomes.observed import Outcomes, observe
from eval.outcomes.statistics import Interval, Rate, clustered_ratio, exact_mcnemar, wilson
from eval.outcomes.targets import REFUSALS
from ftri.labels.names import Behavior
from ftri.prompts.sets import PromptRecord, PromptSet, load_prompt_set

EXPECTED_REFUSED = "should be refused"
EXPECTED_ANSWERED = "should be answered"


class SafetyGroup(BaseModel):
    """Refusals in one group of a safety set (XSTest: safe and unsafe; else all)."""

    group: str
    expectation: str
    before: Rate
    after: Rate
    difference: Interval
    gained: int
    lost: int
    p_value: float


class SafetySet(BaseModel):
    """Refusal rates before and after on prompts where refusing protects people, or where it should not happen."""

    name: str
    source: dict[str, str | None]
    arm: str
    num_prompts: int
    groups: list[SafetyGroup]
    damaged_before: Rate
    damaged_after: Rate
    cut_before: int = Field(0, description="Answers labelled TRUNCATED, which count as no refusal.")
    cut_after: int = 0


@dataclass(frozen=True)
class SafetyInput:
    """One safety set to run; `grouped` sets are split into safe and unsafe prompts."""

    name: str
    prompts: PromptSet
    grouped: bool


def group_of(prompt: PromptRecord) -> str:
    """`unsafe` or `safe` by XSTest's own columns (`label`, or a `type` that begins with contrast); `harmful` in any other set."""
    label = prompt.factors.get("label", "").lower()
    if label in ("safe", "unsafe"):
        return label
    kind = prompt.factors.get("type", "").lower()
    if kind:
        return "unsafe" if kind.startswith("contrast") else "safe"
    return "harmful"


def measure_safety(
    collector: Collector,
    name: str,
    prompt_set: PromptSet,
    base: Arm,
    variant: Arm,
    sampling: Sampling,
    *,
    grouped: bool,
    label_cut: bool,
    seed: int,
) -> tuple[SafetySet, Outcomes, Outcomes, list[Request]]:
    """Ask both arms and compare their refusals; `grouped` splits the set as XSTest is split."""
    prompts = prompt_set.records
    requests = [
        Request(prompt.prompt_id, 0, (("user", prompt.text),), sampling.with_seed_for(0, prompt.prompt_id, 0))
        for prompt in prompts
    ]
    before = observe(collector, base, requests, label_cut=label_cut)
    after = observe(collector, variant, requests, label_cut=label_cut)
    groups = [group_of(prompt) if grouped else "harmful" for prompt in prompts]
    refused_before = [label in REFUSALS for label in before.behaviors]
    refused_after = [label in REFUSALS for label in after.behaviors]
    measured = [
        _group(
            name,
            [p for p, group in enumerate(groups) if group == wanted],
            refused_before,
            refused_after,
            prompts,
            wanted,
            seed,
        )
        for wanted in sorted(set(groups))
    ]
    damaged_before, damaged_after = before.damaged(), after.damaged()
    result = SafetySet(
        name=name,
        source=prompt_set.source,
        arm=variant.name,
        num_prompts=len(prompts),
        groups=measured,
        damaged_before=wilson(sum(damaged_before), len(prompts)),
        damaged_after=wilson(sum(damaged_after), len(prompts)),
        cut_before=sum(label == Behavior.TRUNCATED for label in before.behaviors),
        cut_after=sum(label == Behavior.TRUNCATED for label in after.behaviors),
    )
    return result, before, after, requests


def _group(
    name: str,
    positions: Sequence[int],
    before: Sequence[bool],
    after: Sequence[bool],
    prompts: Sequence[PromptRecord],
    group: str,
    seed: int,
) -> SafetyGroup:
    import numpy as np

    then = [before[position] for position in positions]
    now = [after[position] for position in positions]
    test = exact_mcnemar(then, now)
    clusters = [cluster_of(prompts[position]) for position in positions]
    return SafetyGroup(
        group=group,
        expectation=EXPECTED_ANSWERED if group == "safe" else EXPECTED_REFUSED,
        before=wilson(sum(then), len(then)),
        after=wilson(sum(now), len(now)),
        difference=clustered_ratio(
            np.asarray(now, float) - np.asarray(then, float), np.ones(len(now)), clusters, seed=seed
        ),
        gained=test.gained,
        lost=test.lost,
        p_value=test.p_value,
    )


def load(request: EvalRequest) -> list[SafetyInput]:
    """The harm set and XSTest, where they were asked for."""
    sets = []
    for name, spec, grouped in (("harm set", request.harm, False), ("XSTest", request.xstest, True)):
        if spec is not None:
            loaded = load_prompt_set(spec)
            # Two sets may number their prompts alike.
            renamed = [
                PromptRecord(f"{name}/{one.prompt_id}", one.text, one.factors)
                for one in spread(loaded.records, request.limit)
            ]
            sets.append(SafetyInput(name, PromptSet(renamed, loaded.source), grouped))
    return sets


def parts(sets: Sequence[SafetyInput], scene: Scene) -> Iterable[Part]:
    """One a set."""
    return [Part(one.name, partial(protection, scene, one)) for one in sets]


def protection(scene: Scene, one: SafetyInput) -> Found:
    """Refusals on one set, before and after."""
    scene.say(f"{one.name}: {len(one.prompts.records)} prompts")
    result, before, after, requests = measure_safety(
        scene.collector,
        one.name,
        one.prompts,
        scene.plan.base,
        scene.plan.primary,
        sampling_of(scene.options),
        grouped=one.grouped,
        label_cut=scene.options.label_cut,
        seed=scene.options.seed,
    )
    scene.transcripts.append(SideBySide(one.name, requests, [before, after]))
    return {"safety": [result]}


def lines(found: Sequence[SafetySet], shown: Shown) -> list[str]:
    """One line a group."""
    return [
        f"{safety.name}, {group.group} ({group.expectation}): refused {percent(group.before.rate)}"
        f" -> {percent(group.after.rate)} ({p_words(group.p_value)})"
        for safety in found
        for group in safety.groups
    ] + cut_sentences(found)


def cut_sentences(found: Sequence[SafetySet]) -> list[str]:
    """Of how many answers it is not known whether they refuse, a sentence a set that has some."""
    return [
        f"{one.name}: cut off before their end, and counted as no refusal: {one.cut_before} of {one.num_prompts}"
        f" answers of the base, {one.cut_after} of the variant. A longer --max-tokens lets them end."
        for one in found
        if one.cut_before or one.cut_after
    ]


def protection_rows(found: Sequence[SafetySet]) -> list[tuple[str, ...]]:
    """(set, prompts, base, variant, change) of the card's own section on safety."""
    return [
        (
            safety.name,
            f"{group.group}, {group.expectation}",
            rate_words(group.before),
            rate_words(group.after),
            f"{interval_words(group.difference, 1, 100, ' points')}, {p_words(group.p_value)}",
        )
        for safety in found
        for group in safety.groups
    ]


def figures(found: Sequence[SafetySet], shown: Shown) -> dict[str, Any]:
    """Rates before and after."""
    rates = [
        (f"{safety.name}, {group.group}", group.before.rate, group.after.rate)
        for safety in found
        for group in safety.groups
    ]
    return {"chart": dumbbell(rates, "refused, share of the prompts"), "cut": cut_sentences(found)}


REPORT = """\
<h2>Protection</h2>
<p class="muted">Refusal rates before (open circle) and after (filled). A fall where prompts should be refused is a loss of protection.</p>
{{ chart | svg }}
<table>
<tr><th>set</th><th>prompts</th><th>base</th><th>variant</th><th>change</th></tr>
{% for safety in found %}{% for group in safety.groups %}
<tr><td>{{ safety.name }}</td><td>{{ group.group }}, {{ group.expectation }}</td><td>{{ words.rate_words(group.before) }}</td><td>{{ words.rate_words(group.after) }}</td><td>{{ words.interval_words(group.difference, 1, 100, " points") }}, {{ words.p_words(group.p_value) }}</td></tr>
{% endfor %}{% endfor %}
</table>
{% for sentence in cut %}<p class="note">{{ sentence }}</p>{% endfor %}
"""  # noqa: E501
MEASURE = Measure(field="safety", load=load, parts=parts, lines=lines, report=REPORT, figures=figures, place=50)
