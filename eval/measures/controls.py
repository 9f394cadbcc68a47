"""Would other experts have done the same? Runs random sets and places the variant among them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from eval.answers.arms import Arm, Factor, Pair, Request, Shift, digest
from eval.answers.journal import Collector
from eval.answers.live import LiveResponder
from eval.display.drawing import MUTED, NULL, OBSERVED, round_share, svg_open, tick_percent, write, x_ticks, y_axis
from eval.display.words import NONE, p_words, percent
from eval.measures.measure import Found, Measure, Part, Scene, Shown
from eval.measures.random_sets import frequency_gap, random_sets
from eval.options import Matching
from eval.outcomes.observed import Outcomes, by_beginnings, observe, select
from eval.outcomes.statistics import sequential_p_value
from eval.outcomes.targets import Target, move_rate, moves
from ftri.labels.names import PAPER_CLASSES
from rewriter.semantics import Semantics

if TYPE_CHECKING:
    import numpy as np

# Sets that are run in one pass: enough to fill batches, few enough that ending early saves something.
SETS_A_ROUND = 10
# From the smallest shift that is tuned to more than any bias is wide.
MAX_DOUBLINGS = 16


class NullDistribution(BaseModel):
    """The counted change under random expert sets beside that of the variant, on the same prompts."""

    matching: str
    statistic: str
    semantics: str
    num_prompts_at_risk: int
    num_other_prompts: int
    observed: float
    null_values: list[float]
    opposite_observed: float
    opposite_null_values: list[float]
    damaged_observed: float
    damaged_null_values: list[float] = Field(description="Empty where answers ended once their label was decided.")
    p_value: float
    stopped_early: bool = Field(False, description="As many sets as were asked to stop it had moved as much.")
    mean: float
    highest: float
    frequency_gap: float | None = Field(None, description="Selections per token, mean over the sets.")
    experts_per_set: int
    sets: list[list[tuple[int, int]]]


class RouterUse(BaseModel):
    """How often the base selects its experts, as the journal keeps it: layer -> selections per token [E]."""

    num_experts: int
    frequency: dict[int, list[float]]


def parts(_: None, scene: Scene) -> Iterable[Part]:
    """All random sets, where an engine answers."""
    if scene.live is None or not scene.options.controls:
        return []
    return [Part("random controls", partial(controls, scene, scene.live))]


def ends_early(scene: Scene) -> bool:
    """Whether answers of controls and sweep end once their label is decided: labels are all that is counted.

    Not where the label is one that only whole answers have.
    """
    return scene.target.label in PAPER_CLASSES and not scene.options.whole_controls


def labels_alone(requests: Sequence[Request]) -> list[Request]:
    """The same requests, whose answers end as soon as their label is decided."""
    return [replace(one, sampling=replace(one.sampling, until_decided=True)) for one in requests]


def control_positions(scene: Scene) -> list[int]:
    """The answers that controls and sweep repeat."""
    return choose_requests(
        scene.target,
        scene.base.labels(scene.target.axis),
        num_at_risk=scene.options.control_prompts,
        num_others=scene.options.control_others,
        seed=scene.options.seed,
    )


def controls(scene: Scene, live: LiveResponder) -> Found:
    """One null distribution a matching."""
    options, edit, primary = scene.options, scene.edit, scene.plan.primary
    positions = control_positions(scene)
    requests = [scene.requests[position] for position in positions]
    base, variant = select(scene.base, positions), select(scene.primary, positions)
    if ends_early(scene):
        requests = labels_alone(requests)
        base, variant = by_beginnings(scene.collector, base), by_beginnings(scene.collector, variant)
    layers, num_experts, frequency = _router(scene, live, positions)
    assert primary.semantics is not None
    found = []
    for matching in options.control_matching:
        arms = control_arms(
            matching,
            primary.semantics,
            edit.suppress,
            edit.stimulate,
            bias_shifts=primary.bias_shifts,
            factors=primary.factors,
            layers=layers,
            num_experts=num_experts,
            num_sets=options.controls,
            seed=options.seed,
            frequency=frequency,
            is_feasible=scene.is_feasible,
        )
        fewer = "" if len(arms) == options.controls else f" (there are no more, {options.controls} were asked for)"
        scene.say(f"{len(arms)} random sets matched by {matching}{fewer}, {len(requests)} prompts each")
        found.append(
            null_distribution(
                scene.collector,
                scene.target,
                matching,
                arms,
                requests,
                base,
                variant,
                tested=edit.pairs,
                frequency=frequency,
                label_cut=options.label_cut,
                stop_after=options.control_stop,
            )
        )
    return {"controls": found}


def _router(
    scene: Scene, live: LiveResponder, positions: Sequence[int]
) -> tuple[list[int], int, Mapping[int, np.ndarray]]:
    """MoE layers, experts per layer and selections per token over the base's own answers to the control prompts."""
    import numpy as np

    journal, base = scene.collector.journal, scene.plan.base
    keys = [scene.base.keys[position] for position in positions]
    name = digest(["frequency", live.identity(), keys])[:32]
    if name not in journal:
        answers = [journal.answer(key) for key in keys]
        sequences = [answer.prompt_token_ids + answer.token_ids for answer in answers]
        model = live.model_for(base)
        scored = live.score(base, sequences, None, routing=True)
        routings = (one.routing for one in scored if one.routing is not None)
        frequency = selection_frequency(routings, list(model.moe_layers), model.num_experts)
        lists = {layer: rates.tolist() for layer, rates in frequency.items()}
        kept = RouterUse(num_experts=model.num_experts, frequency=lists)
        journal.add_value(name, kept.model_dump(mode="json"))
    use = journal.checked(name, RouterUse)
    return sorted(use.frequency), use.num_experts, {layer: np.asarray(rates) for layer, rates in use.frequency.items()}


def selection_frequency(
    routings: Iterable[np.ndarray], layers: Sequence[int], num_experts: int
) -> dict[int, np.ndarray]:
    """Selections per token of every expert: model layer -> float [E]. `routings` as in `touched_shares`."""
    import numpy as np

    counts = np.zeros((len(layers), num_experts), dtype=np.int64)
    num_tokens = 0
    for routing in routings:
        num_tokens += len(routing)
        for row in range(len(layers)):
            # Ids from num_experts on are zero-computation experts, which no control can draw.
            counts[row] += np.bincount(routing[:, row].ravel(), minlength=num_experts)[:num_experts]
    return {layer: counts[row] / max(num_tokens, 1) for row, layer in enumerate(layers)}


def choose_requests(
    target: Target, base_labels: Sequence[str], *, num_at_risk: int, num_others: int, seed: int
) -> list[int]:
    """Positions of the answers that a control repeats, ascending: some at risk of the counted change, fewer of the others.

    Most random sets change nothing, so the null is about the answers that could move; the others show the opposite change.
    """
    generator = random.Random(f"control-prompts/{seed}")
    at_risk, _ = moves(target, base_labels, base_labels)
    risky = [position for position, risk in enumerate(at_risk) if risk]
    others = [position for position, risk in enumerate(at_risk) if not risk]
    return sorted(
        generator.sample(risky, min(num_at_risk, len(risky))) + generator.sample(others, min(num_others, len(others)))
    )


def control_arms(
    matching: Matching,
    semantics: Semantics,
    suppress: Sequence[Pair],
    stimulate: Sequence[Pair],
    *,
    bias_shifts: Sequence[Shift] = (),
    factors: Sequence[Factor] = (),
    layers: Sequence[int],
    num_experts: int,
    num_sets: int,
    seed: int,
    frequency: Mapping[int, np.ndarray] | None,
    is_feasible: Callable[[Sequence[Pair], Sequence[Pair], Sequence[Shift]], bool],
) -> list[Arm]:
    """Arms that edit random experts in place of the ones under test: as many suppressed and as many stimulated.

    bias_shifts, factors: of experts under test; those that stand in for them get the same, a shift doubled until the rounding
    of their bias holds it. `is_feasible(suppressed, stimulated, bias_shifts)` says whether the model can route under such an
    edit.
    """
    shifts = {(layer, expert): shift for layer, expert, shift in bias_shifts}
    kept = {(layer, expert): factor for layer, expert, factor in factors}

    def held(shift: Shift) -> Shift:
        layer, expert, least = shift
        doubled = ((layer, expert, least * 2**times) for times in range(MAX_DOUBLINGS))
        return next((one for one in doubled if is_feasible((one[:2],), (), (one,))), shift)

    def arm_of(pairs: Sequence[Pair], number: int = 0) -> Arm:
        stand_ins = list(zip([*suppress, *stimulate], pairs, strict=True))
        return Arm(
            name=f"random-{matching}-{number:03d}",
            kind="control",
            semantics=semantics,
            suppress=tuple(pairs[: len(suppress)]),
            stimulate=tuple(pairs[len(suppress) :]),
            bias_shifts=tuple(held((*stand_in, shifts[pair])) for pair, stand_in in stand_ins if pair in shifts),
            factors=tuple((*stand_in, kept[pair]) for pair, stand_in in stand_ins if pair in kept),
        )

    def is_borne(pairs: Sequence[Pair]) -> bool:
        arm = arm_of(pairs)
        return is_feasible(arm.suppress, arm.stimulate, arm.bias_shifts)

    drawn = random_sets(
        matching,
        [*suppress, *stimulate],
        layers=layers,
        num_experts=num_experts,
        num_sets=num_sets,
        seed=seed,
        frequency=frequency,
        is_feasible=is_borne,
    )
    return [arm_of(pairs, number) for number, pairs in enumerate(drawn, start=1)]


def null_distribution(
    collector: Collector,
    target: Target,
    matching: Matching,
    arms: Sequence[Arm],
    requests: Sequence[Request],
    base: Outcomes,
    variant: Outcomes,
    *,
    tested: Sequence[Pair],
    frequency: Mapping[int, np.ndarray] | None,
    label_cut: bool,
    stop_after: int,
) -> NullDistribution:
    """Run the control arms over `requests` and compare; `base` and `variant`: the outcomes of the same requests, labelled alike.

    Sets are run a round at a time, all of a round in one pass. A matching ends early when `stop_after` sets have moved
    as much as the variant (Besag and Clifford's sequential Monte Carlo test, Biometrika 78, 1991): the p-value is then
    stop_after / sets run, which is valid at every level, and what is left could not have made it small.
    """
    before = base.labels(target.axis)
    values, opposite_values, damaged_values, sets = [], [], [], []
    observed = move_rate(target, before, variant.labels(target.axis))
    whole = not any(request.sampling.until_decided for request in requests)
    as_many = 0
    for start in range(0, len(arms), SETS_A_ROUND):
        round_of_arms = arms[start : start + SETS_A_ROUND]
        collector.complete_each(round_of_arms, requests)
        for arm in round_of_arms:
            outcomes = observe(collector, arm, requests, label_cut=label_cut)
            after = outcomes.labels(target.axis)
            values.append(move_rate(target, before, after))
            opposite_values.append(opposite_rate(target, before, after))
            if whole:
                damaged_values.append(sum(outcomes.damaged()) / max(len(requests), 1))
            sets.append([*arm.suppress, *arm.stimulate])
            as_many += values[-1] >= observed
            if as_many == stop_after:
                break
        if as_many == stop_after:
            break
    stopped = as_many == stop_after and len(values) < len(arms)
    at_risk, _ = moves(target, before, before)
    return NullDistribution(
        matching=matching,
        statistic=target.describe() + ("" if whole else ", labelled by beginnings"),
        semantics=str(variant.arm.semantics),
        num_prompts_at_risk=sum(at_risk),
        num_other_prompts=len(at_risk) - sum(at_risk),
        observed=observed,
        null_values=values,
        opposite_observed=opposite_rate(target, before, variant.labels(target.axis)),
        opposite_null_values=opposite_values,
        damaged_observed=sum(variant.damaged()) / max(len(requests), 1),
        damaged_null_values=damaged_values,
        p_value=sequential_p_value(as_many, len(values), stop_after=stop_after, num_planned=len(arms)),
        stopped_early=stopped,
        mean=sum(values) / len(values),
        highest=max(values),
        frequency_gap=frequency_gap(sets, tested, frequency) if frequency is not None else None,
        experts_per_set=len(tested),
        sets=sets,
    )


def opposite_rate(target: Target, before: Sequence[str], after: Sequence[str]) -> float:
    """The share of the others that made the opposite change; 0 when there are none."""
    had_label = target.direction == "enter"
    risky = [(label == target.label) == had_label for label in before]
    made = sum(risk and (label == target.label) != had_label for risk, label in zip(risky, after, strict=True))
    return made / sum(risky) if any(risky) else 0.0


def rows(found: Sequence[NullDistribution], shown: Shown) -> list[Sequence[str]]:
    """One row a matching."""
    return [
        (
            f"{len(control.null_values)} random, {control.matching}",
            f"mean {percent(control.mean)} max {percent(control.highest)}",
            f"mean {percent(sum(control.opposite_null_values) / len(control.opposite_null_values))}"
            if control.num_other_prompts
            else NONE,
            "",
            mean_damage(control),
            p_words(control.p_value),
        )
        for control in found
    ]


def mean_damage(control: NullDistribution) -> str:
    """The mean share of damaged answers, where whole answers were written."""
    values = control.damaged_null_values
    return f"mean {percent(sum(values) / len(values))}" if values else ""


def card(found: Sequence[NullDistribution], shown: Shown) -> list[tuple[str, str]]:
    """One row a matching."""
    return [
        (
            f"{len(control.null_values)} random sets of {control.experts_per_set}, matched by {control.matching}",
            # The variant's share of these prompts, which may be fewer than those of its own row.
            f"mean {percent(control.mean)}, highest {percent(control.highest)}, variant {percent(control.observed)} of"
            f" {control.num_prompts_at_risk} prompts at risk, {p_words(control.p_value)}",
        )
        for control in found
    ]


def figures(found: Sequence[NullDistribution], shown: Shown) -> dict[str, Any]:
    """A histogram a matching."""
    return {"histogram": null_histogram}


def null_histogram(control: NullDistribution) -> str:
    """How often random sets reach each rate, with the variant's own rate as a line."""
    width, height, left, bottom, top = 760, 190, 56, 42, 40
    highest = max([control.observed, *control.null_values, 0.05])
    limit = round_share(highest)
    num_bins = 30
    counts = [0] * num_bins
    for value in control.null_values:
        counts[min(int(value / limit * num_bins), num_bins - 1)] += 1
    tallest = max(counts)
    plot_width, plot_height = width - left - 24, height - bottom - top
    parts = [svg_open(width, height, f"Null distribution of {control.statistic}, matched by {control.matching}")]
    parts += y_axis(left, top, plot_width, plot_height, [0, tallest], [str(0), str(tallest)], "sets")
    for number, count in enumerate(counts):
        if count:
            x = left + number * plot_width / num_bins
            tall = plot_height * count / tallest
            title = f"{percent(number * limit / num_bins)} to {percent((number + 1) * limit / num_bins)}: {count} sets"
            parts.append(
                f'<rect x="{x + 1:.1f}" y="{top + plot_height - tall:.1f}" width="{plot_width / num_bins - 2:.1f}"'
                f' height="{tall:.1f}"'
                f' fill="{NULL}"><title>{title}</title></rect>'
            )
    parts += x_ticks(left, top + plot_height, plot_width, [limit * k / 5 for k in range(6)], limit, tick_percent)
    parts.append(
        write(
            left + plot_width / 2,
            height - 6,
            f"{control.statistic}, share of those at risk",
            "middle",
            size=12,
            colour=MUTED,
        )
    )
    x = left + plot_width * control.observed / limit
    anchor = "end" if x > width / 2 else "start"
    offset = -6 if anchor == "end" else 6
    parts.append(
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 16}" y2="{top + plot_height}" stroke="{OBSERVED}" stroke-width="2.5"/>'
    )
    words = f"variant {percent(control.observed)}, p = {control.p_value:.3g}"
    parts.append(write(x + offset, top - 6, words, anchor, size=13, colour=OBSERVED, bold=True))
    return "".join(parts) + "</svg>"


REPORT = """\
<h2>Against chance</h2>
{% if found %}
<p class="muted">Random expert sets of the same size on the same prompts; p = (1 + sets at or above the variant) / (sets + 1).</p>
{% for control in found %}
<h3>{{ control.null_values | length }} sets {{ {"uniform": "drawn uniformly", "layer": "matched by layer", "frequency": "matched by layer and activation frequency"}[control.matching] }}</h3>
{{ histogram(control) | svg }}
<p class="muted">{{ control.num_prompts_at_risk }} prompts at risk and {{ control.num_other_prompts }} others. Mean {{ words.percent(control.mean) }}, highest {{ words.percent(control.highest) }}. {% if control.num_other_prompts %}Opposite change: variant {{ words.percent(control.opposite_observed) }}, random up to {{ words.percent(control.opposite_null_values | max) }}. {% endif %}Damaged answers: variant {{ words.percent(control.damaged_observed) }}, {% if control.damaged_null_values %}random up to {{ words.percent(control.damaged_null_values | max) }}{% else %}random sets' answers ended once their label was decided{% endif %}.{% if control.stopped_early %} Ended early, as enough sets had moved as much: here p = sets at or above the variant / sets.{% endif %}{% if control.frequency_gap is not none %} Their activation frequency differs from the tested experts' by {{ words.number(control.frequency_gap) }} selections per token on average.{% endif %}</p>
{% endfor %}
{% else %}<p>No random controls were run{% if results.mode == "served" %}: a running server's routers cannot be edited{% endif %}.</p>{% endif %}
{% if results.repeat_flips %}<p>The base answered twice: {{ words.rate_words(results.repeat_flips) }} changed label; {{ results.target.change }}: {{ words.rate_words(results.repeat_flips_at_risk) }}.</p>{% endif %}
"""  # noqa: E501
MEASURE = Measure(
    field="controls", parts=parts, rows=rows, card=card, report=REPORT, figures=figures, place=20, shown_empty=True
)
