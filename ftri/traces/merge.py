"""Adds up trace folders that were recorded on different machines, or in several sittings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftri.traces.reader import TraceError, TraceReader
from ftri.traces.writer import TraceWriter, flatten
from rewriter.errors import InputError

# What makes routing comparable. Sampling, prompts and engine settings may differ and are listed by source.
IDENTITY_KEYS = ("config_sha256", "moe_layers", "num_experts", "top_k", "template_sha256", "revision")
SOURCE_KEYS = ("model", "prompts", "sampling", "engine_arguments", "versions", "capture")


def merged_manifest(readers: Sequence[TraceReader]) -> dict[str, Any]:
    """The manifest of the sum.

    Raises:
        TraceError: the folders are of different models, revisions or chat templates.
    """
    first = readers[0]
    for other in readers[1:]:
        for key in IDENTITY_KEYS:
            found, expected = other.manifest.get(key), first.manifest.get(key)
            if found != expected:
                raise TraceError(
                    f"{other.folder} has {key} {json.dumps(found)}, "
                    f"expected {json.dumps(expected)} as in {first.folder}"
                )
    sources = [{key: reader.manifest.get(key) for key in SOURCE_KEYS} for reader in readers]
    common = {
        key: value
        for key, value in first.manifest.items()
        if all(flatten(reader.manifest.get(key)) == flatten(value) for reader in readers)
    }
    return {"model": first.manifest["model"], **common, "merged_from": sources}


def merge_traces(folders: Sequence[str | Path], output: str | Path) -> int:
    """Write the responses of all `folders` into the new or half-written folder `output`, one at a time.

    A response that several folders hold is kept once. Returns the number of responses in `output`.

    Raises:
        InputError: `output` is one of the folders.
        TraceError: the folders do not belong together, or give different content for the same sample of the same prompt.
    """
    if not folders:
        raise InputError("no trace folders were given to merge, expected at least one")
    if Path(output).resolve() in {Path(folder).resolve() for folder in folders}:
        raise InputError(f"{output} is one of the folders to merge, expected another folder for the result")
    readers = [TraceReader(folder) for folder in folders]
    digests: dict[tuple[str, int], tuple[str, Path]] = {}
    with TraceWriter(output, merged_manifest(readers)) as writer:
        for reader in readers:
            for record in reader:
                digest = record.digest()
                known = digests.setdefault(record.key, (digest, reader.folder))
                if known[0] != digest:
                    raise TraceError(
                        f"{reader.folder} and {known[1]} hold different responses as sample {record.sample} of prompt "
                        f"{record.prompt_id!r}, expected equal or separate ones"
                    )
                if record.key not in writer.completed:
                    writer.append(record)
        return len(writer.completed)
