"""Base and variant at two running servers, which stream; marks where the base's server returns the experts that it selected."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from eval.answers.plan import NamedEdit
from eval.ask import events
from eval.ask.desk import Asked
from eval.ask.events import Side
from eval.ask.marks import Marks, marks_of
from ftri.endpoint import Endpoint, EndpointError
from ftri.endpoints import REASONING_FIELDS, connect
from ftri.engine.engine import Sampling
from ftri.labels.behavior import CUT_OFF
from ftri.labels.think_formats import ThinkFormat, starts_inside_think
from ftri.prompts.rendering import RenderedPrompt, Renderer
from ftri.served import ask, find_runtime, routing_record
from ftri.streaming import stream_choices
from ftri.traces.reader import TraceError
from rewriter.families.family import RouterLayout

# A reader who stops or leaves is noticed this soon.
LOOK_SECONDS = 0.1
STOP = "stop"
PROBE = "Hello"


@dataclass
class Written:
    """One side's answer as far as it came; `token_ids` are None where the server sends none."""

    text: str = ""
    reason: str = ""
    token_ids: list[int] | None = field(default_factory=list)


@dataclass
class ServedSides:
    """See `eval.ask.desk.Sides`. With a `renderer` prompts go to /completions as its tokens, else to /chat/completions;
    `edit` holds the experts that are marked, `layout` the model's layers, None where neither is known."""

    servers: dict[Side, Endpoint]
    renderer: Renderer | None
    think_format: ThinkFormat | None
    edit: NamedEdit
    layout: RouterLayout | None

    is_dead = False

    def words(self) -> str:
        """Who answers, in one line."""
        return "; ".join(f"{side}: {server.model} at {server.shown_base}" for side, server in self.servers.items())

    def why_unmarked(self) -> str | None:
        """Why there will be no marks, found out by asking the base's server; None where there will be.

        Raises:
            EndpointError: the server cannot be asked at all.
        """
        if not self.edit.pairs:
            return "No marks: give --suppress FILE (and --model) to say which experts the variant has switched off."
        if self.renderer is None or self.layout is None:
            return "No marks: with --api chat the server renders prompts, expected --api completions and --model."
        try:
            asyncio.run(self._read(self._prompt(PROBE), []))
        except (EndpointError, TraceError) as error:
            return f"No marks: {error}."
        return None

    def answer(self, asked: Asked) -> None:
        """See `eval.ask.desk.Sides`."""
        asyncio.run(self._answer(asked))

    def close(self) -> None:
        """The servers are not ours."""

    async def _answer(self, asked: Asked) -> None:
        prompt = None if self.renderer is None else self._prompt(asked.question.prompt)
        inside = prompt is not None and starts_inside_think(prompt.text, self.think_format)
        answers: dict[Side, Written] = {side: Written() for side in events.SIDES}
        tasks = {asyncio.create_task(self._write(asked, side, prompt, answers[side])): side for side in events.SIDES}
        running = set(tasks)
        try:
            while running and not asked.is_stopped:
                finished, running = await asyncio.wait(
                    running, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in finished:
                    task.result()
                    self._tell_end(asked, tasks[task], answers[tasks[task]], inside)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        for task in running:
            answers[tasks[task]].reason = events.STOPPED
            self._tell_end(asked, tasks[task], answers[tasks[task]], inside)
        if prompt is not None and self.edit.pairs and self.layout is not None and not asked.is_left:
            await self._mark(asked, prompt, answers)

    async def _write(self, asked: Asked, side: Side, prompt: RenderedPrompt | None, written: Written) -> None:
        question = asked.question
        body: dict[str, Any] = {
            "max_tokens": question.max_tokens,
            "temperature": question.temperature,
            # Not what the model's generation_config.json says, which servers take where nothing is given.
            "top_p": 1.0,
            "seed": question.seed,
        }
        if prompt is not None:
            path = "/completions"
            # Special tokens are printed, since thinking is marked by them in some formats.
            body |= {"prompt": prompt.token_ids, "skip_special_tokens": False}
            if self.edit.pairs:
                body["return_token_ids"] = True
        else:
            path = "/chat/completions"
            body |= {"messages": [{"role": "user", "content": question.prompt}]}
        async with connect(self.servers[side], listed=False) as connection:
            async for choice in stream_choices(connection, path, body):
                text = choice.get("text") if prompt is not None else chat_text(choice, connection.endpoint)
                written.text += text or ""
                if text:
                    asked.tell(events.text(side, text))
                token_ids = choice.get("token_ids")
                if text and token_ids is None:
                    written.token_ids = None
                elif written.token_ids is not None:
                    written.token_ids += token_ids or []
                written.reason = str(choice.get("finish_reason") or written.reason)

    def _tell_end(self, asked: Asked, side: Side, written: Written, inside: bool) -> None:
        reason = written.reason or STOP
        label = events.label_of(written.text, reason, inside, self.think_format)
        asked.tell(events.end(side, reason, label, None if written.token_ids is None else len(written.token_ids)))

    async def _mark(self, asked: Asked, prompt: RenderedPrompt, answers: dict[Side, Written]) -> None:
        before = prompt.token_ids
        try:
            for side, written in answers.items():
                token_ids = self._tokens(written)
                # Room for the one token that a server has to write; what was cut off may fill its context.
                read = token_ids[:-1] if written.reason == CUT_OFF else token_ids
                experts = await self._read(prompt, read)
                if side == "base":
                    asked.tell(events.marks("prompt", self._marks(before, experts[: len(before)])))
                asked.tell(events.marks(side, self._marks(token_ids, experts[len(before) :], before)))
        except (EndpointError, TraceError) as error:
            asked.tell(events.unmarked(f"No marks: {error}."))

    def _tokens(self, written: Written) -> list[int]:
        """The tokens of an answer's text: those of the server without the one that ended it, or else the tokenizer's."""
        assert self.renderer is not None
        if written.token_ids is None:
            return list(self.renderer.tokenizer.encode(written.text, add_special_tokens=False))
        if written.reason == STOP and self._decode(written.token_ids) != written.text:
            return written.token_ids[:-1]
        return written.token_ids

    def _marks(self, token_ids: Sequence[int], experts: npt.NDArray[Any], context: Sequence[int] = ()) -> Marks:
        assert self.layout is not None
        rows = {layer: row for row, layer in enumerate(self.layout.moe_layers)}
        marked = [(rows[layer], expert) for layer, expert in self.edit.pairs]
        return marks_of(self._decode, token_ids, experts, marked, context)

    async def _read(self, prompt: RenderedPrompt, answer: Sequence[int]) -> npt.NDArray[np.integer[Any]]:
        """The experts [T, L, K] that the base selects as it reads the T tokens of the prompt and an answer.

        Raises:
            EndpointError: the server cannot be asked, or returns no experts.
            TraceError: what it returns cannot be those of this model.
        """
        assert self.layout is not None
        whole = replace(prompt, token_ids=[*prompt.token_ids, *answer])
        async with connect(self.servers["base"], listed=False) as connection:
            runtime = await find_runtime(connection)
            served = await ask(connection, runtime, self.layout, Sampling(max_tokens=1), whole)
        experts = routing_record(self.layout, whole, 0, served).experts
        assert experts is not None
        return experts

    def _prompt(self, text: str) -> RenderedPrompt:
        assert self.renderer is not None
        rendered = self.renderer.conversation([("user", text)])
        return RenderedPrompt("the question", text, rendered.text, rendered.token_ids)

    def _decode(self, token_ids: Sequence[int]) -> str:
        assert self.renderer is not None
        return str(self.renderer.tokenizer.decode(list(token_ids)))


def chat_text(choice: dict[str, Any], endpoint: Endpoint) -> str | None:
    """The text of a streamed chat choice.

    Raises:
        EndpointError: a reasoning parser cut part of it off, which hides refusals.
    """
    delta = choice.get("delta")
    if not isinstance(delta, dict):
        return None
    name = next((name for name in REASONING_FIELDS if delta.get(name)), None)
    if name is not None:
        raise EndpointError(
            f"{endpoint.shown} splits reasoning from the answer (its messages have {name!r}), which hides refusals;"
            " serve it without --reasoning-parser or use --api completions"
        )
    content = delta.get("content")
    return content if isinstance(content, str) else None


def find_servers(base: Endpoint, variant: Endpoint) -> dict[Side, Endpoint]:
    """The two servers with the names of the models that they serve.

    Raises:
        EndpointError: one cannot be reached, or serves another model than is asked for.
    """

    async def name(endpoint: Endpoint) -> str:
        async with connect(endpoint) as connection:
            return connection.model

    async def both() -> tuple[str, str]:
        return await asyncio.gather(name(base), name(variant))

    models = asyncio.run(both())
    return {
        side: replace(endpoint, model=model)
        for side, endpoint, model in zip(events.SIDES, (base, variant), models, strict=True)
    }
