"""Answers from running servers: the base at one URL, the variant at another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Literal

from eval.answers.arms import Answer, Arm, Keep, Request, identity_of
from eval.answers.journal import Journal
from eval.errors import JournalError
from ftri.endpoint import Endpoint, EndpointError
from ftri.endpoints import Connection, ask_all, connect, list_models, message_text, reasoning_field, template_sha256
from ftri.labels.think_formats import ThinkFormat, starts_inside_think
from ftri.probe import ServerProbe, other_weights, read_probe, take_probe, untold
from ftri.prompts.rendering import Render

Api = Literal["completions", "chat"]
NUM_NAMED = 5


class ServedResponder:
    """Asks `base` for the arms without a checkpoint and `tuned` for the others.

    With `render` the prompt goes to /completions as token ids of the locally rendered template, which no
    server-side template or reasoning
    parser can change; without it the messages go to /chat/completions.
    """

    def __init__(
        self,
        endpoints: dict[str | None, Endpoint],
        render: Render | None,
        template_sha256: str | None = None,
        think_format: ThinkFormat | None = None,
    ) -> None:
        """`endpoints` maps an arm's `checkpoint` (None: the base) to its server; `template_sha256` is that of `render`."""
        self._think_format = think_format
        self.ready_at = 0.0
        self._endpoints = endpoints
        self._render = render
        self._template_sha256 = template_sha256
        self._models: dict[str | None, str] = {}
        self._found: dict[str | None, dict[str, Any]] = {}

    def identity(self) -> dict[str, Any]:
        """The servers, and what `check` found there: the model, where it was loaded from, and the server's own template."""
        return {
            "mode": "served",
            "api": "completions" if self._render else "chat",
            "template_sha256": self._template_sha256,
            **identity_of(self._think_format),
            "servers": {
                str(name): {
                    "url": server.shown_base,
                    "model": self._models.get(name, server.model),
                    "extra_body": server.extra_body,
                    **self._found.get(name, {}),
                }
                for name, server in self._endpoints.items()
            },
        }

    def models(self) -> dict[str, str]:
        """The model name that each server was asked for."""
        return {str(name): model for name, model in self._models.items()}

    def answer(self, arms: Sequence[Arm], requests: Sequence[Request], keep: Keep) -> None:
        """See `eval.answers.arms.Responder`. Raises: EndpointError that names what is missing."""
        for checkpoint in dict.fromkeys(arm.checkpoint for arm in arms):
            positions = [position for position, arm in enumerate(arms) if arm.checkpoint == checkpoint]
            self._answer_at(checkpoint, arms[positions[0]].name, requests, positions, keep)

    def _answer_at(
        self, checkpoint: str | None, name: str, requests: Sequence[Request], positions: Sequence[int], keep: Keep
    ) -> None:
        missing = dict.fromkeys(positions)

        async def ask(connection: Connection, number: int, request: Request) -> None:
            self._models[checkpoint] = connection.model
            keep(positions[number], await self._ask(connection, request))
            del missing[positions[number]]

        try:
            ask_all(self._endpoints[checkpoint], [requests[position] for position in positions], ask)
        except EndpointError as error:
            if len(missing) == len(positions):
                raise
            names = ", ".join(requests[position].prompt_id for position in list(missing)[:NUM_NAMED])
            more = f" and {len(missing) - NUM_NAMED} more" if len(missing) > NUM_NAMED else ""
            raise EndpointError(
                f"{error}; {len(positions) - len(missing)} of {len(positions)} answers of {name!r} are kept,"
                f" missing are {names}{more}; run the same command again to go on from there"
            ) from None

    def check(self) -> None:
        """Look at every server before asking anything, so that a wrong name or key costs nothing. Raises: EndpointError."""
        asyncio.run(self._check())

    async def _check(self) -> None:
        for name, endpoint in self._endpoints.items():
            async with connect(endpoint) as connection:
                self._models[name] = connection.model
                entries = await list_models(connection.client, endpoint)
                entry = next((one for one in entries if one["id"] == connection.model), {})
                # vLLM and SGLang say under `root` which folder or repo the name stands for.
                found = {"root": entry.get("root"), "max_model_len": entry.get("max_model_len")}
                if self._render is None:
                    found["template"] = await template_sha256(connection)
                self._found[name] = found

    def check_weights(self, journal: Journal, say: Callable[[str], None]) -> None:
        """Hold what the servers think of fixed texts now against what they thought when the journal was begun: a name, an address
        and a template stay what they are when other weights are served. What is found is kept for the next run.

        Raises: JournalError when a server has other weights; EndpointError.
        """
        probes = asyncio.run(self._take_probes())
        silent = [self._endpoints[name].shown for name, probe in probes.items() if probe is None]
        if silent:
            say(untold(" and ".join(dict.fromkeys(silent))))
        for name, probe in probes.items():
            if probe is None:
                continue
            key = f"probe {name}"
            then = read_probe(journal.value(key)) if key in journal else None
            reason = other_weights(then, probe, self._endpoints[name].shown) if then is not None else None
            if reason is not None:
                raise JournalError(
                    f"{journal.path}: holds answers of other weights: {reason}; choose another output folder, or serve what they"
                    " were"
                )
            journal.add_value(key, probe.model_dump())

    async def _take_probes(self) -> dict[str | None, ServerProbe | None]:
        probes = {}
        for name, endpoint in self._endpoints.items():
            async with connect(endpoint) as connection:
                probes[name] = await take_probe(connection)
        return probes

    async def _ask(self, connection: Connection, request: Request) -> Answer:
        sampling = request.sampling
        body: dict[str, Any] = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
        }
        if self._render is not None:
            rendered = self._render(request.messages)
            # <think> is a special token in some tokenizers, and the labels need it. vLLM and SGLang know the field; for a server
            # that does not, `--extra-body '{"skip_special_tokens": null}'` leaves it out.
            body |= {"prompt": rendered.token_ids, "skip_special_tokens": False}
            choice = await connection.completion(body)
            return Answer(
                prompt_id=request.prompt_id,
                sample=request.sample,
                text=str(choice.get("text") or ""),
                finish_reason=str(choice.get("finish_reason") or "stop"),
                starts_inside_think=starts_inside_think(rendered.text, self._think_format),
                prompt_token_ids=rendered.token_ids,
            )
        messages = [{"role": role, "content": content} for role, content in request.messages]
        choice = await connection.chat(body | {"messages": messages})
        return Answer(
            prompt_id=request.prompt_id,
            sample=request.sample,
            text=raw_chat_text(choice, connection.endpoint),
            finish_reason=str(choice.get("finish_reason") or "stop"),
        )


def raw_chat_text(choice: dict[str, Any], endpoint: Endpoint) -> str:
    """The message's text, if no reasoning parser has been at it.

    Raises: EndpointError when one has: with it a refusal without tags and a truncated answer look like reasoning.
    """
    name = reasoning_field(choice)
    if name is not None:
        raise EndpointError(
            f"{endpoint.shown} splits reasoning from the answer (its messages have {name!r}), which hides refusals;"
            " serve it without --reasoning-parser or use --api completions"
        )
    return message_text(choice, endpoint)
