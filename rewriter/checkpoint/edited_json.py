"""The JSON of a checkpoint after an edit: config.json, else as it was to the letter, and the header of an edited shard.

config.json keeps key order, unknown keys, and numbers the way they stood.

A shard's header is grown by whole blocks and marked with the edit's fingerprint. vLLM's weight-cache daemon keys on shard names
and headers only, so that without a mark a base and its variant would look the same to it. Growing by exactly 4096 bytes lets
the body, shifted by as much, still share its blocks with the base.
"""

import json
import re
from collections.abc import Mapping
from itertools import count
from typing import Any, Self

from rewriter.json_text import read_json

HEADER_GROWTH_BYTES = 4096
MARK = "mote"
BLOCK_KEY = "mote"
"""Where a config holds the record of the edit; what the record says is known to rewriter/edit/record.py alone."""


class WrittenFloat(float):
    """A number that remembers how it was written (`1E-6`, `0.10`), which Python's own floats do not."""

    text: str

    def __new__(cls, text: str) -> Self:
        """The number that a JSON literal stands for."""
        made = super().__new__(cls, text)
        made.text = text
        return made


def parse_config(text: str) -> dict[str, Any]:
    """A config's JSON object, to be written again by `config_text`.

    Raises: JsonError for text that is no JSON, or none that can be written again.
    """
    config: dict[str, Any] = read_json(text, finite=False, parse_float=WrittenFloat)
    return config


def config_text(config: dict[str, Any]) -> str:
    """The JSON text of a config that `parse_config` read and that was edited since."""
    plain = json.dumps(config, indent=2, ensure_ascii=False)
    # A word that no text of the config holds: a number beside any fixed mark could be somebody's string.
    mark = next(word for number in count() if (word := f"number-{number}-as-written:") not in plain)
    text = json.dumps(_marked(config, mark), indent=2, ensure_ascii=False)
    return re.sub(f'"{mark}([-+.0-9eE]+)"', r"\1", text) + "\n"


def mark_header(document: Mapping[str, Any], length: int, fingerprint: str) -> bytes:
    """The header's JSON with a mark in its `__metadata__`, padded with spaces to `length` plus whole blocks.

    document: the header as it stands, with `length` bytes of JSON in the file.
    """
    # transformers refuses metadata without a format, so where there was none it must not come without.
    metadata = {"format": "pt"} | dict(document.get("__metadata__") or {}) | {MARK: fingerprint}
    marked = {"__metadata__": metadata} | {key: value for key, value in document.items() if key != "__metadata__"}
    text = json.dumps(marked, separators=(",", ":"), ensure_ascii=False).encode()
    growth = HEADER_GROWTH_BYTES
    while len(text) > length + growth:
        growth += HEADER_GROWTH_BYTES
    return text.ljust(length + growth)


def unmarked(document: Mapping[str, Any]) -> dict[str, Any]:
    """A header without MoTE's mark, so that a base's and its variant's compare equal."""
    metadata = {
        key: value for key, value in (document.get("__metadata__") or {}).items() if key not in (MARK, "format")
    }
    rest = {key: value for key, value in document.items() if key != "__metadata__"}
    return {"__metadata__": metadata} | rest


def _marked(value: Any, mark: str) -> Any:
    """The same document with numbers that json would write otherwise as marked strings."""
    if isinstance(value, WrittenFloat) and float.__repr__(value) != value.text:
        return f"{mark}{value.text}"
    if isinstance(value, dict):
        return {key: _marked(item, mark) for key, item in value.items()}
    return [_marked(item, mark) for item in value] if isinstance(value, list) else value
