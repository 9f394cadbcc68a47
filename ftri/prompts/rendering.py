"""From a user's prompt to the token ids a model is given, and the hash that tells which chat template did it.

The template matters: around 9-10 February 2025 DeepSeek-R1's own began to open the think block, and with it the empty
think block that refusals start with cannot be seen any more. So its hash is kept with every trace.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftri.prompts.sets import PromptRecord
from rewriter.edit.dial import open_base, open_served
from rewriter.edit.record import without_record
from rewriter.errors import InputError
from rewriter.small_file import MAX_CARD_BYTES, read_small


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the model gets it: the user's text, the rendered text, its token ids, the template's hash.

    `template_sha256` is None for a raw prompt, to which no template was applied.
    """

    prompt_id: str
    prompt: str
    text: str
    token_ids: list[int]
    template_sha256: str | None = None
    factors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model's own chat template writes it, and its tokens."""

    text: str
    token_ids: list[int]


Render = Callable[[Sequence[tuple[str, str]]], Rendered]


class Renderer:
    """Applies a chat template and tokenizes."""

    def __init__(self, tokenizer: Any, chat_template: str | None = None) -> None:
        """Use a transformers tokenizer, with its own chat template or another one (Jinja text)."""
        self.tokenizer = tokenizer
        self.chat_template = chat_template if chat_template is not None else tokenizer.chat_template

    @property
    def template_sha256(self) -> str | None:
        """SHA-256 of the chat template's text; None when the model has none."""
        return hashlib.sha256(self.chat_template.encode()).hexdigest() if self.chat_template else None

    def render(self, record: PromptRecord, raw: bool = False) -> RenderedPrompt:
        """Render one prompt as a user's message, or as it is when `raw`.

        Raises:
            InputError: the model has no chat template, or no token is left to run.
        """
        if raw:
            text, template_sha256 = record.text, None
            token_ids = self.tokenizer.encode(text)
        else:
            if not self.chat_template:
                raise InputError(
                    "the model's tokenizer has no chat template, expected one (give --chat-template FILE, or --raw for none)"
                )
            template_sha256 = self.template_sha256
            rendered = self.conversation([("user", record.text)])
            text, token_ids = rendered.text, rendered.token_ids
        if not token_ids:
            raise InputError(f"prompt {record.prompt_id!r} is empty, expected at least one token")
        return RenderedPrompt(record.prompt_id, record.text, text, list(token_ids), template_sha256, record.factors)

    def conversation(self, messages: Sequence[tuple[str, str]]) -> Rendered:
        """Messages as (role, text), followed by what opens the model's answer.

        Raises:
            InputError: the template, which is a program of somebody else's, fails.
        """
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": role, "content": content} for role, content in messages],
                chat_template=self.chat_template,
                tokenize=False,
                add_generation_prompt=True,
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
            raise InputError(
                f"the chat template cannot be rendered ({first_line(error)}), expected Jinja text"
            ) from None
        # The template writes the begin-of-text token itself.
        return Rendered(text, list(self.tokenizer.encode(text, add_special_tokens=False)))


def make_render(folder: Path, chat_template: Path | None = None) -> tuple[Render, str]:
    """(a function from messages to text and tokens, the SHA-256 of the template it uses), without an engine.

    Raises:
        InputError: as `make_renderer`.
    """
    renderer = make_renderer(folder, chat_template)
    assert renderer.template_sha256 is not None
    return renderer.conversation, renderer.template_sha256


def make_renderer(folder: Path, chat_template: Path | None = None) -> Renderer:
    """A renderer that has a template, without an engine.

    Raises:
        InputError: the folder has no tokenizer or no template, or the template file cannot be read.
    """
    renderer = Renderer(load_tokenizer(folder), load_chat_template(chat_template) if chat_template else None)
    if renderer.template_sha256 is None:
        raise InputError(f"{folder}: the tokenizer has no chat template, expected one (or give --chat-template FILE)")
    return renderer


def load_chat_template(path: Path) -> str:
    """Read a chat template's Jinja text from a file.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file, expected a chat template (Jinja text)")
    try:
        return read_small(path, MAX_CARD_BYTES).decode()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}), expected a chat template") from None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint folder, without an engine.

    Raises:
        InputError: the folder has none that transformers can load.
    """
    # Without PyTorch transformers says that no models will be available; a tokenizer is all that is wanted.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoConfig, AutoTokenizer

    try:
        if open_served(folder) is None:
            return AutoTokenizer.from_pretrained(folder)
        # transformers refuses a served variant by its model_type; its tokenizer is the base's.
        config = AutoConfig.for_model(**without_record(open_base(folder).config))
        return AutoTokenizer.from_pretrained(folder, config=config)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} has no tokenizer that transformers can load ({first_line(error)})") from error


def decoded_prompt(prompt_id: str, token_ids: list[int], tokenizer: Any) -> RenderedPrompt:
    """The prompt that token ids stand for, where nothing else of it is known."""
    text = str(tokenizer.decode(token_ids))
    return RenderedPrompt(prompt_id, text, text, token_ids)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, to be quoted within a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
