"""How far one routing edit is from another: KL per token from teacher-forced passes over the base's own answers to neutral
prompts, and how much routing the experts take part in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, Field

from eval.answers.arms import BASE, Arm, digest
from eval.answers.journal import Collector
from eval.answers.live import LiveResponder, TokenDistributions
from eval.answers.plan import NamedEdit
from eval.display import words
from eval.measures.kl import Divergence, compare
from eval.measures.measure import Found, Measure, Part, Scene, Shown
from eval.measures.neutral import NeutralText, load_neutral, read_neutral
from eval.measures.touched import TouchedShares, changed_slots, touched_shares
from eval.outcomes.observed import ArmSummary
from ftri.prompts.sets import PromptSet
from rewriter.semantics import (
    BIAS_FREE_SEMANTICS,
    CENTROID,
    DROP,
    DROP_RENORM,
    REROUTE,
    SEMANTICS,
    STIMULATE,
    SUPPRESS,
    Action,
)

if TYPE_CHECKING:
    import numpy as np


# What is added to a semantics' name where suppressed experts keep a part of their output, or stimulated ones have a gain.
IN_PART = " in part"
WITH_GAIN = " with gain"


class Fidelity(BaseModel):
    """How far the semantics are from the base and from each other, and how much routing the experts take part in."""

    num_prompts: int
    num_answer_tokens: int
    num_tokens: int
    neutral_source: dict[str, str | None]
    listed_tokens: int
    exact: bool
    action: str
    divergences: list[Divergence]
    touched: TouchedShares | None
    slots_changed: dict[str, float] = Field(
        default_factory=dict,
        description="Semantics -> share of the base's router slots that hold another expert under the edit.",
    )


def measure_fidelity(
    collector: Collector,
    live: LiveResponder,
    arms: Sequence[Arm],
    base: Arm,
    text: NeutralText,
    *,
    action: str,
    num_listed: int,
    seed: int,
) -> Fidelity:
    """KL per token between the base and every arm, and among the arms, both ways round; and the routing that the
    experts take part in."""
    # Journals of before the flips were counted right hold a share of 0 where the whole vocabulary was compared.
    compared = ["fidelity, flips", live.identity(), [arm.identity() for arm in arms]]
    key = digest([*compared, text.fingerprint(), num_listed, seed])[:32]
    if key not in collector.journal:
        measured = _measure(live, arms, base, text, action, num_listed, seed)
        collector.journal.add_value(key, measured.model_dump(mode="json"))
    return collector.journal.checked(key, Fidelity)


def name_of(arm: Arm) -> str:
    """What an arm is called among the others: its semantics, and whether it is that in part or with a gain."""
    suffix = "" if not arm.factors else IN_PART if arm.suppress else WITH_GAIN
    return f"{arm.semantics}{suffix}"


def _measure(
    live: LiveResponder, arms: Sequence[Arm], base: Arm, text: NeutralText, action: str, num_listed: int, seed: int
) -> Fidelity:
    names = {arm.name: BASE if arm is base else name_of(arm) for arm in (base, *arms)}
    distributions: dict[str, list[TokenDistributions]] = {}
    routings: dict[str, list[np.ndarray]] = {}
    for arm in (base, *arms):
        scored = sorted(live.score(arm, text.sequences, num_listed, routing=True), key=lambda one: one.index)
        name = names[arm.name]
        distributions[name] = [one.distributions for one in scored if one.distributions is not None]
        routings[name] = [one.routing for one in scored if one.routing is not None]
    divergences = [
        compare(left, right, distributions[left], distributions[right], text.answer_starts, seed)
        for left, right in permutations(distributions, 2)
    ]
    pairs = {pair for arm in arms for pair in (*arm.suppress, *arm.stimulate)}
    layers = list(live.model_for(base).moe_layers)
    base_routing = routings[BASE]
    have_routing = len(base_routing) == len(text.sequences)
    mass = [float(_lowest_listed_mass(one)) for one in distributions[BASE]]
    return Fidelity(
        num_prompts=len(text.sequences),
        num_answer_tokens=sum(len(s) - start for s, start in zip(text.sequences, text.answer_starts, strict=True)),
        num_tokens=sum(map(len, text.sequences)),
        neutral_source=text.source,
        listed_tokens=max((one.token_ids.shape[1] for one in distributions[BASE]), default=0),
        exact=min(mass, default=0.0) > 1 - 1e-4,
        action=action,
        divergences=divergences,
        touched=touched_shares(base_routing, layers, pairs) if have_routing else None,
        slots_changed={
            name: changed_slots(base_routing, routing)
            for name, routing in routings.items()
            if name != BASE and have_routing and len(routing) == len(base_routing)
        },
    )


def _lowest_listed_mass(distributions: TokenDistributions) -> float:
    import numpy as np

    if not len(distributions.log_probabilities):
        return 1.0
    return float(np.exp(distributions.log_probabilities.astype(np.float64)).sum(axis=1).min())


def parts(neutral: PromptSet | None, scene: Scene) -> Iterable[Part]:
    """Suppression and stimulation, where an engine answers."""
    if scene.live is None or neutral is None:
        return []
    return [Part("fidelity", partial(fidelity, scene, scene.live, neutral))]


def fidelity(scene: Scene, live: LiveResponder, neutral: PromptSet) -> Found:
    """Suppression and stimulation are different questions, so an edit with both is measured for each by itself."""
    options, edit = scene.options, scene.edit
    scene.say("divergence of every semantics, in part and with a gain too, from the base and from each other")
    found = []
    cases: tuple[tuple[Action, Any], ...] = ((SUPPRESS, edit.suppress), (STIMULATE, edit.stimulate))
    for action, pairs in cases:
        if not pairs:
            continue
        arms = fidelity_arms(edit, action, has_bias=scene.has_bias)
        found.append(
            measure_fidelity(
                scene.collector,
                live,
                arms,
                scene.plan.base,
                read_neutral(scene, neutral),
                action=action,
                num_listed=options.kl_listed,
                seed=options.seed,
            )
        )
    return {"fidelity": found}


def fidelity_arms(edit: NamedEdit, action: Action, *, has_bias: bool) -> list[Arm]:
    """The arms of one action that are compared: every semantics as a whole, then what is done in part or with a gain."""
    pairs = edit.suppress if action == SUPPRESS else edit.stimulate
    suppressing = SEMANTICS if has_bias else BIAS_FREE_SEMANTICS
    arms = [
        Arm(
            name=f"fidelity-{action}-{one}",
            kind="variant",
            semantics=one,
            suppress=pairs if action == SUPPRESS else (),
            stimulate=pairs if action == STIMULATE else (),
            bias_shifts=edit.shifts_under(one) if action == SUPPRESS else (),
        )
        for one in (suppressing if action == SUPPRESS else (REROUTE, DROP_RENORM))
    ]
    scaled = []
    for arm in arms:
        factors = tuple(one for one in edit.factors_under(arm.semantics) if one[:2] in pairs)
        if factors:
            scaled.append(replace(arm, name=f"{arm.name}-scaled", factors=factors))
    return [*arms, *scaled]


def lines(found: Sequence[Fidelity], shown: Shown) -> list[str]:
    """KL from the base, of what a checkpoint holds from the paper's edit, and the routing touched."""
    table = []
    for one in found:
        from_base = {each.right: each for each in one.divergences if each.left == "base"}
        numbers = ", ".join(f"{name} {words.number(each.answer_tokens.estimate)}" for name, each in from_base.items())
        bounds = "" if one.exact else " (lower bounds)"
        table += ["", f"KL per token from the base, {one.action}{bounds}: {numbers}"]
        numbers = ", ".join(
            f"{each.right} {words.number(each.answer_tokens.estimate)} ({words.percent(each.token_flips, 2)})"
            for each in from_paper(one)
        )
        if numbers:
            table.append(
                f"a checkpoint's from the paper's own ({DROP_RENORM}), and flips of the likeliest token: {numbers}"
            )
        from_true = {each.right: each for each in one.divergences if each.left == REROUTE}
        if CENTROID in from_true:
            numbers = ", ".join(
                f"{name} {from_true[name].answer_tokens.estimate:.2e} ({words.percent(from_true[name].token_flips, 2)} of tokens)"
                for name in (CENTROID, DROP)
            )
            table.append(f"from the true reroute, KL per token and flips of the likeliest one: {numbers}")
        if one.touched is not None:
            table.append(
                f"router slots held: {words.percent(one.touched.slot_share, 2)};"
                f" tokens touched: {words.percent(one.touched.token_share)}"
            )
    return table


def from_paper(fidelity: Fidelity) -> list[Divergence]:
    """From the paper's own edit to each that a checkpoint can hold; to one in part from the paper's in part."""
    return [
        each
        for each in fidelity.divergences
        if each.right != BASE
        and not each.right.startswith(DROP_RENORM)
        and each.left == (f"{DROP_RENORM}{IN_PART}" if each.right.endswith(IN_PART) else DROP_RENORM)
    ]


def card(found: Sequence[Fidelity], shown: Shown) -> list[tuple[str, str]]:
    """KL of the variant from the base."""
    return [
        (
            f"KL per token on neutral prompts ({one.action})",
            f"{words.number(each.answer_tokens.estimate)} nats{'' if one.exact else ' (lower bound)'}",
        )
        for one in found
        for each in one.divergences
        if each.left == "base" and each.right == name_under(shown.arm(shown.primary), one.action)
    ]


def name_under(arm: ArmSummary, action: str) -> str:
    """What a variant is called among the arms of an action: its semantics, and whether it is that in part or with a gain."""
    own = {tuple(pair) for pair in (arm.suppress if action == SUPPRESS else arm.stimulate)}
    suffix = IN_PART if action == SUPPRESS else WITH_GAIN
    return f"{arm.semantics}{suffix}" if any(one[:2] in own for one in arm.factors) else str(arm.semantics)


def figures(found: Sequence[Fidelity], shown: Shown) -> dict[str, Any]:
    """The function that makes a table of divergences."""
    return {
        "divergence_table": divergence_table,
        "flips_from_true": flips_from_true,
        "flips_from_paper": flips_from_paper,
    }


def flips_from_paper(fidelity: Fidelity) -> list[tuple[str, float | None]]:
    """By what a checkpoint holds, the share of tokens whose likeliest next token is not that of the paper's own edit."""
    return [(each.right, each.token_flips) for each in from_paper(fidelity)]


def flips_from_true(fidelity: Fidelity) -> list[tuple[str, float | None]]:
    """By semantics, the share of tokens whose likeliest next token is not the true reroute's; empty with a router bias."""
    from_true = [each for each in fidelity.divergences if each.left == REROUTE and each.right != BASE]
    is_bias_free = any(each.right == CENTROID for each in from_true)
    return [(each.right, each.token_flips) for each in from_true] if is_bias_free else []


def divergence_table(fidelity: Fidelity) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(names, rows): KL(row || column) in nats per answer token, with a dash on the diagonal."""
    names = list(dict.fromkeys(one.left for one in fidelity.divergences))
    cells = {(one.left, one.right): one.answer_tokens for one in fidelity.divergences}
    return names, [
        (row, [words.NONE if row == column else words.interval_words(cells[row, column], 4) for column in names])
        for row in names
    ]


REPORT = """\
<h2>How far from the base, and from the paper's own edit</h2>
{% for fidelity in found %}
{% set table = divergence_table(fidelity) %}
<h3>{{ {"suppress": "Suppression", "stimulate": "Stimulation"}[fidelity.action] }}: KL(row ‖ column), nats per token</h3>
<table>
<tr><th></th>{% for name in table[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for name, cells in table[1] %}<tr><th>{{ name }}</th>{% for cell in cells %}<td class="n">{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table>
<p class="muted">Teacher-forced on {{ fidelity.num_answer_tokens }} tokens of the base's own answers to {{ fidelity.num_prompts }} neutral prompts{% if not fidelity.exact %}; from the {{ fidelity.listed_tokens }} likeliest tokens at each position, hence lower bounds{% endif %}. drop-renorm is the paper's edit; reroute is what a checkpoint's router bias does; in part: a part of the output is kept; with gain: the stimulated output is multiplied. Intervals resample prompts.</p>
{% set flips = flips_from_paper(fidelity) %}
{% if flips %}<p>Answer tokens whose likeliest next token differs from that of the paper's own edit (drop-renorm; in part: that in part): {% for name, share in flips %}{{ name }} {{ words.percent(share, 2) }}{{ ", " if not loop.last else "." }}{% endfor %}</p>{% endif %}
{% set flips = flips_from_true(fidelity) %}
{% if flips %}<p>Answer tokens whose likeliest next token differs from the true reroute's: {% for name, share in flips %}{{ name }} {{ words.percent(share, 2) }}{{ ", " if not loop.last else "." }}{% endfor %} reroute (centroid) is what a checkpoint whose routers have no bias holds in the place of a reroute; it keeps an expert from the first place, not from being selected.</p>{% endif %}
{% if fidelity.touched %}<p>The experts hold {{ words.percent(fidelity.touched.slot_share, 2) }} of the base's router slots ({{ fidelity.touched.slots_in_set }} of {{ fidelity.touched.num_slots }}) and take part in {{ words.percent(fidelity.touched.token_share) }} of its tokens.{% if fidelity.slots_changed %} Slots that no longer hold the base's expert:{% for name, share in fidelity.slots_changed.items() %} {{ name }} {{ words.percent(share, 2) }}{{ "," if not loop.last else "." }}{% endfor %}{% endif %}</p>{% endif %}
{% endfor %}
"""  # noqa: E501
MEASURE = Measure(
    field="fidelity", load=load_neutral, parts=parts, lines=lines, card=card, report=REPORT, figures=figures, place=40
)
