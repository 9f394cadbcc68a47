"""Puts what a run measured into the result schema, and all its files into the output folder."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import rewriter
from eval.answers.journal import Journal
from eval.measures.held_out import HeldOut
from eval.measures.paper import numbers_for
from eval.report.card import results_section, safety_section
from eval.report.page import render_report
from eval.report.transcripts import FILE_NAME as TRANSCRIPTS
from eval.report.transcripts import choose_examples, write_transcripts
from eval.results import FILE_NAME, SCHEMA_ID, Results
from eval.run import Inputs, Measured
from ftri.prompts.sets import PromptSet
from rewriter.whole_file import write_whole

REPORT = "report.html"
# The names under which mote-push looks for the sections in a variant's folder.
CARD_SECTION = "mote-eval.md"
SAFETY_SECTION = "mote-safety.md"


def assemble(
    inputs: Inputs,
    measured: Measured,
    journal: Journal,
    output: Path,
    *,
    mode: Any,
    subject: dict[str, Any],
    behavior: str,
    prompt_set: PromptSet,
    held_out: HeldOut,
    clusters: str,
) -> Results:
    """Write transcripts.jsonl and return everything as one result."""
    transcripts = write_transcripts(output / TRANSCRIPTS, measured.transcripts, journal)
    target, primary = inputs.target, inputs.plan.primary.name
    main = measured.transcripts[0]
    examples = choose_examples(
        main, measured.outcomes[inputs.plan.base.name], measured.outcomes[primary], target.axis, target.label, journal
    )
    warnings = list(measured.warnings)
    if held_out.status in ("overlap", "unknown"):
        warnings.insert(0, held_out.sentence)
    return Results(
        schema=SCHEMA_ID,
        tool_version=rewriter.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        mode=mode,
        subject=subject,
        behavior=behavior,
        target={
            "axis": target.axis,
            "label": target.label,
            "direction": target.direction,
            "change": target.describe(),
        },
        primary=primary,
        options=inputs.options.model_dump(mode="json"),
        prompts={**prompt_set.source, "num_prompts": len(inputs.prompts)},
        held_out=held_out,
        clusters=clusters,
        arms=[outcomes.summary() for outcomes in measured.outcomes.values()],
        repeat_flips=measured.repeat_flips,
        repeat_flips_at_risk=measured.repeat_flips_at_risk,
        comparisons=measured.comparisons,
        other_axis=measured.other_axis,
        controls=measured.controls,
        sweep=measured.sweep,
        fidelity=measured.fidelity,
        safety=measured.safety,
        mt_bench=measured.mt_bench,
        examples=examples,
        paper=numbers_for(target.axis, target.direction),
        warnings=warnings,
        missing=measured.missing,
        transcripts=transcripts,
    )


def write_outputs(results: Results, output: Path) -> None:
    """Write the report, the card's sections and, last, results.json: where that is, the rest is too."""
    write_whole(output / REPORT, render_report(results))
    write_whole(output / CARD_SECTION, results_section(results))
    if results.safety:
        write_whole(output / SAFETY_SECTION, safety_section(results))
    results.save(output / FILE_NAME)


def update_card(folder: Path, results: Results) -> Path:
    """Put the sections into the model card of a variant's folder and leave all else of it as it is; returns the card's path.

    Raises: InputError when the folder has no card.
    """
    from rewriter.errors import InputError
    from rewriter.variant.card import replace_results, replace_safety

    card = folder / "README.md"
    try:
        text = card.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{card}: cannot be read ({error.strerror}), expected the model card of a variant") from None
    text = replace_results(text, results_section(results))
    if results.safety:
        text = replace_safety(text, safety_section(results))
    write_whole(card, text)
    return card
