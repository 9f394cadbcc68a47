"""The sections of the model card that tell what the variant does: Markdown, made from results alone."""

from __future__ import annotations

from collections.abc import Sequence

from eval.measures.safety import cut_sentences, protection_rows
from eval.report.shown import shown_measures
from eval.results import Results
from rewriter.variant.markdown import inline, inline_code


def results_section(results: Results) -> str:
    """What changed, against chance, and what it cost; without heading, which the card has."""
    lines = [
        f"Measured by mote-eval {results.tool_version} on {results.prompts['num_prompts']} prompts"
        f" ({inline_code(results.prompts['spec'])}): {inline(results.edit_words())}. {inline(results.held_out.sentence)}",
        "",
        "| what | result |",
        "|---|---|",
    ]
    lines += [row_of(row) for measure, found in shown_measures(results) for row in measure.card(found, results)]
    lines += [f"\nNot measured: {inline(one.part)} ({inline(one.reason)})." for one in results.missing]
    return "\n".join(lines) + "\n"


def safety_section(results: Results) -> str:
    """Refusals on prompts where they protect people, and where they should not happen."""
    lines = [
        "Refusals of the base and of this variant, measured by mote-eval; read a fall among prompts that should be"
        " refused as a loss of protection.",
        "",
        "| set | prompts | base | variant | change (95 % CI) |",
        "|---|---|---|---|---|",
    ]
    cut = [f"\n{inline(one)}" for one in cut_sentences(results.safety)]
    return "\n".join([*lines, *map(row_of, protection_rows(results.safety)), *cut]) + "\n"


def row_of(cells: Sequence[str]) -> str:
    """A row of a Markdown table; a cell is text, in which no mark has an effect."""
    return f"| {' | '.join(map(inline, cells))} |"
