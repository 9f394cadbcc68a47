"""The Python files of a model folder that serving runs: those that its configs name, and what these import from beside them."""

import json
import re
from pathlib import Path
from typing import Any

CONFIG_NAMES = (
    "config.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)
MAX_CONFIG_BYTES = 64 << 20
# `from .a.b import c` and `from . import a, b`, as transformers' own search for relative imports has it.
IMPORTED_MODULE = re.compile(r"^\s*from\s+\.([\w.]+)\s+import\b", re.MULTILINE)
IMPORTED_NAMES = re.compile(r"^\s*from\s+\.\s+import\s+\(?([\w\s,]+)", re.MULTILINE)


def remote_code(folder: Path) -> set[Path]:
    """The code files that serving needs, relative to the folder."""
    wanted = [Path(f"{module}.py") for name in CONFIG_NAMES for module in _named_modules(read_object(folder / name))]
    found: set[Path] = set()
    while wanted:
        path = wanted.pop()
        if path in found or not (folder / path).is_file() or (folder / path).stat().st_size > MAX_CONFIG_BYTES:
            continue
        found.add(path)
        text = (folder / path).read_text("utf-8", errors="replace")
        modules = IMPORTED_MODULE.findall(text)
        modules += [
            name.split()[0] for names in IMPORTED_NAMES.findall(text) for name in names.split(",") if name.strip()
        ]
        for module in modules:
            place = path.parent.joinpath(*module.split("."))
            wanted += [place.with_name(f"{place.name}.py"), place / "__init__.py"]
    return found


def names_remote_code(folder: Path, config_name: str) -> bool:
    """Whether one of the folder's configs has classes in code files."""
    return bool(read_object(folder / config_name).get("auto_map"))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is none, since what is damaged names no code."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_CONFIG_BYTES:
            return {}
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _named_modules(config: dict[str, Any]) -> list[str]:
    """The modules that `auto_map` names: `module.Class`, or a list of such; ORG/NAME--module.Class is another repo's."""
    found = config.get("auto_map")
    values = list(found.values()) if isinstance(found, dict) else []
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [
        item.rpartition(".")[0].replace(".", "/")
        for item in flat
        if isinstance(item, str) and "--" not in item and re.fullmatch(r"\w[\w.]*\.\w+", item)
    ]
