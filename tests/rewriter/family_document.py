"""Renders the tables of docs/families.md from the family table; run it to bring the document up to date.

python tests/rewriter/family_document.py
"""

import re
from collections.abc import Iterable
from pathlib import Path

from family_models import TINY_MODELS

from rewriter.edit.formats import EXPONENTS, WEIGHT_FORMATS, WeightFormat
from rewriter.families.family import Family, Keys
from rewriter.families.lookup import FAMILIES
from rewriter.families.wrappers import WRAPPERS

DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
# What vLLM 0.32's CPU build did, run by tests/rewriter/families/test_family_serving.py and test_serving.py or once by hand.
VLLM_CPU: dict[str, str] = {
    "deepseek_v3": "reroute",
    "glm4_moe": "reroute",
    "exaone_moe": "reroute",
    "hy_v3": "reroute",
    "afmoe": "reroute",
    "lfm2_moe": "reroute",
    "gpt_oss": "reroute",
    "qwen_moe": "drop (as qwen3_moe)",
    "mixtral": "drop",
    "ernie4_5_moe": "loads, but reads no bias: reroute has no effect there",
    "minimax_m2": "cannot route it, nor the base (no sigmoid scores without groups)",
    "nemotron_h": "cannot load it, nor the base (experts without a gate)",
    "dots1": "not in vLLM since 0.23",
    "solar_open": "not in vLLM",
}


def routers_table() -> str:
    """Where each family keeps its routers, and how they score."""
    header = (
        "family",
        "model types",
        "router bias (alternatives)",
        "score",
        "groups: number, kept",
        "experts, top-k",
        "MoE layers",
    )
    return _table(
        header,
        (
            (
                family.name,
                ", ".join(family.model_types),
                _lines(family.bias) or "none",
                family.score or "-",
                f"{_keys(family.num_groups)}, {_keys(family.groups_kept)}" if family.num_groups else "none",
                f"{_keys(family.num_experts)}, {_keys(family.top_k)}"
                + (f"; zero experts: `{family.num_other_choices}`" if family.num_other_choices else ""),
                family.layers.text
                + (f"; by token table: {family.unbiased_layers.text}" if family.unbiased_layers else ""),
            )
            for family in FAMILIES
        ),
    )


def edits_table() -> str:
    """What can be done to each family, and what was proven."""
    header = (
        "family",
        "reroute",
        "stimulate",
        "renormalises",
        "drop zeroes (alternatives)",
        "proven on transformers 5.19",
        "on vLLM 0.32 CPU",
    )
    return _table(
        header,
        (
            (
                family.name,
                _reroute(family),
                _stimulate(family),
                _renormalises(family),
                _lines(" and ".join(names) for names in family.expert_outputs),
                _proven(family),
                VLLM_CPU.get(family.name, "not run"),
            )
            for family in FAMILIES
        ),
    )


def sources_table() -> str:
    """Where each row was read."""
    return _table(("family", "source", "remarks"), ((family.name, family.source, family.notes) for family in FAMILIES))


def wrappers_table() -> str:
    """Model types that wrap another's language model."""
    return _table(
        ("model type", "wraps, under", "source"),
        ((row.model_type, f"{' or '.join(row.wraps)}, `{row.text_config}`", row.source) for row in WRAPPERS),
    )


def formats_table() -> str:
    """What of each storage format becomes zero, and what is multiplied."""
    return _table(
        ("format", "tensors beside the weight", "drop writes", "strength and gain multiply", "source"),
        (
            (
                row.name,
                ", ".join(f"`{suffix}`" for suffix in row.tensors if suffix),
                _written(row),
                _multiplied(row),
                row.source,
            )
            for row in WEIGHT_FORMATS
        ),
    )


TABLES = {
    "routers": routers_table,
    "edits": edits_table,
    "sources": sources_table,
    "wrappers": wrappers_table,
    "formats": formats_table,
}


def updated(text: str) -> str:
    """The document with its tables rendered anew."""
    for name, render in TABLES.items():
        marks = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        block = re.compile(re.escape(marks[0]) + ".*?" + re.escape(marks[1]), re.DOTALL)
        assert len(block.findall(text)) == 1, f"docs/families.md: expected one block {marks[0]} ... {marks[1]}"
        rendered = f"{marks[0]}\n{render()}\n{marks[1]}"
        text = block.sub(lambda _, rendered=rendered: rendered, text)
    return text


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = tuple(header)
    lines = [header, tuple("---" for _ in header), *map(tuple, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _lines(names: Iterable[str]) -> str:
    """Alternatives, one a line; those that differ by the prefix only share a line."""
    prefixes: dict[str, list[str]] = {}
    for name in names:
        prefix, layers, tail = name.partition("layers.{layer}.")
        prefixes.setdefault(layers + tail, []).append(prefix)
    lines = []
    for tail, (first, *others) in prefixes.items():
        name = re.sub(r"([^\s]*\.[^\s]*)", r"`\1`", first + tail)
        below = ", ".join(f"`{prefix}`" if prefix else "no prefix" for prefix in others)
        lines.append(name + (f" (or below {below})" if others else ""))
    return "<br>".join(lines)


def _written(row: WeightFormat) -> str:
    if row.zeroed is None:
        return f"nothing, it is refused: {row.refused}"
    what = f"`{row.zeroed}`" if row.zeroed else "the tensor itself"
    return f"{what}: " + ("zero" if row.code_book is None else f"the code that `{row.code_book}` gives as zero")


def _multiplied(row: WeightFormat) -> str:
    if not row.scales:
        return "nothing, it is refused"
    found = [f"`{suffix}`" if suffix else "the tensor itself" for suffix in row.scales]
    only = ": by powers of two" if EXPONENTS in (row.tensors.get(suffix) for suffix in row.scales) else ""
    return ", else ".join(found) + (" (divided by it)" if row.scale_divides else "") + only


def _keys(keys: Keys | None) -> str:
    return " or ".join(f"`{key}`" for key in ((keys,) if isinstance(keys, str) else keys or ()))


def _reroute(family: Family) -> str:
    if not family.bias:
        shift = "by a shifted row, or " if family.router_norm else ""
        return f"{shift}centroid: `{_short(family.router[0])}`" if family.router else "no"
    values = []
    if family.minus_inf_safe:
        values.append("-inf")
    if family.score in ("sigmoid", "softmax"):
        values.append("margin")
    only_if = f", if `{family.bias_flag}` (default {str(family.bias_flag_default).lower()})" if family.bias_flag else ""
    return " or ".join(values) + only_if


def _short(name: str) -> str:
    """A tensor's name below its layer."""
    return name.rpartition("layers.{layer}.")[2]


def _stimulate(family: Family) -> str:
    return "yes" if family.bias and family.can_stimulate and family.score in ("sigmoid", "softmax") else "no"


def _renormalises(family: Family) -> str:
    if family.renormalize:
        return f"`{family.renormalize}` (default {str(family.renormalize_default).lower()})"
    return "always" if family.renormalize_default else "never"


def _proven(family: Family) -> str:
    if family.untestable:
        return f"no: {family.untestable}"
    tested = {tiny.model_type for tiny in TINY_MODELS}
    others = [name for name in family.model_types if name not in tested]
    what = "reroute, drop" if family.bias else "reroute (centroid), drop"
    return what + (f"; not as {', '.join(others)}" if others else "")


if __name__ == "__main__":
    DOCUMENT.write_text(updated(DOCUMENT.read_text()))
