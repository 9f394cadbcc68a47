"""The report's figures as PNG files, for papers and slides: the fTRI map, a prompt's map, a token's pattern, t-SNE, the ranking.

Letters of shapes: T tokens, L MoE layers, E experts, K selected experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ftri.analysis.resonance import STATISTICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ftri.analysis.findings import Findings
    from ftri.report.examples import Example, Plane

DOTS_PER_INCH = 160
# The qualitative palette of Okabe and Ito; the class comes first and is the warm one.
CLASS_COLORS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#555555")
CLASS_MARKS = ("circle", "square", "triangle", "diamond", "cross", "plus", "ring")
MATPLOTLIB_MARKS = {
    "circle": "o",
    "square": "s",
    "triangle": "^",
    "diamond": "D",
    "cross": "x",
    "plus": "+",
    "ring": ".",
}
# Blue for less, white for nothing, orange for more: the two ends differ in hue for every kind of colour blindness.
DIVERGING = ("#08306B", "#2C7FB8", "#A6CEE3", "#FBFBF9", "#FDBE85", "#E6550D", "#7F2704")
# From white, so that experts which are never selected leave the page empty.
SEQUENTIAL = ("#FBFBF9", "#C7D7EA", "#7FA8D1", "#3F6FB0", "#1B3A78", "#0B1B45")

Text = Callable[[int], str]


def class_styles(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """(colour, mark) of each label, in order; more labels than colours share the last."""
    last = len(CLASS_COLORS) - 1
    return {
        label: (CLASS_COLORS[min(number, last)], CLASS_MARKS[min(number, last)]) for number, label in enumerate(labels)
    }


def write_figures(
    folder: Path,
    findings: Findings,
    labels: list[str],
    example: Example | None,
    token: int,
    plane: Plane | None,
    text: Text,
) -> list[Path]:
    """Write the PNG files into `folder`; figures whose data is missing are left out."""
    figures: dict[str, Figure] = {"ftri_map.png": draw_map(findings), "ranking.png": draw_ranking(findings)}
    if example is not None:
        figures["prompt_map.png"] = draw_prompt_map(findings, example)
        figures["token_pattern.png"] = draw_token(findings, example, token, text)
    if plane is not None:
        figures["tsne.png"] = draw_plane(findings, plane, labels)
    paths = []
    for name, figure in figures.items():
        figure.savefig(folder / name, dpi=DOTS_PER_INCH)
        paths.append(folder / name)
    return paths


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # Without pyplot: no global state, and no display is looked for.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _heat(
    figure: Figure,
    axes: Axes,
    values: npt.NDArray[Any],
    layers: tuple[int, ...],
    limit: float,
    diverging: bool,
    label: str,
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    colors = LinearSegmentedColormap.from_list("map", list(DIVERGING if diverging else SEQUENTIAL))
    image = axes.imshow(
        values,
        cmap=colors,
        vmin=-limit if diverging else 0,
        vmax=limit,
        aspect="auto",
        interpolation="nearest",
        origin="upper",
    )
    step = max(1, len(layers) // 12)
    axes.set_yticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    axes.set_xlabel("expert")
    axes.set_ylabel("layer of the model")
    figure.colorbar(image, ax=axes, label=label, fraction=0.03, pad=0.01)


def color_limit(findings: Findings) -> float:
    """Where the fTRI map's colours saturate: the 99.9th percentile, or 60 % of the score at rank k where that is more.

    The first keeps one expert from blanking out the rest, the second keeps noise pale beside experts that stand out.
    """
    values = np.abs(findings.scores)
    return max(float(np.quantile(values, 0.999)), 0.6 * abs(findings.top[-1].score)) or float(values.max()) or 1.0


def draw_map(findings: Findings) -> Figure:
    """The fTRI map with its top experts ringed (paper, Fig. 5)."""
    figure, axes = _figure(13, 6)
    scale = STATISTICS[findings.options.statistic].axis
    _heat(figure, axes, findings.scores, findings.maps.moe_layers, color_limit(findings), True, scale)
    for number, found in enumerate(findings.top, start=1):
        place = (found.expert, findings.maps.row_of(found.layer))
        axes.plot(*place, "o", mfc="none", mec="black", ms=11, mew=1.4)
        axes.annotate(
            str(number),
            place,
            xytext=(7, 5),
            textcoords="offset points",
            fontsize=8,
            weight="bold",
        )
    axes.set_title(f"fTRI map of {findings.contrast.name}: the top {len(findings.top)} experts are ringed")
    return figure


def draw_prompt_map(findings: Findings, example: Example) -> Figure:
    """How many tokens of one prompt, or of its start where it is long, selected each expert (paper, Fig. 2)."""
    from ftri.analysis.maps import count_selections

    counts = count_selections(
        example.experts[: example.num_prompt], findings.maps.num_experts, findings.maps.num_other_choices
    ).reshape(findings.maps.shape)
    figure, axes = _figure(13, 6)
    _heat(figure, axes, counts, findings.maps.moe_layers, max(1.0, float(counts.max())), False, "tokens of the prompt")
    whose = f"One prompt's map, its first {example.num_prompt} tokens" if example.is_cut else "One prompt's map"
    axes.set_title(f"{whose}: {_plain(example.prompt, 90)} ({example.observation.label})")
    return figure


def draw_token(findings: Findings, example: Example, token: int, text: Text) -> Figure:
    """The experts that one token selected (paper, Fig. 3)."""
    figure, axes = _figure(13, 6)
    num_layers, num_selected = example.experts.shape[1:]
    rows = np.repeat(np.arange(num_layers), num_selected)
    axes.scatter(example.experts[token].reshape(-1), rows, marker="s", s=12, color="#1B3A78")
    axes.set(
        xlim=(-0.5, findings.maps.num_experts - 0.5),
        ylim=(num_layers - 0.5, -0.5),
        xlabel="expert",
        ylabel="layer of the model",
    )
    layers = findings.maps.moe_layers
    step = max(1, num_layers // 12)
    axes.set_yticks(range(0, num_layers, step), [str(layer) for layer in layers[::step]])
    axes.set_title(
        f"One token's pattern: {_plain(text(example.token_ids[token]), 40)!r}, {num_selected} experts in each layer"
    )
    return figure


def draw_plane(findings: Findings, plane: Plane, labels: list[str]) -> Figure:
    """t-SNE of the prompts' maps, coloured by class (paper, Fig. 4)."""
    figure, axes = _figure(8, 6.5)
    found = np.array([findings.maps.observations[row].label for row in plane.rows])
    for label, (color, mark) in class_styles(labels).items():
        chosen = found == label
        if chosen.any():
            x, y = plane.positions[chosen].T
            axes.scatter(
                x, y, s=20, color=color, marker=MATPLOTLIB_MARKS[mark], label=f"{label} ({chosen.sum()})", alpha=0.85
            )
    axes.set(xticks=[], yticks=[], title="Prompts by their activation maps (t-SNE)")
    axes.set(xlabel="t-SNE 1 (no unit: only who lies near whom counts)", ylabel="t-SNE 2 (no unit)")
    axes.legend(frameon=False)
    return figure


def draw_ranking(findings: Findings) -> Figure:
    """Scores with bootstrap intervals, and the line below rank k."""
    shown = findings.experts
    figure, axes = _figure(8, 0.9 + 0.28 * len(shown))
    ranks = np.arange(1, len(shown) + 1)
    scores = np.array([found.score for found in shown])
    low, high = np.array([found.interval for found in shown]).T
    # A percentile interval need not hold the score itself.
    errors = np.maximum([scores - low, high - scores], 0)
    top = ranks <= len(findings.top)
    for chosen, color in ((top, "#D55E00"), (~top, "#777777")):
        axes.errorbar(scores[chosen], ranks[chosen], xerr=errors[:, chosen], fmt="o", color=color, capsize=2)
    axes.axhline(len(findings.top) + 0.5, color="black", lw=0.8, ls="--")
    axes.set_yticks(ranks, [f"{found.layer}, {found.expert}" for found in shown])
    axes.invert_yaxis()
    axes.set(xlabel=f"{STATISTICS[findings.options.statistic].axis}, 95 % bootstrap interval", ylabel="layer, expert")
    axes.set_title(f"Ranking; the gap at k = {len(findings.top)} is {findings.gap:.1%}")
    return figure


def _plain(text: str, length: int) -> str:
    """Text for a title: one line, no dollar signs (which would start a formula), only characters that the font has."""
    line = " ".join(text.split()).replace("$", "\\$")
    line = line.encode("latin-1", "replace").decode("latin-1")
    return line if len(line) <= length else line[: length - 1] + "..."
