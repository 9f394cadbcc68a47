"""Values of command-line options that are more than one word."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, cast, get_args

from rewriter.errors import InputError
from rewriter.expert_set import LayerIndex


def parse_choices(option: str, text: str, choices: Sequence[str]) -> list[Any]:
    """Comma-separated words that must be among `choices`, without repeats. Raises InputError."""
    words = list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    for word in words:
        if word not in choices:
            raise InputError(f"{option} has {word!r}, expected {', '.join(choices)}")
    if not words:
        raise InputError(f"{option} is empty, expected {', '.join(choices)}")
    return words


def parse_numbers(option: str, text: str) -> list[int]:
    """Comma-separated positive whole numbers. Raises InputError."""
    numbers = []
    for word in (word.strip() for word in text.split(",") if word.strip()):
        if not word.isdecimal() or int(word) < 1:
            raise InputError(f"{option} has {word!r}, expected positive whole numbers such as 1,2,5,10")
        numbers.append(int(word))
    return numbers


def parse_json_object(option: str, text: str) -> dict[str, Any]:
    """A JSON object. Raises InputError."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{option} is not JSON ({error.msg} at character {error.pos})") from None
    if not isinstance(value, dict):
        raise InputError(f'{option} is a JSON {type(value).__name__}, expected an object such as {{"top_k": 20}}')
    return value


def parse_engine_arguments(pairs: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs; values are JSON where they parse as such, else text. Raises InputError."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InputError(f"--engine-argument is {pair!r}, expected NAME=VALUE")
        try:
            arguments[name.replace("-", "_")] = json.loads(value)
        except json.JSONDecodeError:
            arguments[name.replace("-", "_")] = value
    return arguments


def parse_layer_index(text: str | None) -> LayerIndex | None:
    """`model`, `moe` or nothing. Raises InputError."""
    if text is not None and text not in get_args(LayerIndex):
        raise InputError(f"--layer-index is {text!r}, expected model or moe")
    return cast("LayerIndex | None", text)
