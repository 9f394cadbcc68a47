"""The page of a causal search: the causal map beside the fTRI map, the path, the front, and the check. One file, no script."""

from __future__ import annotations

import base64
import io
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from eval.refine.results import RefineResults, ScreenedExpert
from eval.results import Results
from ftri.analysis.resonance import STATISTICS
from ftri.report.policy import content_policy
from rewriter.whole_file import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PAGE = "refine.html"
NUM_SHOWN = 20
DOTS_PER_INCH = 110


def write_page(folder: Path, results: RefineResults, check: Results | None) -> Path:
    """Write refine.html into `folder`; returns its path.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = folder / PAGE
    write_whole(path, render(results, check))
    return path


def render(results: RefineResults, check: Results | None) -> str:
    """The page as text; whatever models and prompts wrote is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = (resources.files("eval.refine") / "templates" / "refine.html.j2").read_text(encoding="utf-8")
    primary = check.primary_comparison() if check is not None else None
    return environment.from_string(template).render(
        policy=content_policy(),
        results=results,
        check=check,
        primary=primary,
        maps=picture(draw_maps(results)),
        front=picture(draw_front(results)) if results.path else None,
        strongest=results.screened[:NUM_SHOWN],
        disagreements=disagreements(results, NUM_SHOWN),
    )


def disagreements(results: RefineResults, count: int) -> tuple[list[ScreenedExpert], list[ScreenedExpert]]:
    """Of the `count` strongest experts by cause those that are not among as many by resonance, and the other way round."""
    by_cause = results.screened[:count]
    by_resonance = sorted(results.screened, key=lambda row: -row.resonance)[:count]
    cause = {(row.layer, row.expert) for row in by_cause}
    resonant = {(row.layer, row.expert) for row in by_resonance}
    return (
        [row for row in by_cause if (row.layer, row.expert) not in resonant],
        [row for row in by_resonance if (row.layer, row.expert) not in cause],
    )


def draw_maps(results: RefineResults) -> Figure:
    """Two maps [L, E] side by side: what each expert alone moves in log-odds, and the fTRI map; grey was not measured."""
    import numpy as np
    from matplotlib.figure import Figure

    cause = np.full((len(results.layers), results.num_experts), np.nan)
    for row in results.screened:
        # Towards leaving the behaviour is up, as resonance with it is.
        cause[results.layers.index(row.layer), row.expert] = -row.shift
    figure = Figure(figsize=(13, 1.6 + 0.09 * max(len(results.layers), 12)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _heat(left, cause, results.layers, "cause: each expert suppressed alone", "fall of the log-odds (nats)")
    _heat(right, np.asarray(results.resonance), results.layers, "correlation: fTRI", STATISTICS["paper"].axis)
    left.set_ylabel("layer of the model")
    for layer, expert in results.chosen:
        for axes in (left, right):
            axes.plot(expert, results.layers.index(layer), "o", mfc="none", mec="black", ms=9, mew=1.4)
    return figure


def _heat(axes: Axes, values: object, layers: list[int], title: str, scale: str) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    from ftri.report.figures import DIVERGING

    array = np.asarray(values, float)
    limit = float(np.nanmax(np.abs(array), initial=0.0)) or 1.0
    colors = LinearSegmentedColormap.from_list("map", list(DIVERGING)).with_extremes(bad="#d9d9d9")
    image = axes.imshow(array, cmap=colors, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    step = max(1, len(layers) // 12)
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.set_xlabel("expert")
    axes.set_title(title, fontsize=10)
    figure = axes.get_figure()
    assert figure is not None
    figure.colorbar(image, ax=axes, label=scale, fraction=0.03, pad=0.01)


def draw_front(results: RefineResults) -> Figure:
    """Every set of the path by KL and moved, those on the front joined."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    front = sorted((step for step in results.path if step.on_front), key=lambda step: step.kl)
    axes.plot(
        [step.kl for step in results.path], [step.moved for step in results.path], "o", color="#999999", label="path"
    )
    axes.plot([step.kl for step in front], [step.moved for step in front], "o-", color="#D55E00", label="front")
    for step in front:
        axes.annotate(str(len(step.experts)), (step.kl, step.moved), textcoords="offset points", xytext=(6, -4))
    axes.set_xlabel("KL from the base (nats per token of neutral text)")
    axes.set_ylabel("moved, share of responses (search's own measure)")
    axes.set_ylim(0, 1.05)
    axes.legend(frameon=False)
    return figure


def picture(figure: Figure) -> str:
    """A figure as PNG in base64."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    return base64.b64encode(buffer.getvalue()).decode("ascii")
