"""Recordings of other recorders made into what mote-ftri reads: trace folders, or class totals where only sums are left.

Which reader a file gets is told by its ending and, for SGLang's dumps, by whether a class is given with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftri.foreign import answers, sglang
from ftri.prompts.rendering import load_tokenizer
from ftri.traces.class_totals import ClassTotals, describe_source
from ftri.traces.reader import TraceRecord
from ftri.traces.writer import TraceWriter
from rewriter.checkpoint.reader import Checkpoint
from rewriter.errors import InputError
from rewriter.families.family import RouterLayout
from rewriter.hub.models import ResolvedModel, resolve_description
from rewriter.variant.output_folder import OutputFolder

DUMP, ARRAY, ANSWERS = ".pt", ".npy", (".jsonl", ".json")
NO_TOKENS = (
    "arrays hold no token ids, texts or the prompt's end: the files' names are the prompts' ids, all rows count as the prompt's,"
    " and what hangs on tokens is not computed. Give the classes with mote-ftri --labels FILE"
)
SUMS_ONLY = (
    "dumps of totals hold no single responses; a token counts once in each rank that routes it, so numbers of tokens may be"
    " multiples, shares are not"
)


@dataclass
class ImportSummary:
    """What was imported, and in words what the files could not tell."""

    output: str
    responses: int = 0
    tokens: int = 0
    notes: list[str] = field(default_factory=list)


def import_recordings(
    files: Sequence[Path], output: Path, model: str, revision: str | None, say: Callable[[str], None]
) -> ImportSummary:
    """Write the responses of all files into a new trace folder, which appears whole or not at all.

    Raises:
        InputError: a file is of no known kind, or holds nothing that fits the model.
        TraceError: rows that cannot be a recording.
        OutputError: the folder cannot be written.
    """
    _check_new(output)
    has_token_ids = not all(path.suffix == ARRAY for path in files)
    if has_token_ids and any(path.suffix == ARRAY for path in files):
        raise InputError(f"{ARRAY} files hold no token ids, the others do; import them into two folders")
    resolved, checkpoint = _describe(model, revision, say)
    layout = checkpoint.layout
    tokenizer = load_tokenizer(resolved.folder) if has_token_ids else None
    manifest = {
        "model": _name(resolved),
        "revision": resolved.revision,
        "model_type": checkpoint.config.get("model_type"),
        "config_sha256": hashlib.sha256(checkpoint.config_text.encode()).hexdigest(),
        "moe_layers": list(layout.moe_layers),
        "num_experts": layout.num_experts,
        **({"num_other_choices": layout.num_other_choices} if layout.num_other_choices else {}),
        "top_k": layout.top_k,
        "template_sha256": None,
        **({} if has_token_ids else {"has_token_ids": False}),
        "imported_from": [path.name for path in files],
    }
    summary = ImportSummary(str(output), notes=[] if has_token_ids else [NO_TOKENS])
    with OutputFolder(output, resolved.folder) as folder:
        with TraceWriter(folder.partial, manifest) as writer:
            for path in files:
                before = summary.responses
                for record in _records(path, layout, tokenizer, summary.notes):
                    writer.append(record)
                    summary.responses += 1
                    summary.tokens += record.num_rows
                if summary.responses == before:
                    raise InputError(f"{path.name}: holds no whole response, expected a recording of {model}")
        folder.commit()
    return summary


def import_totals(
    files: Mapping[str, Sequence[Path]], output: Path, model: str, revision: str | None, say: Callable[[str], None]
) -> ClassTotals:
    """Write the totals of the classes' dumps, `files` by class, as one JSON file.

    Raises:
        InputError: a file is no dump of SGLang's recorder, or does not fit the model.
        OutputError: the file cannot be written.
    """
    wrong = next((path for paths in files.values() for path in paths if path.suffix != DUMP), None)
    if wrong is not None:
        raise InputError(
            f"{wrong.name}: expected a dump of SGLang's recorder ({DUMP}) behind CLASS=; counts of llama-imatrix go to"
            " mote-ftri --imatrix CLASS=FILE, responses are imported without a class"
        )
    _check_new(output)
    resolved, checkpoint = _describe(model, revision, say)
    notes = [SUMS_ONLY]
    totals = ClassTotals(
        recorder=sglang.RECORDER,
        classes={name: sglang.class_selections(paths, checkpoint.layout, notes) for name, paths in files.items()},
        sources=[describe_source(name, path) for name, paths in files.items() for path in paths],
        model=_name(resolved),
        revision=resolved.revision,
        notes=notes,
    )
    totals.save(output)
    return totals


def _check_new(output: Path) -> None:
    if output.exists():
        raise InputError(f"{output} exists already, expected a new name; choose another -o")


def _describe(model: str, revision: str | None, say: Callable[[str], None]) -> tuple[ResolvedModel, Checkpoint]:
    resolved = resolve_description(model, revision, say)
    return resolved, Checkpoint.open(resolved.folder)


def _name(resolved: ResolvedModel) -> str:
    return resolved.repo_id or resolved.folder.resolve().name


def _records(path: Path, layout: RouterLayout, tokenizer: Any, notes: list[str]) -> Iterator[TraceRecord]:
    if path.suffix == DUMP:
        return sglang.dumped_requests(path, layout, tokenizer, notes)
    if path.suffix in ANSWERS:
        return answers.answered(path, layout, tokenizer)
    if path.suffix == ARRAY:
        return answers.array(path, layout)
    raise InputError(
        f"{path.name}: expected SGLang's dump ({DUMP}), responses with their routing ({ANSWERS[0]}), or vLLM's routed_experts"
        f" ({ARRAY})"
    )
