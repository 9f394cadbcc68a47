"""The base's own answers to neutral prompts: the text that every arm is made to read, and how an arm reads it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from eval.answers.arms import BASE, Answer, Arm, Request, Sampling, digest
from eval.answers.journal import Collector
from eval.answers.live import LiveResponder, TokenDistributions
from eval.measures.kl import compare
from eval.measures.measure import Scene
from eval.options import EvalRequest
from eval.outcomes.statistics import Interval
from ftri.prompts.sets import PromptRecord, PromptSet, load_prompt_set


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


def load_neutral(request: EvalRequest) -> PromptSet | None:
    """The neutral prompts of a run on an engine: the user's, else those that come with the package."""
    if request.is_served:
        return None
    if request.neutral:
        return load_prompt_set(request.neutral)
    text = (resources.files("eval.measures") / "neutral.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    records = [PromptRecord(row["prompt_id"], row["prompt"], {"language": row["language"]}) for row in rows]
    return PromptSet(records, {"spec": "built-in neutral prompts", "revision": None, "sha256": None})


def read_neutral(scene: Scene, neutral: PromptSet) -> NeutralText:
    """The base's answers to neutral prompts."""
    chosen = neutral.records[: scene.options.neutral_prompts]
    # Greedy, whatever the run's own temperature: the text only has to be the base's own.
    sampling = Sampling(max_tokens=scene.options.kl_tokens)
    requests = [Request(prompt.prompt_id, 0, (("user", prompt.text),), sampling) for prompt in chosen]
    answers = list(scene.collector.answers(scene.plan.base, requests))
    return NeutralText.from_answers(answers, neutral.source)


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
    key = kl_key(live, arm, text, num_listed, seed)
    if key not in collector.journal:
        if not base_cache:
            base_cache.extend(distributions(live, base, text, num_listed))
        edited = distributions(live, arm, text, num_listed)
        value = compare(BASE, arm.name, base_cache, edited, text.answer_starts, seed).answer_tokens
        collector.journal.add_value(key, value.model_dump(mode="json"))
    return collector.journal.checked(key, Interval)


def kl_key(live: LiveResponder, arm: Arm, text: NeutralText, num_listed: int, seed: int) -> str:
    """Where a journal keeps what `kl_from_base` came to."""
    return digest(["kl-from-base", live.identity(), arm.identity(), text.fingerprint(), num_listed, seed])[:32]


def distributions(live: LiveResponder, arm: Arm, text: NeutralText, num_listed: int) -> list[TokenDistributions]:
    """The likeliest next tokens at every position of the text under an arm's edit, in the text's order."""
    scored = sorted(live.score(arm, text.sequences, num_listed, routing=False), key=lambda one: one.index)
    return [one.distributions for one in scored if one.distributions is not None]
