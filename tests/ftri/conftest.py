"""The tiny R1 and one engine on it, shared by all tests that need vLLM in this process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import ENGINE_ARGUMENTS, drop_stale_vllm_settings
from tiny_models import build_tiny_r1

from ftri.engine.engine import Engine

# Two threads that wait for each other on busy cores are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def tiny_r1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_r1(tmp_path_factory.mktemp("models") / "tiny-r1")


@pytest.fixture(scope="session")
def tiny_engine(tiny_r1: Path) -> Iterator[Engine]:
    with drop_stale_vllm_settings():
        options = {"record": True, "weights": "float32", "live_edits": True}
        engine = Engine(str(tiny_r1), **options, engine_arguments=ENGINE_ARGUMENTS)
    yield engine
    engine.close()
