"""How far each variant beside the one under test is from the base: KL per token of the base's own answers to neutral prompts.

The experts under test are looked at more closely, see `eval.measures.fidelity`; this is the number by which they compare.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

from pydantic import BaseModel

from eval.answers.arms import Arm
from eval.answers.live import LiveResponder, TokenDistributions
from eval.display.words import number
from eval.measures.measure import Found, Measure, Part, Scene, Shown
from eval.measures.neutral import NeutralText, distributions, kl_from_base, kl_key, load_neutral, read_neutral
from eval.measures.transitions import against_base
from eval.outcomes.statistics import Interval
from ftri.prompts.sets import PromptSet


class ArmDivergence(BaseModel):
    """KL(base || arm) in nats per answer token; a lower bound where the results' fidelity is one."""

    arm: str
    answer_tokens: Interval


@dataclass
class Reading:
    """The neutral text, read by the base once and by each variant."""

    scene: Scene
    live: LiveResponder
    neutral: PromptSet
    base_cache: list[TokenDistributions] = field(default_factory=list)

    @cached_property
    def text(self) -> NeutralText:
        """The base's answers to the neutral prompts."""
        return read_neutral(self.scene, self.neutral)

    def measure(self, arm: Arm) -> Found:
        """How far one variant is from the base."""
        options = self.scene.options
        kl = kl_from_base(
            self.scene.collector,
            self.live,
            arm,
            self.scene.plan.base,
            self.text,
            num_listed=options.kl_listed,
            seed=options.seed,
            base_cache=self.base_cache,
        )
        return {"divergences": [ArmDivergence(arm=arm.name, answer_tokens=kl)]}

    def read_by_base(self, arms: Sequence[Arm]) -> Found:
        """Have the base read the text while its engine is there, unless all of `arms` were measured before."""
        options, journal = self.scene.options, self.scene.collector.journal
        keys = [kl_key(self.live, arm, self.text, options.kl_listed, options.seed) for arm in arms]
        if not self.base_cache and any(key not in journal for key in keys):
            self.base_cache.extend(distributions(self.live, self.scene.plan.base, self.text, options.kl_listed))
        return {}


def parts(neutral: PromptSet | None, scene: Scene) -> Iterator[Part]:
    """Further expert sets on the base's engine; then the checkpoints, answers and divergence of each in one load."""
    if scene.live is None or neutral is None:
        return
    reading = Reading(scene, scene.live, neutral)
    checkpoints = [arm for arm in scene.plan.others if arm.checkpoint is not None]
    for arm in scene.plan.others:
        if arm.checkpoint is None:
            yield Part(f"divergence of {arm.name}", partial(reading.measure, arm))
    if checkpoints:
        yield Part("the base's reading of neutral text", partial(reading.read_by_base, checkpoints))
    for arm in checkpoints:
        yield Part(f"variant {arm.name}", partial(against_base, scene, arm))
        yield Part(f"divergence of {arm.name}", partial(reading.measure, arm))


def lines(found: Sequence[ArmDivergence], shown: Shown) -> list[str]:
    """One line for all."""
    numbers = ", ".join(f"{one.arm} {number(one.answer_tokens.estimate)}" for one in found)
    return [f"KL per token from the base, other variants: {numbers}"]


REPORT = """\
<h3>Divergence of the other variants</h3>
<table>
<tr><th>variant</th><th>KL from the base, nats per token</th></tr>
{% for one in found %}<tr><td>{{ one.arm }}</td><td class="n">{{ words.interval_words(one.answer_tokens, 4) }}</td></tr>
{% endfor %}
</table>
"""
# Takes the place of the base's engine where there are checkpoints, and nothing may need that again.
MEASURE = Measure(field="divergences", load=load_neutral, parts=parts, lines=lines, report=REPORT, place=45)
