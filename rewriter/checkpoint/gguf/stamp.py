"""Pure: the header of an edited GGUF file, with the edit's record and fingerprint in its metadata.

New metadata shifts the tensors, so the header grows by whole blocks, filled by a text of spaces, and the tensors' bytes can still
share their blocks with the base's. llama.cpp ignores keys that it does not know, in the first file of a split as in the others.
"""

import struct
from collections.abc import Mapping

from rewriter.checkpoint.gguf.header import MAGIC, PREFIX, VERSION, GgufHeader
from rewriter.checkpoint.gguf.types import BOOL, STRING

HEADER_GROWTH_BYTES = 4096
# Metadata that belongs to MoTE: the edit's record as JSON, its fingerprint, and the text that pads the header.
RECORD_KEY, FINGERPRINT_KEY, PADDING_KEY = "mote.record", "mote.fingerprint", "mote.padding"
OWN_KEYS = frozenset({RECORD_KEY, FINGERPRINT_KEY, PADDING_KEY})


def stamped_head(header: GgufHeader, data: bytes, texts: Mapping[str, str], flags: Mapping[str, bool]) -> bytes:
    """All bytes before the tensors: the file's own pairs as they stand, then MoTE's, then the tensor infos.

    data: the file up to its tensors; texts: MoTE's keys and their values, which replace those of an earlier edit; flags: other
    keys and the truth value that they get instead of theirs.
    """
    pairs = [
        data[found.start : found.end]
        for key, found in header.metadata.items()
        if key not in OWN_KEYS and key not in flags
    ]
    pairs += [_string(key) + struct.pack("<IB", BOOL, value) for key, value in flags.items()]
    pairs += [_text_pair(key, text) for key, text in texts.items()]
    pairs.append(_text_pair(PADDING_KEY, ""))
    head = PREFIX.pack(MAGIC, VERSION, len(header.tensors), len(pairs)) + b"".join(pairs)
    infos = data[header.infos_offset : header.infos_end]
    step = max(HEADER_GROWTH_BYTES, header.alignment)
    growth = max(0, -(-(len(head) + len(infos) - header.body_offset) // step)) * step
    padding = header.body_offset + growth - len(head) - len(infos)
    pairs[-1] = _text_pair(PADDING_KEY, " " * padding)
    return PREFIX.pack(MAGIC, VERSION, len(header.tensors), len(pairs)) + b"".join(pairs) + infos


def own_pairs_removed(header: GgufHeader, data: bytes, flags: Mapping[str, bool]) -> bytes:
    """What of a head says something of the model: its pairs without MoTE's and the `flags`, and the tensor infos.

    data: the file up to its tensors.
    """
    pairs = [
        data[found.start : found.end]
        for key, found in header.metadata.items()
        if key not in OWN_KEYS and key not in flags
    ]
    return b"".join(pairs) + data[header.infos_offset : header.infos_end]


def _text_pair(key: str, text: str) -> bytes:
    return _string(key) + struct.pack("<I", STRING) + _string(text)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
