"""Adds up trace folders that were recorded on different machines, or in several sittings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ftri.traces.reader import Responses, TraceReader, check_one_model
from ftri.traces.schema import TraceError
from ftri.traces.writer import TraceWriter, flatten
from rewriter.errors import InputError, quoted

# What may differ between the folders and is listed by source.
SOURCE_KEYS = ("model", "prompts", "sampling", "engine_arguments", "versions", "capture")


def merged_manifest(readers: Sequence[TraceReader]) -> dict[str, Any]:
    """The manifest of the sum.

    Raises:
        TraceError: the folders are of different models, revisions or chat templates, or keep weights differently.
    """
    first = readers[0]
    check_one_model(readers)
    for other in readers[1:]:
        if (found := other.facts.revision) != (expected := first.facts.revision):
            raise TraceError(
                f"{other.folder} has revision {quoted(found)}, expected {quoted(expected)} as in {first.folder}"
            )
        if (kept := other.facts.weights) != (expected_weights := first.facts.weights):
            raise TraceError(
                f"{other.folder} keeps {kept or 'no'} weights, expected {expected_weights or 'none'} as in {first.folder}"
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
    with TraceWriter(output, merged_manifest(readers)) as writer:
        for record in Responses(readers):
            if record.key not in writer.completed:
                writer.append(record)
        return len(writer.completed)
