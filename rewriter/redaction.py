"""Takes secrets out of text that came from elsewhere, or that is about to be written down."""

import os
import re
import sys
from collections.abc import Mapping
from typing import Any

HIDDEN = "<token>"
# Where tools look for a key; the values are taken out of every text wherever they stand.
KEY_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "OPENAI_API_KEY", "VLLM_API_KEY")
MIN_SECRET_LETTERS = 8  # shorter ones would take ordinary words out
# Tokens of the Hub: a prefix and letters and digits without a break (hf_hub_download is a function's name).
_TOKEN = re.compile(r"\b(?:hf_|api_org_)[A-Za-z0-9]{16,}\b|\bhf_(?:oauth|jwt)_[A-Za-z0-9._-]{16,}")
_AUTHORIZATION = re.compile(r"(?i)\bbearer\s+[^\s'\"]+")
_CREDENTIALS = re.compile(r"://[^\s/@]+@")
_QUERY = re.compile(r"(https?://[^\s?]+)\?[^\s)\"']+")
_SECRET_NAME = re.compile(r"(?i)(^|[-_.])(token|api[-_]?key|password|passwd|secret|credentials?|authorization)s?$")


def redact(text: str) -> str:
    """Text without secrets: the keys in use, the Hub's tokens, authorization headers, credentials and queries in URLs."""
    for secret in _known_secrets():
        text = text.replace(secret, HIDDEN)
    text = _TOKEN.sub(HIDDEN, text)
    text = _AUTHORIZATION.sub(f"Bearer {HIDDEN}", text)
    text = _CREDENTIALS.sub("://", text)
    return _QUERY.sub(r"\1", text)


def is_secret_name(name: str) -> bool:
    """Whether a setting of this name holds a secret: `hf_token`, `--api-key`, `password`, ..., not `max_tokens`."""
    return bool(_SECRET_NAME.search(name)) and "max" not in name.lower()


def without_secrets(value: Any) -> Any:
    """A JSON value to be written down: settings with a secret's name hold HIDDEN, every text is redacted."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(key, str) and is_secret_name(key) and isinstance(item, str)
            else without_secrets(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _known_secrets() -> list[str]:
    """The keys of this process: those in the environment and, where the Hub's client is in use, its token."""
    found = [os.environ.get(name, "").strip() for name in KEY_VARIABLES]
    client = sys.modules.get("huggingface_hub.utils")
    if client is not None:
        found.append(client.get_token() or "")
    return sorted({secret for secret in found if len(secret) >= MIN_SECRET_LETTERS}, key=len, reverse=True)
