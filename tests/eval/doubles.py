"""A deterministic stand-in for an engine, see replies.py for what it says."""

import os
import signal
from collections.abc import Iterator, Sequence

import numpy as np
from replies import reply, share

from eval.answers.arms import Arm, Sampling
from eval.answers.live import Generated, Scored, TokenDistributions
from ftri.prompts.rendering import Rendered

MOE_LAYERS = (1, 2, 3)
NUM_EXPERTS = 16
TOP_K = 4
VOCABULARY = 32


class FakeModel:
    """See `eval.answers.live.LiveModel`."""

    moe_layers = MOE_LAYERS
    num_experts = NUM_EXPERTS
    num_other_choices = 0

    def __init__(self, kill_after: int | None = None) -> None:
        self.num_generated = 0
        self.closed = False
        self._kill_after = kill_after

    def describe(self) -> dict[str, object]:
        return {"engine": "double"}

    def render(self, messages: Sequence[tuple[str, str]]) -> Rendered:
        text = "".join(f"<{role}>{content}" for role, content in messages)
        return Rendered(text, [byte % VOCABULARY for byte in text.encode()])

    def generate(
        self, prompts: Sequence[Rendered], sampling: Sequence[Sampling], arms: Sequence[Arm]
    ) -> Iterator[Generated]:
        assert len(prompts) == len(sampling) == len(arms)
        # Out of order, as a real engine finishes.
        for index in reversed(range(len(prompts))):
            if self._kill_after is not None and self.num_generated >= self._kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
            self.num_generated += 1
            text = reply(prompts[index].text, arms[index].suppress, arms[index].stimulate)
            yield Generated(
                index, text, [byte % VOCABULARY for byte in text.encode()][: sampling[index].max_tokens], "stop"
            )

    def score(
        self, arm: Arm, sequences: Sequence[list[int]], num_listed: int | None, *, routing: bool
    ) -> Iterator[Scored]:
        for index, tokens in enumerate(sequences):
            generator = np.random.default_rng(int(share(tuple(tokens)) * 2**32))
            logits = generator.normal(size=(len(tokens) - 1, VOCABULARY))
            routes = np.argsort(generator.random((len(tokens), len(MOE_LAYERS), NUM_EXPERTS)), axis=-1)[..., :TOP_K]
            for layer, expert in arm.suppress:
                hit = (routes[:, MOE_LAYERS.index(layer)] == expert).any(axis=-1)[1:]
                strength = {"reroute": 0.2, "drop": 0.3, "drop-renorm": 0.25}[str(arm.semantics)]
                logits[hit] += strength * np.random.default_rng(layer * 100 + expert).normal(size=VOCABULARY)
            log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            order = np.argsort(-log_probabilities, axis=1)[:, : None if num_listed == -1 else num_listed]
            distributions = TokenDistributions(order, np.take_along_axis(log_probabilities, order, axis=1))
            yield Scored(index, distributions if num_listed is not None else None, routes if routing else None)

    def close(self) -> None:
        self.closed = True


class FollowedModel(FakeModel):
    """Scores forced tokens as the stand-in would have replied: its own next token is likely, all others are not."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: dict[tuple[int, ...], str] = {}

    def render(self, messages: Sequence[tuple[str, str]]) -> Rendered:
        rendered = super().render(messages)
        self.know(rendered.token_ids, rendered.text)
        return rendered

    def know(self, token_ids: Sequence[int], text: str) -> None:
        """Remember what a prompt's tokens say."""
        self._texts[tuple(token_ids)] = text

    def score_each(
        self, sequences: Sequence[Sequence[int]], arms: Sequence[Arm], num_listed: int
    ) -> Iterator[TokenDistributions]:
        for sequence, arm in zip(sequences, arms, strict=True):
            prompt = max((p for p in self._texts if tuple(sequence[: len(p)]) == p), key=len)
            own = [byte % VOCABULARY for byte in reply(self._texts[prompt], arm.suppress).encode()]
            rows = np.full((len(sequence) - 1, VOCABULARY), 0.2 / VOCABULARY)
            for position in range(len(prompt) - 1, len(sequence) - 1):
                said = position - len(prompt) + 1
                if list(sequence[len(prompt) : position + 1]) == own[:said] and said < len(own):
                    rows[position, own[said]] += 0.8
            rows /= rows.sum(axis=1, keepdims=True)
            order = np.argsort(-rows, axis=1)[:, :num_listed]
            yield TokenDistributions(order, np.log(np.take_along_axis(rows, order, axis=1)))

    def decode(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(str, token_ids))
