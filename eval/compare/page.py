"""The page that compares variants: one HTML file without a script that needs nothing else, and its figures as JSON beside it."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from eval.compare.comparable import Evaluation, check_whole
from eval.compare.drawing import forest, forest_groups, pareto
from eval.compare.variants import Comparisons, compare_evaluations
from eval.display import words
from eval.report.outputs import make_output
from eval.results import FILE_NAME, Results
from ftri.report.policy import content_policy
from rewriter.errors import InputError
from rewriter.whole_file import write_whole

PAGE = "compare.html"
FIGURES = "compare.json"


def compare_results(sources: list[str], output: Path) -> Comparisons:
    """Read evaluations, write compare.html and compare.json into `output`, and return the figures.

    sources: results.json files or the folders that hold them, each with `NAME=` before it where its folder's name will not do.

    Raises:
        InputError: a source cannot be read or is no result, or cannot be compared with the first.
        OutputError: the folder cannot be written.
    """
    found = compare_evaluations([read_source(source) for source in sources])
    page = render(found)
    make_output(output)
    write_whole(output / PAGE, page)
    write_whole(output / FIGURES, found.model_dump_json(by_alias=True, indent=1) + "\n")
    return found


def read_source(source: str) -> Evaluation:
    """One evaluation, by the name that it is given or else that of its folder. Raises: InputError."""
    name, separator, rest = source.partition("=")
    # Asked of os.path, for which a name that is too long for a file is just not there.
    named = bool(separator) and not os.path.exists(source)
    if named and not name.strip():
        raise InputError(f"{source}: the name before = is empty, expected NAME=RESULTS")
    path = Path(rest if named else source)
    if os.path.isdir(path):
        path = path / FILE_NAME
    results = Results.load(path)
    check_whole(path, results)
    own = path.resolve().parent.name if path.name == FILE_NAME else path.stem
    return Evaluation(name.strip() if named else own, results)


def render(found: Comparisons) -> str:
    """The page as text; whatever models, prompts and files are called is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (resources.files("eval.compare") / "templates" / "compare.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        found=found,
        words=words,
        policy=content_policy(),
        # Our own figures, whose every word is escaped where it is drawn.
        forest=Markup(forest(forest_groups(found))),
        pareto=Markup(pareto(found)),
        safety_sets=sorted({one.name for variant in found.variants for one in variant.safety}),
        has_quality=any(variant.mt_bench_change is not None for variant in found.variants),
    )
