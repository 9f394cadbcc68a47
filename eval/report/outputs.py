"""Puts what a run measured into the result schema, and all its files into the output folder."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rewriter
from eval.measures.measure import Scene
from eval.measures.paper import numbers_for
from eval.outcomes.held_out import HeldOut, prompts_sha256
from eval.report.card import results_section, safety_section
from eval.report.page import render_report
from eval.report.transcripts import FILE_NAME as TRANSCRIPTS
from eval.report.transcripts import choose_examples, write_transcripts
from eval.results import FILE_NAME, SCHEMA_ID, Results
from rewriter.errors import InputError, OutputError, quoted
from rewriter.small_file import MAX_CARD_BYTES, read_small
from rewriter.variant.card_parts import replace_results, replace_safety
from rewriter.whole_file import write_whole

REPORT = "report.html"
# The names under which mote-push looks for the sections in a variant's folder.
CARD_SECTION = "mote-eval.md"
SAFETY_SECTION = "mote-safety.md"
SECTIONS = f"{CARD_SECTION} and {SAFETY_SECTION} of the output folder"


def make_output(folder: Path) -> None:
    """Make the folder of the results. Raises: OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}), expected a folder for the results") from None
    except ValueError as error:
        raise OutputError(
            f"{quoted(str(folder))}: cannot be made ({error}), expected a folder for the results"
        ) from None


def assemble(
    scene: Scene,
    found: Mapping[str, Any],
    output: Path,
    *,
    mode: Any,
    subject: dict[str, Any],
    behavior: str,
    prompt_source: Mapping[str, Any],
    held_out: HeldOut,
    clusters: str,
) -> Results:
    """Write transcripts.jsonl and return everything as one result; `found` are the fields that measures fill."""
    journal, target = scene.collector.journal, scene.target
    transcripts = write_transcripts(output / TRANSCRIPTS, scene.transcripts, journal)
    examples = choose_examples(scene.transcripts[0], scene.base, scene.primary, target.axis, target.label, journal)
    warnings = list(found.get("warnings", []))
    if held_out.status in ("overlap", "unknown"):
        warnings.insert(0, held_out.sentence)
    fields = dict(found) | {
        "schema": SCHEMA_ID,
        "tool_version": rewriter.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "mode": mode,
        "subject": subject,
        "behavior": behavior,
        "target": {
            "axis": target.axis,
            "label": target.label,
            "direction": target.direction,
            "change": target.describe(),
        },
        "primary": scene.plan.primary.name,
        "options": scene.options.recorded(),
        "prompts": {
            **prompt_source,
            "num_prompts": len(scene.prompts),
            "tested_sha256": prompts_sha256(scene.prompts),
        },
        "held_out": held_out,
        "clusters": clusters,
        "arms": [outcomes.summary() for outcomes in scene.outcomes.values()],
        "examples": examples,
        "paper": numbers_for(target.axis, target.direction),
        "warnings": warnings,
        "transcripts": transcripts,
    }
    return Results(**fields)


def write_outputs(results: Results, output: Path) -> None:
    """Write the report, the card's sections and, last, results.json: where that is, the rest is too."""
    write_whole(output / REPORT, render_report(results))
    write_whole(output / CARD_SECTION, results_section(results))
    if results.safety:
        write_whole(output / SAFETY_SECTION, safety_section(results))
    results.save(output / FILE_NAME)


def update_card(folder: Path, results: Results, note: str = "") -> Path:
    """Put the sections into the model card of a variant's folder and leave all else of it as it is; returns the card's path.

    note: a sentence that the results begin with.

    Raises: InputError when the folder has no card.
    """
    card = folder / "README.md"
    # Reading a device or a pipe need not end.
    if card.exists() and not card.is_file():
        raise InputError(f"{card}: is no regular file, expected the model card of a variant")
    try:
        text = read_small(card, MAX_CARD_BYTES).decode()
    except OSError as error:
        raise InputError(f"{card}: cannot be read ({error.strerror}), expected the model card of a variant") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{card}: is not UTF-8 text (byte {error.start}), expected the model card of a variant"
        ) from None
    try:
        text = replace_results(text, f"{note}\n\n{results_section(results)}" if note else results_section(results))
        if results.safety:
            text = replace_safety(text, safety_section(results))
    except ValueError as error:
        raise InputError(f"{card}: {error}; the results are in {SECTIONS}, put them in by hand") from None
    write_whole(card, text)
    return card
