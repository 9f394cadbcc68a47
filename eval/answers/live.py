"""Answers and scores from one engine on this machine, whose router edits change between arms without loading the model again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from eval.answers.arms import BASE, Answer, Arm, Keep, Request, Sampling
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

    def generate(self, prompts: Sequence[Rendered], sampling: Sequence[Sampling]) -> Iterator[Generated]:
        """Answer a batch; yields answers as they finish."""
        ...

    def score(self, sequences: Sequence[list[int]], num_listed: int | None, *, routing: bool) -> Iterator[Scored]:
        """Run given tokens: `num_listed` likeliest next tokens per position (-1: all, None: no distributions),
        and the routing."""
        ...

    def score_each(
        self, sequences: Sequence[Sequence[int]], arms: Sequence[Arm], num_listed: int
    ) -> Iterator[TokenDistributions]:
        """The `num_listed` likeliest next tokens at every position of the n-th sequence under the n-th arm's edit, in order."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Tokens as text, special ones included."""
        ...

    def edit(self, arm: Arm) -> None:
        """Put the arm's edit in force in place of the last one; an arm without experts restores the base exactly."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...


NO_EDIT = (None, (), ())
# An edit that failed may have been made in part; whatever comes next is then made anew.
UNKNOWN_EDIT = ("unknown",)


class LiveResponder:
    """Answers for arms from one loaded model at a time; nothing is loaded before the first question that the
    journal cannot answer."""

    def __init__(self, identity: dict[str, Any], load: Callable[[str | None], LiveModel]) -> None:
        """`load(checkpoint)` loads the base (None) or a variant folder; `identity` says what the base is."""
        self._identity = identity
        self._load = load
        self._model: LiveModel | None = None
        self._checkpoint: str | None = None
        self._edit: tuple[Any, ...] = NO_EDIT
        self.description: dict[str, Any] = {}

    def identity(self) -> dict[str, Any]:
        """See `eval.answers.arms.Responder`."""
        return {"mode": "live", **self._identity}

    def answer(self, arm: Arm, requests: Sequence[Request], keep: Keep) -> None:
        """See `eval.answers.arms.Responder`."""
        model = self.model_for(arm)
        rendered = [model.render(request.messages) for request in requests]
        for generated in model.generate(rendered, [request.sampling for request in requests]):
            prompt, request = rendered[generated.index], requests[generated.index]
            keep(
                generated.index,
                Answer(
                    prompt_id=request.prompt_id,
                    sample=request.sample,
                    text=generated.text,
                    finish_reason=generated.finish_reason,
                    starts_inside_think=prompt.starts_inside_think,
                    prompt_token_ids=prompt.token_ids,
                    token_ids=generated.token_ids,
                ),
            )

    def score(
        self, arm: Arm, sequences: Sequence[list[int]], num_listed: int | None, *, routing: bool
    ) -> Iterator[Scored]:
        """Teacher-forced pass over `sequences` under the arm's edit, see `LiveModel.score`."""
        yield from self.model_for(arm).score(sequences, num_listed, routing=routing)

    def score_each(
        self, sequences: Sequence[Sequence[int]], arms: Sequence[Arm], num_listed: int
    ) -> Iterator[TokenDistributions]:
        """Teacher-forced passes, each under an edit of its own, see `LiveModel.score_each`; the arms edit the base."""
        yield from self.model_for(Arm(BASE, "base")).score_each(sequences, arms, num_listed)

    def model_for(self, arm: Arm) -> LiveModel:
        """The model, loaded and edited as the arm says."""
        if self._model is None or self._checkpoint != arm.checkpoint:
            self.close()
            self._model = self._load(arm.checkpoint)
            # Nothing is edited yet; a variant's folder never is, so its engine need not even be able to.
            self._checkpoint, self._edit = arm.checkpoint, NO_EDIT
            if arm.checkpoint is None:
                self.description = self._model.describe()
        edit = (arm.semantics, arm.suppress, arm.stimulate) if arm.suppress or arm.stimulate else NO_EDIT
        if self._edit != edit:
            self._edit = UNKNOWN_EDIT
            self._model.edit(arm)
            self._edit = edit
        return self._model

    def close(self) -> None:
        """Close the loaded model, if any."""
        model, self._model = self._model, None
        if model is not None:
            model.close()
