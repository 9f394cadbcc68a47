"""config.json as text that an edit leaves as it was: key order, unknown keys, and numbers written the way they stood."""

import json
import re
from typing import Any, Self


class WrittenFloat(float):
    """A number that remembers how it was written (`1E-6`, `0.10`), which Python's own floats do not."""

    text: str

    def __new__(cls, text: str) -> Self:
        """The number that a JSON literal stands for."""
        made = super().__new__(cls, text)
        made.text = text
        return made


def parse_config(text: str) -> dict[str, Any]:
    """A config's JSON object, to be written again by `config_text`."""
    config: dict[str, Any] = json.loads(text, parse_float=WrittenFloat)
    return config


def config_text(config: dict[str, Any]) -> str:
    """The JSON text of a config that `parse_config` read and that was edited since."""
    text = json.dumps(_quoted(config), indent=2, ensure_ascii=False)
    return re.sub(r'"\\u0000([-+.0-9eE]+)\\u0000"', r"\1", text) + "\n"


def _quoted(value: Any) -> Any:
    """The same document with numbers that json would write otherwise as marked strings."""
    if isinstance(value, WrittenFloat) and float.__repr__(value) != value.text:
        return f"\0{value.text}\0"
    if isinstance(value, dict):
        return {key: _quoted(item) for key, item in value.items()}
    return [_quoted(item) for item in value] if isinstance(value, list) else value
