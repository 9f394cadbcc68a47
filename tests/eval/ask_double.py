"""A stand-in for ftri's engine that writes in steps, as the page's answers come; replies.py says what.

A token is a byte of UTF-8, so that characters can be split between tokens. It selects the experts of `routes`. A prompt
with `hold` in it waits after some text until `gate` is set; `slow` takes 30 ms a step; `echo` answers with the rest of its
prompt; `break` kills the engine.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from doubles import MOE_LAYERS, NUM_EXPERTS, TOP_K
from replies import reply

from ftri.engine.engine import EngineError, Generation, Sampling
from ftri.prompts.rendering import Rendered, RenderedPrompt
from rewriter.errors import InputError

# [byte, L, K]: what every token selects.
ROUTES = np.sort(
    np.argsort(np.random.default_rng(0).random((256, len(MOE_LAYERS), NUM_EXPERTS)), axis=-1)[..., :TOP_K], axis=-1
).astype(np.uint8)
# So many tokens are written before a prompt is held.
HELD_AFTER = 6
END_OF_TEXT = 255  # a byte that no UTF-8 has


def render(messages: Sequence[tuple[str, str]]) -> Rendered:
    """A template that marks who speaks, and a token for every byte."""
    text = "".join(f"<{role}>{content}" for role, content in messages) + "<assistant>"
    return Rendered(text, list(text.encode()))


class AskDouble:
    """See `ftri.engine.engine.Engine`; `seeds` and `edits` are what it was asked with."""

    max_model_len = 4096
    layout = SimpleNamespace(moe_layers=MOE_LAYERS, num_experts=NUM_EXPERTS)

    def __init__(self) -> None:
        self.is_dead = self.is_closed = False
        self.renderer = SimpleNamespace(
            tokenizer=SimpleNamespace(decode=lambda ids: bytes(ids).decode("utf-8", "replace"))
        )
        self.num_steps = 0
        self.gate = threading.Event()
        self.edits: list[Any] = []
        self.samplings: list[Sampling] = []

    def generate(
        self, prompts: Sequence[RenderedPrompt], sampling: Sampling, edit: Any = None, until: Any = None
    ) -> Iterator[Generation]:
        """Every prompt writes a token a step."""
        edits = edit if edit is not None else [None] * len(prompts)
        self.edits += edits
        self.samplings.append(sampling)
        planned = [self._plan(prompt, one, sampling) for prompt, one in zip(prompts, edits, strict=True)]
        running = dict(enumerate(planned))
        step = 0
        while running:
            step += 1
            self.num_steps += 1
            time.sleep(0.03 if "slow" in prompts[0].prompt else 0)
            if step > HELD_AFTER and "hold" in prompts[0].prompt:
                assert self.gate.wait(60), "nobody let the answer go on"
            for index, (tokens, reason) in list(running.items()):
                text = self.renderer.tokenizer.decode([one for one in tokens[:step] if one != END_OF_TEXT])
                if step == len(tokens):
                    yield self._made(prompts[index], index, tokens, text, reason)
                elif until is not None and until(index, text.rstrip("\ufffd")):
                    yield self._made(prompts[index], index, tokens[:step], text, "decided")
                else:
                    continue
                del running[index]

    def _plan(self, prompt: RenderedPrompt, edit: Any, sampling: Sampling) -> tuple[list[int], str]:
        if "break" in prompt.text:
            self.is_dead = True
            raise EngineError("vLLM failed while it ran: told to")
        if "refuse" in prompt.text:
            raise InputError("told to refuse")
        text = reply(prompt.text, edit.suppress if edit else ())
        if "echo" in prompt.prompt:
            text = prompt.prompt.partition("echo")[2]
        tokens = [*text.encode(), END_OF_TEXT]
        cut = len(tokens) > sampling.max_tokens
        return tokens[: sampling.max_tokens], "length" if cut else "stop"

    def _made(self, prompt: RenderedPrompt, index: int, tokens: list[int], text: str, reason: str) -> Generation:
        ran = [*prompt.token_ids, *tokens][:-1]
        return Generation(prompt, index, 0, tokens, text, reason, ROUTES[np.asarray(ran)])

    def close(self) -> None:
        self.is_closed = True
