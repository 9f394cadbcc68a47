"""Conversations as a model's own chat template writes them, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval.answers.served import Render, Rendered
from ftri.prompts.rendering import Renderer, load_chat_template, load_tokenizer
from rewriter.errors import InputError


def make_render(folder: Path, chat_template: Path | None = None) -> tuple[Render, str]:
    """(a function from messages to text and tokens, the SHA-256 of the template it uses).

    Raises: InputError when the folder has no tokenizer or no template, or the template file cannot be read.
    """
    renderer = Renderer(load_tokenizer(folder), load_chat_template(chat_template) if chat_template else None)
    if renderer.template_sha256 is None:
        raise InputError(f"{folder}: the tokenizer has no chat template, expected one (or give --chat-template FILE)")

    def render(messages: Sequence[tuple[str, str]]) -> Rendered:
        text = renderer.tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in messages],
            chat_template=renderer.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        # The template writes the begin-of-text token itself.
        return Rendered(text, list(renderer.tokenizer.encode(text, add_special_tokens=False)))

    return render, renderer.template_sha256
