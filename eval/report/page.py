"""The report: one HTML file that needs nothing else, made from results alone."""

from __future__ import annotations

from importlib import resources

from eval.measures.paper import NOT_GIVEN
from eval.report import words
from eval.report.charts import COLOURS, PALE, dumbbell, label_words, null_histogram, sweep_chart, transition_diagram
from eval.results import Fidelity, Results


def render_report(results: Results) -> str:
    """The report as HTML text. Everything that models or prompts wrote is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        (resources.files("eval.report") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    )
    primary = results.primary_comparison()
    diagrams = [
        (comparison, Markup(transition_diagram(comparison.matrix, comparison.before, comparison.after)))
        for comparison in results.comparisons
    ]
    return template.render(
        results=results,
        primary=primary,
        diagrams=diagrams,
        other_axis=[
            (one, Markup(transition_diagram(one.matrix, one.before, one.after)))
            for one in results.other_axis
            if one.after == results.primary
        ],
        null_charts=[(control, Markup(null_histogram(control))) for control in results.controls],
        sweep_chart=Markup(sweep_chart(results.sweep, results.target["change"])) if results.sweep else None,
        safety_chart=Markup(
            dumbbell(
                [
                    (f"{safety.name}, {group.group}", group.before.rate, group.after.rate)
                    for safety in results.safety
                    for group in safety.groups
                ]
            )
        )
        if results.safety
        else None,
        divergence_tables=[(fidelity, divergence_table(fidelity)) for fidelity in results.fidelity],
        words=words,
        colours=COLOURS,
        pale=PALE,
        label_words=label_words,
        not_given=NOT_GIVEN,
    )


def divergence_table(fidelity: Fidelity) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """(names, rows): KL(row || column) in nats per answer token, with a dash on the diagonal."""
    names = list(dict.fromkeys(one.left for one in fidelity.divergences))
    cells = {(one.left, one.right): one.answer_tokens for one in fidelity.divergences}
    return names, [
        (row, [words.NONE if row == column else words.interval_words(cells[row, column], 4) for column in names])
        for row in names
    ]
