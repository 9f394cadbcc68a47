"""Tokens as text, by the tokenizer of the traces' model: one small file of it, never the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ftri.traces.schema import UNKNOWN_TOKEN_ID
from rewriter.errors import HubError, InputError, printable
from rewriter.hub.errors import hub_errors
from rewriter.json_text import whole_characters
from rewriter.small_file import read_small

TOKENIZER_NAME = "tokenizer.json"
MAX_LETTERS = 200


class TokenTexts:
    """Token ids as text, where the model's tokenizer can be had; otherwise as `#id`, and `problem` says why."""

    def __init__(self, model: str, revision: str | None, is_told: bool = False) -> None:
        """Read one file of a model's tokenizer, see load_tokenizer."""
        self._tokenizer, self.problem = load_tokenizer(model, revision, is_told)

    def __call__(self, token_id: int) -> str:
        """The token's text; a piece of a character, which has none, as the vocabulary writes it; ? for one that is not known."""
        if token_id == UNKNOWN_TOKEN_ID:
            return "?"
        if self._tokenizer is None:
            return f"#{token_id}"
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        if not text or "\ufffd" in text:
            text = self._tokenizer.id_to_token(token_id) or f"#{token_id}"
        return str(text)


def load_tokenizer(model: str, revision: str | None, is_told: bool = False) -> tuple[Any, str | None]:
    """The tokenizer of a model: (tokenizer, None), or (None, why it cannot be had).

    A model that the user told is a local folder or a Hub model, of which the one file is downloaded. One that a trace names
    is looked for in the local Hub cache alone: a report does not wait for a network, and no trace, which a stranger may have
    made, decides which of the user's folders is read.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None, "the package tokenizers is not installed"
    shown = printable(model[:MAX_LETTERS])
    path = _find_file(model, revision, is_told)
    if path is None:
        return None, f"no {TOKENIZER_NAME} of {shown} is on this machine (name a folder or Hub model with --tokenizer)"
    try:
        document = whole_characters(json.loads(read_small(path).decode()))
    except (OSError, ValueError, RecursionError, InputError):
        document = None
    # The library raises a bare Exception for a malformed file, so what can go wrong is looked at first.
    if not isinstance(document, dict) or "model" not in document:
        return None, f"{TOKENIZER_NAME} of {shown} is not a tokenizer file"
    return Tokenizer.from_str(json.dumps(document)), None


def _find_file(model: str, revision: str | None, is_told: bool) -> Path | None:
    from huggingface_hub import hf_hub_download

    path = Path(model) / TOKENIZER_NAME
    if is_told and path.is_file():
        return path
    try:
        with hub_errors(model, transfer=True):
            return Path(hf_hub_download(model, TOKENIZER_NAME, revision=revision, local_files_only=not is_told))
    except HubError:
        return None
