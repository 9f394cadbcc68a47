"""Tokens as text, by the tokenizer of the traces' model: one small file of it, never the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOKENIZER_NAME = "tokenizer.json"


class TokenTexts:
    """Token ids as text, where the model's tokenizer can be had; otherwise as `#id`, and `problem` says why."""

    def __init__(self, model: str, revision: str | None, download: bool = False) -> None:
        """Read tokenizer.json of a local model folder or of the Hub cache; with `download` fetch that one file."""
        self._tokenizer, self.problem = load_tokenizer(model, revision, download)

    def __call__(self, token_id: int) -> str:
        """The token's text; a piece of a character, which has none, as the vocabulary writes it."""
        if self._tokenizer is None:
            return f"#{token_id}"
        text = self._tokenizer.decode([token_id], skip_special_tokens=False)
        if not text or "\ufffd" in text:
            text = self._tokenizer.id_to_token(token_id) or f"#{token_id}"
        return str(text)


def load_tokenizer(model: str, revision: str | None, download: bool = False) -> tuple[Any, str | None]:
    """The tokenizer of a local folder or a Hub model: (tokenizer, None), or (None, why it cannot be had).

    Without `download` only the local Hub cache is looked at, so that a report never waits for a network.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None, "the package tokenizers is not installed"
    path = _find_file(model, revision, download)
    if path is None:
        return None, f"no {TOKENIZER_NAME} of {model} is on this machine (name a folder or Hub model with --tokenizer)"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        document = None
    # The library raises a bare Exception for a malformed file, so what can go wrong is looked at first.
    if not isinstance(document, dict) or "model" not in document:
        return None, f"{TOKENIZER_NAME} of {model} is not a tokenizer file"
    return Tokenizer.from_str(json.dumps(document)), None


def _find_file(model: str, revision: str | None, download: bool) -> Path | None:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path = Path(model) / TOKENIZER_NAME
    if path.is_file():
        return path
    try:
        return Path(hf_hub_download(model, TOKENIZER_NAME, revision=revision, local_files_only=not download))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError):
        return None
