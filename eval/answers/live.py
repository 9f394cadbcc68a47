"""Answers and scores from one engine on this machine: every request carries its arm's router edit, in batches of any mixture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from eval.answers.arms import BASE, Answer, Arm, Keep, Request, Sampling
from ftri.labels.think_formats import ThinkFormat, starts_inside_think
from ftri.prompts.rendering import Rendered

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Generated:
    """One finished answer of the engine; `index` is the position in the batch that was given to it."""

    index: int
    text: str
    token_ids: list[int]
    finish_reason: str


@dataclass(frozen=True)
class TokenDistributions:
    """The likeliest next tokens at every position: `token_ids` int [T, N], `log_probabilities` float [T, N]; T
    positions, N listed tokens."""

    token_ids: np.ndarray
    log_probabilities: np.ndarray


@dataclass(frozen=True)
class Scored:
    """One teacher-forced sequence of T tokens.

    `distributions` covers T - 1 positions, the n-th predicting token n + 1; `routing` int [T', L, K] covers
    the positions that were run
    (T' is T or T - 1). Either is None when it was not asked for.
    """

    index: int
    distributions: TokenDistributions | None
    routing: np.ndarray | None


class LiveModel(Protocol):
    """What is needed of an engine; `eval.answers.engine` makes it from ftri's."""

    moe_layers: Sequence[int]
    num_experts: int
    num_other_choices: int  # ids behind the experts that routers select too (zero-computation experts)

    def describe(self) -> dict[str, Any]:
        """Versions, template hash and whatever else belongs into a result."""
        ...

    def render(self, messages: Sequence[tuple[str, str]]) -> Rendered:
        """Apply the chat template."""
        ...

    def generate(
        self, prompts: Sequence[Rendered], sampling: Sequence[Sampling], arms: Sequence[Arm]
    ) -> Iterator[Generated]:
        """Answer a batch, each prompt under its own arm's edit; yields answers as they finish."""
        ...

    def score(
        self, arm: Arm, sequences: Sequence[list[int]], num_listed: int | None, *, routing: bool
    ) -> Iterator[Scored]:
        """Run given tokens under an arm's edit: `num_listed` likeliest next tokens per position (-1: all, None: no
        distributions), and the routing."""
        ...

    def score_each(
        self, sequences: Sequence[Sequence[int]], arms: Sequence[Arm], num_listed: int
    ) -> Iterator[TokenDistributions]:
        """The `num_listed` likeliest next tokens at every position of the n-th sequence under the n-th arm's edit, in order."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, special ones included."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


class LiveResponder:
    """Answers for arms from one loaded model at a time; nothing is loaded before the first question that the
    journal cannot answer."""

    def __init__(
        self,
        identity: dict[str, Any],
        load: Callable[[str | None], LiveModel],
        think_format: ThinkFormat | None = None,
    ) -> None:
        """`load(checkpoint)` loads the base (None) or a variant folder; `identity` says what the base is, and `think_format`
        how it marks thinking."""
        self._think_format = think_format
        self._identity = identity
        self._load = load
        self._model: LiveModel | None = None
        self.ready_at = 0.0
        self._checkpoint: str | None = None
        self.description: dict[str, Any] = {}

    def identity(self) -> dict[str, Any]:
        """See `eval.answers.arms.Responder`."""
        return {"mode": "live", **self._identity}

    def answer(self, arms: Sequence[Arm], requests: Sequence[Request], keep: Keep) -> None:
        """See `eval.answers.arms.Responder`; arms of one checkpoint share batches, since every request carries its edit."""
        for checkpoint in dict.fromkeys(arm.checkpoint for arm in arms):
            positions = [position for position, arm in enumerate(arms) if arm.checkpoint == checkpoint]
            model = self.model_for(arms[positions[0]])
            rendered = [model.render(requests[position].messages) for position in positions]
            answers = model.generate(
                rendered,
                [requests[position].sampling for position in positions],
                [arms[position] for position in positions],
            )
            for generated in answers:
                prompt, request = rendered[generated.index], requests[positions[generated.index]]
                keep(
                    positions[generated.index],
                    Answer(
                        prompt_id=request.prompt_id,
                        sample=request.sample,
                        text=generated.text,
                        finish_reason=generated.finish_reason,
                        starts_inside_think=starts_inside_think(prompt.text, self._think_format),
                        prompt_token_ids=prompt.token_ids,
                        token_ids=generated.token_ids,
                    ),
                )

    def score(
        self, arm: Arm, sequences: Sequence[list[int]], num_listed: int | None, *, routing: bool
    ) -> Iterator[Scored]:
        """Teacher-forced pass over `sequences` under the arm's edit, see `LiveModel.score`."""
        yield from self.model_for(arm).score(arm, sequences, num_listed, routing=routing)

    def score_each(
        self, sequences: Sequence[Sequence[int]], arms: Sequence[Arm], num_listed: int
    ) -> Iterator[TokenDistributions]:
        """Teacher-forced passes, each under an edit of its own, see `LiveModel.score_each`; the arms edit the base."""
        yield from self.model_for(Arm(BASE, "base")).score_each(sequences, arms, num_listed)

    def model_for(self, arm: Arm) -> LiveModel:
        """The model of an arm's checkpoint, loaded."""
        if self._model is None or self._checkpoint != arm.checkpoint:
            self.close()
            self._model = self._load(arm.checkpoint)
            self.ready_at = time.monotonic()
            self._checkpoint = arm.checkpoint
            if arm.checkpoint is None:
                self.description = self._model.describe()
        return self._model

    def close(self) -> None:
        """Close the loaded model, if any."""
        model, self._model = self._model, None
        if model is not None:
            model.close()
