"""The report: one HTML file that needs nothing else, with the figures as PNG files beside it."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ftri.analysis.find import open_traces
from ftri.analysis.findings import Findings, expert_set_of, fold_summary
from ftri.analysis.maps import POSITIONS
from ftri.analysis.resonance import STATISTICS, rank
from ftri.report import examples as example_data
from ftri.report import figures
from ftri.report.cells import Cells, cells_of, plain_rows
from ftri.report.figures import DIVERGING, SEQUENTIAL, class_styles
from ftri.report.policy import content_policy
from ftri.report.token_texts import TokenTexts
from rewriter.errors import OutputError
from rewriter.whole_file import write_whole

# A token that predicts less of an expert's resonance than this is not named in the ranking.
SHOWN_TOKEN_SHARE = 0.05
# Parts of the page's script, in their order: what is declared in one is used by those behind it.
SCRIPT_PARTS = ("base.js", "map.js", "cells.js", "report.js")
VISIBLE_SPACES = str.maketrans({"\n": "\u23ce", "\t": "\u21e5", "\r": "\u240d"})
# Characters that turn round what follows them, which here are the tokens after one, and numbers: shown by their numbers.
TURNING = str.maketrans(
    {
        number: f"\\u{number:04x}"
        for number in (0x061C, *range(0x200E, 0x2010), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    }
)


def write_report(findings: Findings, folders: Sequence[str | Path], output: Path, tokenizer: str | None = None) -> Path:
    """Write report.html and the PNG files into `output`, which is made if need be; returns the report's path.

    Tokens are shown as text by the tokenizer of the traces' model where it is on this machine, or by `tokenizer`, a folder
    or a Hub model, of which one file is then downloaded.

    Raises:
        OutputError: the folder cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{output}: cannot be made a folder for the report ({error.strerror})") from error
    readers = open_traces(folders)
    if tokenizer is None:
        texts = TokenTexts(findings.manifest["model"], findings.manifest.get("revision"))
    else:
        texts = TokenTexts(tokenizer, None, is_told=True)
    labels = label_order(findings)
    chosen = example_data.load_examples(readers, findings.maps, example_data.typical_rows(findings.maps))
    plane = example_data.lay_out(readers, findings.maps, findings.options.seed)
    token = _telling_token(findings, chosen[0]) if chosen else 0
    try:
        pictures = figures.write_figures(output, findings, labels, chosen[0] if chosen else None, token, plane, texts)
    except OSError as error:
        raise OutputError(f"{output}: a picture cannot be written ({error.strerror or error})") from None
    page = render(findings, labels, chosen, token, plane, texts, [path.name for path in pictures])
    path = output / "report.html"
    write_whole(path, page)
    return path


def label_order(findings: Findings) -> list[str]:
    """The labels that take part, those of the class first."""
    present = findings.class_counts
    order = [*findings.contrast.target, *findings.contrast.others]
    return [label for label in order if label in present]


def _telling_token(findings: Findings, example: example_data.Example) -> int:
    """The token of the prompt that selects most of the top experts; on a tie the last, which has seen the whole prompt."""
    experts = example.experts[: example.num_prompt]
    hits = np.zeros(len(experts), np.int64)
    for found in findings.top:
        hits += (experts[:, findings.maps.row_of(found.layer)] == found.expert).any(axis=1)
    return int(len(hits) - 1 - np.argmax(hits[::-1]))


def render(
    findings: Findings,
    labels: list[str],
    chosen: Sequence[example_data.Example],
    token: int,
    plane: example_data.Plane | None,
    texts: TokenTexts,
    pictures: Sequence[str],
) -> str:
    """The page as text."""
    import jinja2

    templates = resources.files("ftri.report") / "templates"
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string((templates / "report.html.j2").read_text(encoding="utf-8"))
    expert_set = expert_set_of(findings)
    cells = cells_of(findings, labels)
    script = page_script()
    return template.render(
        style=(templates / "report.css").read_text(encoding="utf-8"),
        policy=content_policy(script),
        script=script,
        data=_script_json(page_data(findings, labels, cells, chosen, token, plane, texts)),
        cells=cells,
        plain=plain_rows(findings, cells),
        num_cells=findings.scores.size,
        name=findings.contrast.name,
        manifest=findings.manifest,
        options=findings.options,
        statistic=STATISTICS[findings.options.statistic],
        where=POSITIONS[findings.options.positions],
        rows=_rows(findings, texts),
        gap=findings.gap,
        ranking=_ranking_geometry(findings),
        classes=_class_rows(findings, labels),
        folds={factor: fold_summary(folds) for factor, folds in findings.folds.items()},
        cards=[_card(findings, number, texts) for number in range(len(findings.top))],
        warnings=findings.warnings,
        token_problem=texts.problem,
        plane=plane,
        most_tokens=example_data.MAX_EXAMPLE_TOKENS,
        pictures=pictures,
        provenance=json.dumps(
            {key: value for key, value in expert_set.provenance.items() if key != "prompt_sha256"}, indent=2
        ),
        num_hashes=len(expert_set.provenance["prompt_sha256"]),
    )


def page_script() -> str:
    """The page's script: its parts as one function, so that none of their names is the page's."""
    templates = resources.files("ftri.report") / "templates"
    parts = [(templates / name).read_text(encoding="utf-8") for name in SCRIPT_PARTS]
    return "\n".join(['"use strict";', "(function () {", *parts, "})();"])


def page_data(
    findings: Findings,
    labels: list[str],
    cells: Cells,
    chosen: Sequence[example_data.Example],
    token: int,
    plane: example_data.Plane | None,
    texts: TokenTexts,
) -> dict[str, Any]:
    """What the page's script draws, arrays in base64: maps float32 [L * E], order uint32 [L * E], the flat experts by rank,
    and experts of example tokens uint16 [T * L * K]."""
    observations = findings.maps.observations
    return {
        "layers": list(findings.maps.moe_layers),
        "numExperts": findings.maps.num_experts,
        "topK": findings.maps.top_k,
        "k": len(findings.top),
        "quantity": STATISTICS[findings.options.statistic].quantity,
        "scale": STATISTICS[findings.options.statistic].axis,
        "labels": labels,
        "styles": class_styles(labels),
        "diverging": DIVERGING,
        "sequential": SEQUENTIAL,
        "limit": figures.color_limit(findings),
        "maps": {name: _packed(values, np.float32) for name, values in cells.maps.items()},
        "labelMaps": list(cells.labels),
        "order": _packed(rank(findings.scores), np.uint32),
        "top": [[findings.maps.row_of(found.layer), found.expert] for found in findings.top],
        "token": token,
        "examples": [
            {
                "prompt": example.prompt,
                "label": example.observation.label,
                "numPrompt": example.num_prompt,
                "isCut": example.is_cut,
                "tokens": [visible(texts(token_id)) for token_id in example.token_ids],
                "experts": _packed(example.experts, np.uint16),
            }
            for example in chosen
        ],
        "plane": None
        if plane is None
        else {
            "x": plane.positions[:, 0].round(3).tolist(),
            "y": plane.positions[:, 1].round(3).tolist(),
            "label": [labels.index(observations[row].label) for row in plane.rows],
            "prompt": [prompt for prompt, _ in plane.texts],
            "answer": [answer for _, answer in plane.texts],
        },
    }


def _packed(values: npt.NDArray[Any], dtype: type[np.generic]) -> str:
    little_endian = np.dtype(dtype).newbyteorder("<")
    return base64.b64encode(np.ascontiguousarray(values, little_endian).tobytes()).decode("ascii")


def _script_json(data: dict[str, Any]) -> str:
    # A script element ends at the first "</", wherever that stands.
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def visible(text: str) -> str:
    """Token text with line ends, tabs and marks of direction made visible."""
    return text.translate(VISIBLE_SPACES).translate(TURNING)


def _rows(findings: Findings, texts: TokenTexts) -> list[dict[str, Any]]:
    return [
        asdict(found)
        | {
            "rank": number,
            "length_percent": round(100 * found.length_share),
            "token_percent": round(100 * found.token_share),
            "top_token_text": visible(texts(found.top_token)) if found.top_token_share >= SHOWN_TOKEN_SHARE else "",
            "top_token_percent": round(100 * found.top_token_share),
        }
        for number, found in enumerate(findings.experts, start=1)
    ]


def _ranking_geometry(findings: Findings) -> dict[str, Any]:
    """Positions in per cent of the axis for the ranking's dots and intervals."""
    ends = [end for found in findings.experts for end in (*found.interval, found.score)]
    low, high = min(0.0, *ends), max(ends)
    width = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low) / width, 2)

    return {
        "zero": place(0.0),
        "low": low,
        "high": high,
        "dots": [
            {
                "at": place(found.score),
                "from": place(found.interval[0]),
                "width": round(place(found.interval[1]) - place(found.interval[0]), 2),
            }
            for found in findings.experts
        ],
    }


def _class_rows(findings: Findings, labels: Sequence[str]) -> list[dict[str, Any]]:
    styles = class_styles(labels)
    rows = []
    for label in labels:
        members = [row for row, observation in enumerate(findings.maps.observations) if observation.label == label]
        rows.append(
            {
                "label": label,
                "color": styles[label][0],
                "mark": styles[label][1],
                "side": "class" if label in findings.contrast.target else "others",
                "num_responses": len(members),
                "num_prompts": findings.prompt_counts[label],
                "mean_tokens": float(findings.maps.num_tokens[members].mean()),
            }
        )
    left_out = sorted(findings.maps.dropped.items())
    return rows + [{"label": label, "side": "left out", "num_responses": number} for label, number in left_out]


def _card(findings: Findings, number: int, texts: TokenTexts) -> dict[str, Any]:
    """What one expert's card shows: tokens far above their base rate, and contexts."""
    study = findings.study
    lifts = study.lifts(number)
    highest = max((lift.lift for lift in lifts), default=1.0)
    # Texts bring their own spaces, ids do not.
    gap = " " if texts.problem else ""
    return {
        "number": number,
        "base_rate": float(study.base_rates()[number]),
        "tokens": [
            asdict(lift) | {"text": visible(texts(lift.token_id)), "bar": round(100 * lift.lift / highest, 1)}
            for lift in lifts
        ],
        "contexts": [
            {
                "label": context.label,
                "tokens": [
                    {"text": visible(texts(token_id)) + gap, "selected": selected, "focus": position == context.focus}
                    for position, (token_id, selected) in enumerate(
                        zip(context.token_ids, context.selected, strict=True)
                    )
                ],
            }
            for context in study.best_contexts(number)
        ],
    }
