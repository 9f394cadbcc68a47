"""Behaviour and thinking language of a response given as a JSON object, as mote-label reads and writes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ftri.endpoints import REASONING_FIELDS
from ftri.labels import behavior, refusals
from ftri.labels.think_formats import ParsedResponse, ThinkFormat, parse_response, starts_inside_think


def reasoning_of(entry: dict[str, Any]) -> str | None:
    """The thinking that a server has split off, where it has."""
    return next((entry[key] for key in REASONING_FIELDS if entry.get(key)), None)


@dataclass(frozen=True)
class LabelSettings:
    """How responses are split and labelled."""

    label_cut: bool = False
    canned: bool = False
    starts_inside_think: bool = False
    think_format: ThinkFormat | None = None


def split(entry: dict[str, Any], settings: LabelSettings) -> tuple[ParsedResponse | None, bool]:
    """Thinking and answer of a response, and whether its template had opened the think block."""
    reasoning = reasoning_of(entry)
    if reasoning is not None:
        return ParsedResponse(reasoning.strip(), entry["text"].strip() if entry["text"] else None), False
    prompt = str(entry.get("rendered_prompt") or "")
    inside = settings.starts_inside_think or starts_inside_think(prompt, settings.think_format)
    return parse_response(entry["text"], inside, settings.think_format), inside


def labelled(entry: dict[str, Any], settings: LabelSettings, refuses: bool | None = None) -> dict[str, Any]:
    """The object with its labels; `refuses` is a judge's verdict, None asks the rule."""
    parsed, inside = split(entry, settings)
    rule = refusals.is_refusal if refuses is None else lambda answer: refuses
    found = behavior.label_parsed(parsed, entry["finish_reason"], inside, settings.label_cut, rule)
    added: dict[str, Any] = {
        "behavior": found.value,
        "thinking_language": behavior.language_of_thinking(parsed.thinking if parsed else None),
    }
    if settings.canned:
        added["canned"] = behavior.answer_is_canned(parsed.answer if parsed else None)
    return entry | added
