"""The base answers twice: the flip rate is what any change has to beat (A/A)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

from eval.answers.arms import Arm
from eval.display.words import rate_words, short_rate
from eval.measures.measure import Found, Measure, Part, Scene, Shown
from eval.outcomes.statistics import Rate, wilson
from eval.outcomes.targets import moves


def parts(_: None, scene: Scene) -> Iterable[Part]:
    """One more run of the base."""
    repeat = scene.plan.repeat
    return [] if repeat is None else [Part("A/A repeat", partial(base_again, scene, repeat))]


def base_again(scene: Scene, repeat: Arm) -> Found:
    """How many answers of the base changed their label, and how many made the counted change, with no change at all."""
    target = scene.target
    before = scene.base.labels(target.axis)
    after = scene.observe_prompts(repeat).labels(target.axis)
    at_risk, made = moves(target, before, after)
    return {
        "repeat_flips": wilson(sum(b != a for b, a in zip(before, after, strict=True)), len(before)),
        "repeat_flips_at_risk": wilson(sum(made), sum(at_risk)),
    }


def rows(found: Rate, shown: Shown) -> list[Sequence[str]]:
    """The rate of the counted change, and of any."""
    at_risk = shown.repeat_flips_at_risk
    return [] if at_risk is None else [("base again", short_rate(at_risk), f"any flip {short_rate(found)}")]


def card(found: Rate, shown: Shown) -> list[tuple[str, str]]:
    """The flip rate."""
    return [("base run twice: answers that changed label", rate_words(found))]


MEASURE = Measure(field="repeat_flips", parts=parts, rows=rows, card=card, place=15)
