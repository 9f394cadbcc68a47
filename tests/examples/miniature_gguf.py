"""The miniature as GGUF, made once for a test run by the script beside its weights."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parents[2] / "examples" / "tiny-r1"


def converter() -> ModuleType:
    """examples/tiny-r1/to_gguf.py, which is a script beside the weights and no installed package."""
    if "to_gguf" not in sys.modules:
        found = importlib.util.spec_from_file_location("to_gguf", FOLDER / "to_gguf.py")
        assert found is not None and found.loader is not None
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
        sys.modules["to_gguf"] = module
    return sys.modules["to_gguf"]
