"""Base and variant from one engine: both answer in one batch, the variant's request carrying the edit; then the base reads the
variant's answer, which says where it would have chosen the experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from eval.answers.arms import Pair
from eval.answers.plan import NamedEdit
from eval.ask import events
from eval.ask.desk import Asked
from eval.ask.marks import marks_of
from eval.ask.question import Question
from ftri.labels.deciding import DECIDED
from ftri.labels.think_formats import ThinkFormat, starts_inside_think
from ftri.prompts.rendering import Render, RenderedPrompt
from rewriter.errors import InputError

if TYPE_CHECKING:
    from ftri.engine.edits import RouterEdit
    from ftri.engine.engine import Engine, Generation

STOP = "stop"
# The seed of an answer depends on the prompt's id: base and variant draw alike, and so does the same question again.
PROMPT_ID = "the question"


@dataclass
class LiveSides:
    """See `eval.ask.desk.Sides`. The engine records routing and takes live edits; `think_format` tells how answers are split."""

    engine: Engine
    render: Render
    edit: NamedEdit
    think_format: ThinkFormat | None

    @property
    def is_dead(self) -> bool:
        """See `eval.ask.desk.Sides`."""
        return self.engine.is_dead

    @property
    def marked(self) -> list[Pair]:
        """The experts that are marked, as (row of the recorded layers, expert)."""
        rows = {layer: row for row, layer in enumerate(self.engine.layout.moe_layers)}
        return [(rows[layer], expert) for layer, expert in self.edit.pairs]

    def answer(self, asked: Asked) -> None:
        """See `eval.ask.desk.Sides`."""
        question = asked.question
        prompt = self._prompt(question)
        inside = starts_inside_think(prompt.text, self.think_format)
        told = ["", ""]

        def tell(index: int, text: str) -> None:
            if len(text) > len(told[index]):
                asked.tell(events.text(events.SIDES[index], text[len(told[index]) :]))
                told[index] = text

        def watch(index: int, text: str) -> bool:
            tell(index, text)
            return asked.is_stopped

        found: dict[int, Generation] = {}
        for one in self.engine.generate(
            [prompt, prompt], engine_sampling(question), edit=[None, router_edit(self.edit, question)], until=watch
        ):
            tell(one.index, one.text)
            reason = events.STOPPED if one.finish_reason == DECIDED else one.finish_reason
            label = events.label_of(one.text, reason, inside, self.think_format)
            asked.tell(events.end(events.SIDES[one.index], reason, label, len(written(one))))
            found[one.index] = one
        if not asked.is_left:
            self._mark(asked, prompt, *(found[index] for index in range(len(events.SIDES))))

    def _prompt(self, question: Question) -> RenderedPrompt:
        rendered = self.render([("user", question.prompt)])
        num_tokens, most = len(rendered.token_ids), self.engine.max_model_len
        if num_tokens >= most:
            raise InputError(
                f"the prompt has {num_tokens} tokens, expected fewer than {most}, which is all that the engine's context holds"
                " (--max-model-len)"
            )
        return RenderedPrompt(PROMPT_ID, question.prompt, rendered.text, rendered.token_ids)

    def _mark(self, asked: Asked, prompt: RenderedPrompt, base: Generation, variant: Generation) -> None:
        before = prompt.token_ids
        assert base.experts is not None
        asked.tell(events.marks("prompt", marks_of(self._decode, before, base.experts[: len(before)], self.marked)))
        chosen = base.experts[len(before) :]
        asked.tell(events.marks("base", marks_of(self._decode, written(base), chosen, self.marked, before)))
        would_have = self._read(prompt, written(variant))[len(before) :]
        asked.tell(events.marks("variant", marks_of(self._decode, written(variant), would_have, self.marked, before)))

    def _read(self, prompt: RenderedPrompt, answer: Sequence[int]) -> Any:
        """The experts [T, L, K] that the base selects as it reads the prompt and an answer; T all of their tokens, or as many
        as leave room in the context for the one token that an engine has to write."""
        from ftri.engine.engine import Sampling

        token_ids = [*prompt.token_ids, *answer][: self.engine.max_model_len - 1]
        (read,) = self.engine.generate([replace(prompt, token_ids=token_ids)], Sampling(max_tokens=1))
        assert read.experts is not None
        return read.experts

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self.engine.renderer.tokenizer.decode(list(token_ids)))

    def close(self) -> None:
        """See `eval.ask.desk.Sides`."""
        self.engine.close()


def written(generation: Generation) -> list[int]:
    """The tokens of an answer's text: without the one that ended it."""
    return generation.token_ids[:-1] if generation.finish_reason == STOP else generation.token_ids


def router_edit(edit: NamedEdit, question: Question) -> RouterEdit:
    """The edit as the variant's request carries it."""
    from ftri.engine.edits import RouterEdit

    assert question.semantics is not None
    return RouterEdit(
        question.semantics,
        suppress=edit.suppress,
        stimulate=edit.stimulate,
        bias_shifts=edit.shifts_under(question.semantics),
        factors=edit.factors_under(question.semantics),
    )


def engine_sampling(question: Question) -> Any:
    """A question's sampling in the engine's terms."""
    from ftri.engine.engine import Sampling

    return Sampling(max_tokens=question.max_tokens, temperature=question.temperature, seed=question.seed)
