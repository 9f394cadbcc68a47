"""The report: one HTML file that needs nothing else, made from results alone."""

from __future__ import annotations

from importlib import resources

from eval.display import words
from eval.display.drawing import COLOURS, PALE, label_words
from eval.measures.paper import NOT_GIVEN
from eval.report.shown import shown_measures
from eval.results import Results
from ftri.report.policy import content_policy


def render_report(results: Results) -> str:
    """The report as HTML text. Everything that models or prompts wrote is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    # Our own figures, whose every word is escaped where it is drawn; nothing else is let through as it is.
    environment.filters["svg"] = Markup
    environment.globals |= {
        "results": results,
        "primary": results.primary_comparison(),
        "words": words,
        "colours": COLOURS,
        "pale": PALE,
        "label_words": label_words,
        "not_given": NOT_GIVEN,
    }
    sections = [
        Markup(environment.from_string(measure.report).render(found=found, **measure.figures(found, results)))
        for measure, found in shown_measures(results)
        if measure.report
    ]
    page = (resources.files("eval.report") / "templates" / "report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(page).render(sections=sections, policy=content_policy())
