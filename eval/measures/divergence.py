"""Measures fidelity on an engine: teacher-forced passes over the base's own answers to neutral prompts, under each edit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING

from eval.answers.arms import BASE, Answer, Arm, digest
from eval.answers.collect import Collector
from eval.answers.live import LiveResponder
from eval.measures.fidelity import TokenDistributions, kl_per_position, pooled_kl, touched_shares
from eval.measures.statistics import Interval
from eval.results import Divergence, Fidelity

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class NeutralText:
    """The base's answers to neutral prompts as tokens: what every arm is made to read."""

    sequences: list[list[int]]
    answer_starts: list[int]
    source: dict[str, str | None]

    @classmethod
    def from_answers(cls, answers: Sequence[Answer], source: dict[str, str | None]) -> NeutralText:
        """Prompt and answer tokens joined, without answers that have no token."""
        kept = [answer for answer in answers if answer.token_ids]
        return cls(
            [answer.prompt_token_ids + answer.token_ids for answer in kept],
            [len(answer.prompt_token_ids) for answer in kept],
            source,
        )

    def fingerprint(self) -> str:
        """Changes with any token."""
        return digest([self.sequences, self.answer_starts])


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
    key = digest(["fidelity", live.identity(), [arm.identity() for arm in arms], text.fingerprint(), num_listed, seed])[
        :32
    ]
    if key not in collector.journal:
        measured = _measure(live, arms, base, text, action, num_listed, seed)
        collector.journal.add_value(key, measured.model_dump(mode="json"))
    return Fidelity.model_validate(collector.journal.value(key))


def _measure(
    live: LiveResponder, arms: Sequence[Arm], base: Arm, text: NeutralText, action: str, num_listed: int, seed: int
) -> Fidelity:
    names = {arm.name: BASE if arm is base else str(arm.semantics) for arm in (base, *arms)}
    distributions: dict[str, list[TokenDistributions]] = {}
    routings: dict[str, list[np.ndarray]] = {}
    for arm in (base, *arms):
        scored = sorted(live.score(arm, text.sequences, num_listed, routing=True), key=lambda one: one.index)
        name = names[arm.name]
        distributions[name] = [one.distributions for one in scored if one.distributions is not None]
        routings[name] = [one.routing for one in scored if one.routing is not None]
    divergences = [
        _divergence(left, right, distributions[left], distributions[right], text.answer_starts, seed)
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


def _divergence(
    left: str,
    right: str,
    left_distributions: Sequence[TokenDistributions],
    right_distributions: Sequence[TokenDistributions],
    answer_starts: Sequence[int],
    seed: int,
) -> Divergence:
    everything = [kl_per_position(p, q) for p, q in zip(left_distributions, right_distributions, strict=True)]
    # Position n predicts token n + 1, so the answer's first token is predicted at the prompt's last position.
    answers = [values[start - 1 :] for values, start in zip(everything, answer_starts, strict=True)]
    return Divergence(
        left=left,
        right=right,
        answer_tokens=pooled_kl(answers, seed=seed),
        all_tokens=pooled_kl(everything, seed=seed),
        first_token=pooled_kl([values[:1] for values in answers], seed=seed),
    )


def kl_from_base(
    collector: Collector,
    live: LiveResponder,
    arm: Arm,
    base: Arm,
    text: NeutralText,
    *,
    num_listed: int,
    seed: int,
    base_cache: list[TokenDistributions],
) -> Interval:
    """KL(base || arm) per answer token; `base_cache` is filled at first use so that a sweep scores the base once."""
    key = digest(["kl-from-base", live.identity(), arm.identity(), text.fingerprint(), num_listed, seed])[:32]
    if key not in collector.journal:
        if not base_cache:
            base_cache.extend(_distributions(live, base, text, num_listed))
        edited = _distributions(live, arm, text, num_listed)
        value = _divergence(BASE, arm.name, base_cache, edited, text.answer_starts, seed).answer_tokens
        collector.journal.add_value(key, value.model_dump(mode="json"))
    return Interval.model_validate(collector.journal.value(key))


def _distributions(live: LiveResponder, arm: Arm, text: NeutralText, num_listed: int) -> list[TokenDistributions]:
    scored = sorted(live.score(arm, text.sequences, num_listed, routing=False), key=lambda one: one.index)
    return [one.distributions for one in scored if one.distributions is not None]


def changed_slots(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> float:
    """The share of router slots whose expert is not among the token's experts any more; routings int [T, L, K], order ignored."""
    import numpy as np

    kept = total = 0
    for then, now in zip(before, after, strict=True):
        length = min(len(then), len(now))
        kept += int((then[:length, :, :, None] == now[:length, :, None, :]).any(axis=-1).sum())
        total += int(np.prod(then[:length].shape))
    return 1 - kept / total if total else math.nan


def _lowest_listed_mass(distributions: TokenDistributions) -> float:
    import numpy as np

    if not len(distributions.log_probabilities):
        return 1.0
    return float(np.exp(distributions.log_probabilities.astype(np.float64)).sum(axis=1).min())
