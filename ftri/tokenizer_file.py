"""The tokenizer of a trace's model, only to show tokens as text: one small file, never the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load_tokenizer(model: str, revision: str | None) -> tuple[Any, str | None]:
    """(tokenizer, None), or (None, why it cannot be had)."""
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None, "the package tokenizers is not installed"
    path = Path(model) / "tokenizer.json"
    if not path.is_file():
        try:
            path = Path(hf_hub_download(model, "tokenizer.json", revision=revision))
        except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError):
            return None, f"no tokenizer.json of {model} was found"
    # The library raises plain Exception for a malformed file, so the file is checked to be JSON with a model first.
    document = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(document, dict) or "model" not in document:
        return None, f"{path.name} of {model} is not a tokenizer file"
    return Tokenizer.from_str(json.dumps(document)), None
