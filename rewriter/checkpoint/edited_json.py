"""config.json as text that an edit leaves as it was: key order, unknown keys, and numbers written the way they stood."""

import json
import re
from itertools import count
from typing import Any, Self

from rewriter.json_text import read_json


class WrittenFloat(float):
    """A number that remembers how it was written (`1E-6`, `0.10`), which Python's own floats do not."""

    text: str

    def __new__(cls, text: str) -> Self:
        """The number that a JSON literal stands for."""
        made = super().__new__(cls, text)
        made.text = text
        return made


def parse_config(text: str) -> dict[str, Any]:
    """A config's JSON object, to be written again by `config_text`.

    Raises: JsonError for text that is no JSON, or none that can be written again.
    """
    config: dict[str, Any] = read_json(text, finite=False, parse_float=WrittenFloat)
    return config


def config_text(config: dict[str, Any]) -> str:
    """The JSON text of a config that `parse_config` read and that was edited since."""
    plain = json.dumps(config, indent=2, ensure_ascii=False)
    # A word that no text of the config holds: a number beside any fixed mark could be somebody's string.
    mark = next(word for number in count() if (word := f"number-{number}-as-written:") not in plain)
    text = json.dumps(_marked(config, mark), indent=2, ensure_ascii=False)
    return re.sub(f'"{mark}([-+.0-9eE]+)"', r"\1", text) + "\n"


def _marked(value: Any, mark: str) -> Any:
    """The same document with numbers that json would write otherwise as marked strings."""
    if isinstance(value, WrittenFloat) and float.__repr__(value) != value.text:
        return f"{mark}{value.text}"
    if isinstance(value, dict):
        return {key: _marked(item, mark) for key, item in value.items()}
    return [_marked(item, mark) for item in value] if isinstance(value, list) else value
