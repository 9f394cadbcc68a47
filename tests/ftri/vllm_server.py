"""vLLM's OpenAI server as a process, for tests that ask it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

START_SECONDS = 900
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def server_command(folder: Path, port: int, *arguments: str) -> list[str]:
    """The server of a folder, whose model is called "served"; later arguments win."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--dtype", "float32", "--served-model-name", "served", "--max-model-len", "256"]
    return [*command, "--max-num-seqs", "16", "--enforce-eager", "--attention-backend", "CPU_MLA", *arguments]


@contextmanager
def serving(folder: Path, log: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """A started server's URL; what it says goes to `log`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    with log.open("w") as output:
        server = subprocess.Popen(
            server_command(folder, port, *arguments),
            env=clean | ENVIRONMENT | (environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
        while True:
            try:
                if httpx2.get(f"{url}/health").status_code == 200:
                    break
            except httpx2.HTTPError:
                pass
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)
        yield url
    finally:
        server.terminate()
        server.wait(60)
