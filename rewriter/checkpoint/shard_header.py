"""Pure: the header of an edited shard. It is grown by whole blocks and marked with the edit's fingerprint.

vLLM's weight-cache daemon keys on shard names and headers only, so that without a mark a base and its variant would look the same
to it. Growing by exactly 4096 bytes lets the body, shifted by as much, still share its blocks with the base (storage.md).
"""

import json
from collections.abc import Mapping
from typing import Any

HEADER_GROWTH_BYTES = 4096
MARK = "mote"


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
