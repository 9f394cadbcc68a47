"""Starts the double of the Hub as a process and talks to its test controls."""

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

SERVER = Path(__file__).parent / "server.py"


class HubDouble:
    """A running server process; `environment` is what a client process needs to use it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Start the server on the folder's state; the address stays the same over restarts."""
        port = self.endpoint.rsplit(":", 1)[1] if hasattr(self, "endpoint") else "0"
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER), str(self.root / "hub"), "--port", port], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.endpoint = self.process.stdout.readline().strip()

    def stop(self) -> None:
        """Stop the server."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def environment(self, token: str | None = None, xet: bool = True) -> dict[str, str]:
        """Return the environment of a client: the endpoint, a home of its own, the token if any."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        kept |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "xdg"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        if token is not None:
            kept["HF_TOKEN"] = token
        if not xet:
            kept["HF_HUB_DISABLE_XET"] = "1"
        return kept

    def seed(self, repo_id: str, folder: Path, **options: Any) -> str:
        """Make a repo of a folder, in place, and return its commit."""
        answer = self._call("POST", "seed", {"repo_id": repo_id, "folder": str(folder), **options})
        return str(answer["commit"])

    def add_token(self, token: str, name: str, role: str = "write", namespaces: list[str] | None = None) -> None:
        """Let a token in."""
        self._call("POST", "token", {"token": token, "name": name, "role": role, "namespaces": namespaces or [name]})

    def fault(self, match: str, **fault: Any) -> None:
        """Spoil the next requests whose "METHOD /path" matches."""
        self._call("POST", "fault", {"match": match, **fault})

    def clear_faults(self) -> None:
        """Behave well again."""
        self._call("POST", "fault", {"clear": True})

    def requests(self, clear: bool = False) -> list[dict[str, Any]]:
        """Return what was asked, oldest first."""
        return list(self._call("GET", "requests" + ("?clear=1" if clear else "")))

    def repo(self, repo_id: str) -> dict[str, Any] | None:
        """Return a repo's state, or None."""
        found = self._call("GET", f"repo/{repo_id}")
        return dict(found) if found else None

    def files(self, repo_id: str, branch: str = "main") -> dict[str, Any]:
        """Return the file entries at a branch's head."""
        repo = self.repo(repo_id)
        assert repo is not None, f"{repo_id} does not exist"
        return dict(repo["commits"][repo["branches"][branch]]["files"])

    def xet_bytes(self) -> int:
        """Return the bytes of content in the Xet store."""
        folder = self.root / "hub" / "cas" / "xet" / "xorbs" / "xorbs"
        if not folder.is_dir():
            return 0
        return sum(
            path.stat().st_size
            for path in folder.iterdir()
            if path.name.startswith("default.") and "tag" not in path.name
        )

    def _call(self, method: str, name: str, document: Any = None) -> Any:
        data = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(f"{self.endpoint}/_double/{name}", data=data, method=method)
        with urllib.request.urlopen(request, timeout=900) as response:
            return json.loads(response.read())
