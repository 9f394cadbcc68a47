"""A stand-in for ftri's engine as a whole: replies.py's answers, made-up routing, and scores that follow the replies."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from doubles import MOE_LAYERS, NUM_EXPERTS, TOP_K, VOCABULARY, FollowedModel

from eval.answers.arms import Arm
from eval.answers.arms import Sampling as EvalSampling
from ftri.engine.edits import RouterEdit
from ftri.engine.engine import Generation, Sampling, Score
from ftri.prompts.rendering import Rendered, Renderer, load_tokenizer
from rewriter.checkpoint.reader import Checkpoint

NUM_TOKENS = 512
# [V, L, K]: what every token selects.
ROUTE_OF_TOKEN = np.sort(
    np.argsort(np.random.default_rng(0).random((NUM_TOKENS, len(MOE_LAYERS), NUM_EXPERTS)), axis=-1)[..., :TOP_K],
    axis=-1,
).astype(np.uint8)


class EngineDouble:
    """See `ftri.engine.engine.Engine`; `dies_after` responses it raises KeyboardInterrupt, as Ctrl-C does."""

    capture = "double"

    def __init__(self, folder: Path, dies_after: int | None = None) -> None:
        self.layout = Checkpoint.open(folder).layout
        assert tuple(self.layout.moe_layers) == MOE_LAYERS and self.layout.num_experts == NUM_EXPERTS
        self.renderer = Renderer(load_tokenizer(folder))
        self.num_generated = 0
        self.num_scored = 0
        self.dies_after = dies_after
        self._model = FollowedModel()

    def generate_by_step(
        self,
        prompts: Any,
        sampling: Sampling,
        samples: int = 1,
        skip: Any = (),
        edit: Any = None,
        until: Any = None,
    ) -> Iterator[list[Generation]]:
        for generation in self.generate(prompts, sampling, edit, until, skip):
            yield [generation]

    def generate(
        self, prompts: Any, sampling: Sampling, edit: Any = None, until: Any = None, skip: Any = ()
    ) -> Iterator[Generation]:
        prompts = list(prompts)
        edits = [None] * len(prompts) if edit is None else list(edit)
        for index, (prompt, one) in enumerate(zip(prompts, edits, strict=True)):
            if (prompt.prompt_id, 0) in skip:
                continue
            if self.dies_after is not None and self.num_generated >= self.dies_after:
                raise KeyboardInterrupt
            self.num_generated += 1
            self._model.know(prompt.token_ids, prompt.text)
            (said,) = self._model.generate(
                [Rendered(prompt.text, prompt.token_ids)], [EvalSampling(sampling.max_tokens)], [arm_of(one)]
            )
            text, reason = said.text, said.finish_reason
            if until is not None:
                ends = [end for end in range(1, len(text) + 1) if until(index, text[:end])]
                text, reason = (text[: ends[0]], "decided") if ends else (text, reason)
            tokens = said.token_ids[: len(text)]
            yield Generation(prompt, index, 0, tokens, text, reason, routes([*prompt.token_ids, *tokens]))

    def score(
        self, token_ids: Sequence[Sequence[int]], num_logprobs: int | None = None, edit: Any = None
    ) -> list[Score]:
        edits = [edit] * len(token_ids) if edit is None or isinstance(edit, RouterEdit) else list(edit)
        self.num_scored += len(token_ids)
        scores = []
        for tokens, one in zip(token_ids, edits, strict=True):
            self._know_prompt(list(tokens))
            (listed,) = self._model.score_each([tokens], [arm_of(one)], num_logprobs or VOCABULARY)
            own = np.zeros(len(tokens) - 1, np.float32)
            remainder = np.zeros(len(tokens) - 1, np.float32)
            scores.append(
                Score(own, listed.log_probabilities.astype(np.float32), listed.token_ids, remainder, routes(tokens))
            )
        return scores

    def _know_prompt(self, tokens: list[int]) -> None:
        """A recording of another process may have asked the prompt that the tokens begin with."""
        end = tokens.index(self.renderer.tokenizer.convert_tokens_to_ids("<assistant>")) + 1
        self._model.know(tokens[:end], self.renderer.tokenizer.decode(tokens[:end]))

    def close(self) -> None:
        self._model.close()


def arm_of(edit: RouterEdit | None) -> Arm:
    """The edit as evaluations name it."""
    if edit is None:
        return Arm("base", "base")
    return Arm("edit", "sweep", edit.semantics, tuple(edit.suppress), tuple(edit.stimulate))


def routes(tokens: Sequence[int]) -> np.ndarray:
    """Experts [T, L, K] that depend on each token alone; the last token is not run."""
    return ROUTE_OF_TOKEN[np.asarray(tokens[:-1])]
