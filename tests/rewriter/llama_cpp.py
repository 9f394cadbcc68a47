"""Unmodified llama.cpp for the tests: its answers and its selections, of the installed release or of an older one."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

SELECTIONS = Path(__file__).parent / "llama_scripts" / "selections.py"
ANSWERS = Path(__file__).parents[2] / "examples" / "tiny-r1" / "ask_gguf.py"


def answers(model: Path, prompts: Sequence[str], package: Path | None = None) -> list[str]:
    """Greedy answers to rendered prompts. package: a folder that holds another release of xllamacpp."""
    return _ask(ANSWERS, model, prompts, package)


def selections(model: Path, texts: Sequence[str], package: Path | None = None) -> dict[int, dict[int, int]]:
    """Tokens of the rendered texts that select an expert, by layer and expert."""
    counted = _ask(SELECTIONS, model, texts, package)
    return {int(layer): {int(expert): count for expert, count in experts.items()} for layer, experts in counted.items()}


def install_release(version: str, folder: Path) -> Path:
    """A folder with another release of xllamacpp; the test that wants it is skipped where it cannot be had."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder)]
    done = subprocess.run([*command, f"xllamacpp=={version}"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"xllamacpp {version} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return folder


def _ask(script: Path, model: Path, texts: Sequence[str], package: Path | None) -> Any:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install '.[llama-cpp]'")
    environment = {**os.environ, "PYTHONPATH": str(package)} if package else dict(os.environ)
    done = subprocess.run(
        [sys.executable, str(script), str(model)],
        input=json.dumps(list(texts)),
        capture_output=True,
        encoding="utf-8",
        errors="replace",  # older releases cut characters of the vocabulary in their log
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)
