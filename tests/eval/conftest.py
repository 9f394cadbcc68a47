import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

HERE = Path(__file__).parent
# The doubles are modules of the tests, not of the project.
sys.path.insert(0, str(HERE))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[Any]]:
    """One whole evaluation on the stand-in engine: (folder, results, the models that were loaded)."""
    from fake_run import evaluate

    output = tmp_path_factory.mktemp("whole")
    return (output, *evaluate(output))


@dataclass
class Served:
    """A server process of the test double."""

    url: str
    process: subprocess.Popen[bytes]

    def seen(self) -> dict[str, int]:
        return httpx2.get(f"{self.url}/seen").json()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts servers: serve(name="base", die_after=5, ...); see server.py."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int | None = None, **settings: Any) -> Served:
        port = port or free_port()
        paths = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
        process = subprocess.Popen(
            [sys.executable, str(HERE / "server.py"), str(port), json.dumps(settings)],
            env=os.environ | {"PYTHONPATH": paths},
        )
        started.append(process)
        url = f"http://127.0.0.1:{port}"
        for _ in range(200):
            assert process.poll() is None, "the double did not start"
            try:
                httpx2.get(f"{url}/seen", timeout=1)
                break
            except httpx2.TransportError:
                time.sleep(0.05)
        return Served(url, process)

    yield start
    for process in started:
        process.kill()
        process.wait()
