"""Answers from running servers: the base at one URL, the variant at another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from eval.answers.arms import Answer, Arm, Keep, Request
from eval.answers.endpoints import Endpoint, call, find_model, for_all
from eval.errors import EndpointError

if TYPE_CHECKING:
    import httpx

Api = Literal["completions", "chat"]
# Where servers put the text that a reasoning parser cut off; any of them filled means that classes are hidden.
REASONING_FIELDS = ("reasoning_content", "reasoning")
THINK_OPEN = "<think>"
NUM_NAMED = 5


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model's own chat template writes it, and its tokens."""

    text: str
    token_ids: list[int]

    @property
    def starts_inside_think(self) -> bool:
        """Whether the template itself opens the think block (R1's does since 9-10 February 2025)."""
        return self.text.rstrip().endswith(THINK_OPEN)


Render = Callable[[Sequence[tuple[str, str]]], Rendered]


class ServedResponder:
    """Asks `base` for the arms without a checkpoint and `tuned` for the others.

    With `render` the prompt goes to /completions as token ids of the locally rendered template, which no
    server-side template or reasoning
    parser can change; without it the messages go to /chat/completions.
    """

    def __init__(self, endpoints: dict[str | None, Endpoint], render: Render | None) -> None:
        """`endpoints` maps an arm's `checkpoint` (None: the base) to its server."""
        self._endpoints = endpoints
        self._render = render
        self._models: dict[str | None, str] = {}

    def identity(self) -> dict[str, Any]:
        """Mode, servers and model names."""
        return {
            "mode": "served",
            "api": "completions" if self._render else "chat",
            "servers": {
                str(name): [server.base, server.model, server.extra_body] for name, server in self._endpoints.items()
            },
        }

    def models(self) -> dict[str, str]:
        """The model name that each server was asked for."""
        return {str(name): model for name, model in self._models.items()}

    def answer(self, arm: Arm, requests: Sequence[Request], keep: Keep) -> None:
        """See `eval.answers.arms.Responder`. Raises: EndpointError that names what is missing."""
        asyncio.run(self._answer(arm, requests, keep))

    def check(self) -> None:
        """Look at every server before asking anything, so that a wrong name or key costs nothing. Raises: EndpointError."""
        asyncio.run(self._check())

    async def _check(self) -> None:
        import httpx

        async with httpx.AsyncClient() as client:
            for name, endpoint in self._endpoints.items():
                self._models[name] = await find_model(client, endpoint)

    async def _answer(self, arm: Arm, requests: Sequence[Request], keep: Keep) -> None:
        import httpx

        endpoint = self._endpoints[arm.checkpoint]
        limits = httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        missing = dict.fromkeys(range(len(requests)))
        async with httpx.AsyncClient(limits=limits) as client:
            if arm.checkpoint not in self._models:
                self._models[arm.checkpoint] = await find_model(client, endpoint)
            model = self._models[arm.checkpoint]

            async def ask(position: int, request: Request) -> None:
                answer = await self._ask(client, endpoint, model, request)
                keep(position, answer)
                del missing[position]

            try:
                await for_all(requests, ask, endpoint.concurrency)
            except EndpointError as error:
                if len(missing) == len(requests):
                    raise
                names = ", ".join(requests[position].prompt_id for position in list(missing)[:NUM_NAMED])
                more = f" and {len(missing) - NUM_NAMED} more" if len(missing) > NUM_NAMED else ""
                raise EndpointError(
                    f"{error}; {len(requests) - len(missing)} of {len(requests)} answers of {arm.name!r} are kept,"
                    f" missing are {names}{more}; run the same command again to go on from there"
                ) from None

    async def _ask(self, client: httpx.AsyncClient, endpoint: Endpoint, model: str, request: Request) -> Answer:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": model,
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
            document = await call(client, endpoint, "POST", "/completions", with_extra(body, endpoint))
            choice = first_choice(document, endpoint)
            return Answer(
                prompt_id=request.prompt_id,
                sample=request.sample,
                text=str(choice.get("text") or ""),
                finish_reason=str(choice.get("finish_reason") or "stop"),
                starts_inside_think=rendered.starts_inside_think,
                prompt_token_ids=rendered.token_ids,
            )
        messages = [{"role": role, "content": content} for role, content in request.messages]
        document = await call(
            client, endpoint, "POST", "/chat/completions", with_extra(body | {"messages": messages}, endpoint)
        )
        choice = first_choice(document, endpoint)
        return Answer(
            prompt_id=request.prompt_id,
            sample=request.sample,
            text=raw_chat_text(choice, endpoint),
            finish_reason=str(choice.get("finish_reason") or "stop"),
        )


def with_extra(body: dict[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """The body with the user's own fields over it; null takes a field out."""
    return {name: value for name, value in (body | endpoint.extra_body).items() if value is not None}


def first_choice(document: dict[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """The one choice of a completion. Raises: EndpointError when there is none."""
    choices = document.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    raise EndpointError(
        f"{endpoint.url} answered without choices, expected an OpenAI completion: {str(document)[:80]!r}"
    )


def raw_chat_text(choice: dict[str, Any], endpoint: Endpoint) -> str:
    """The message's text, if no reasoning parser has been at it.

    Raises: EndpointError when one has: with it a refusal without tags and a truncated answer look like reasoning.
    """
    message = choice.get("message") or {}
    for name in REASONING_FIELDS:
        if message.get(name):
            raise EndpointError(
                f"{endpoint.url} splits reasoning from the answer (its messages have {name!r}), which hides refusals;"
                " serve it without --reasoning-parser or use --api completions"
            )
    return str(message.get("content") or "")
