"""Answers that loop or are garbled: the damage that labels and KL do not see. The detector is `eval.outcomes.garble`, which reads
every answer; the report tabulates it arm by arm."""

from __future__ import annotations

from collections.abc import Sequence

from eval.display.words import rate_words
from eval.measures.measure import Measure, Shown
from eval.outcomes.observed import ArmSummary


def card(found: Sequence[ArmSummary], shown: Shown) -> list[tuple[str, str]]:
    """Before and after."""
    return [
        (f"looping or garbled answers, {when}", f"{rate_words(arm.looping)}; {rate_words(arm.garbled)}")
        for when, arm in (("before", shown.arm("base")), ("after", shown.arm(shown.primary)))
    ]


MEASURE = Measure(field="arms", parts=lambda loaded, scene: (), card=card, place=45)
