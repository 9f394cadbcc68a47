"""A server process that speaks the Hub's HTTP protocol as huggingface_hub 2.4 uses it, for tests without a network.

usage: server.py ROOT [--port N]; prints its address; HF_ENDPOINT is pointed at it. State is kept under ROOT.

Covered, each read from huggingface_hub 2.4 (hf_api.py, _commit_api.py, lfs.py, file_download.py, utils/_xet.py):
whoami, create repo, model info, tree with pages, paths-info, refs, branches, preupload, commits (regular, LFS and
deleted files, parentCommit), validate-yaml, resolve with HEAD, ranges and redirects to another origin, LFS batch with basic
transfer, Xet tokens pointing at a local:// store (uploads, deduplication and SHA-256 are then the real hf_xet),
duplication of files across repos and of whole repos, tokens with read and write roles, private and gated repos.

Not covered: multipart LFS uploads; Xet's own network protocol (hf_xet talks to the store on disk, so nothing of a Xet
upload passes this server and a connection cannot be dropped inside one); content validation beyond SHA-256 and size;
pull requests, tags, datasets and Spaces; organisations other than by name; fine-grained tokens, OAuth and OIDC; quotas,
malware scans and real rate limits (429 is injected); storage regions other than by name; the delay until a duplicated
repo's files are there. Whether the real Hub agrees in every detail can be seen on the real Hub only.

Test controls (not of the Hub): POST /_double/seed, fault and token; GET /_double/requests and repo.
"""

import argparse
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from files import FileHandler
from store import Store

REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class HubHandler(FileHandler):
    """All answers, the test controls included."""

    def control_seed(self) -> None:
        body = self.json_body()
        self.reply({"commit": self.server.store.seed(body["repo_id"], Path(body["folder"]), body)})

    def control_fault(self) -> None:
        with self.server.lock:
            body = self.json_body()
            self.server.faults = [] if body.get("clear") else [*self.server.faults, {"times": 1, **body}]
        self.reply({})

    def control_token(self) -> None:
        body = self.json_body()
        user = {"name": body["name"], "role": body["role"], "namespaces": body.get("namespaces", [body["name"]])}
        self.server.store.state["tokens"][body["token"]] = user
        self.server.store.save()
        self.reply({})

    def control_requests(self) -> None:
        with self.server.lock:
            self.reply(self.server.requests)
            if "clear" in self.query:
                self.server.requests = []

    def control_repo(self, repo: str) -> None:
        self.reply(self.server.store.state["repos"].get(repo))


class Double(ThreadingHTTPServer):
    """The server, its store, the faults to inject and the requests it has seen."""

    daemon_threads = True

    def __init__(self, root: Path, port: int) -> None:
        super().__init__(("127.0.0.1", port), HubHandler)
        self.store = Store(root)
        self.faults: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()


HubHandler.routes = [
    ("POST", r"/_double/seed", HubHandler.control_seed),
    ("POST", r"/_double/fault", HubHandler.control_fault),
    ("POST", r"/_double/token", HubHandler.control_token),
    ("GET", r"/_double/requests", HubHandler.control_requests),
    ("GET", rf"/_double/repo/{REPO}", HubHandler.control_repo),
    ("GET", r"/api/whoami-v2", HubHandler.whoami),
    ("POST", r"/api/repos/create", HubHandler.create_repo),
    ("POST", r"/api/validate-yaml", HubHandler.validate_yaml),
    ("GET", rf"/api/models/{REPO}", HubHandler.model_info),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>.+)", HubHandler.model_info),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>.+)", HubHandler.tree),
    ("POST", rf"/api/models/{REPO}/paths-info/(?P<revision>.+)", HubHandler.paths_info),
    ("GET", rf"/api/models/{REPO}/refs", HubHandler.refs),
    ("POST", rf"/api/models/{REPO}/branch/(?P<branch>.+)", HubHandler.create_branch),
    ("DELETE", rf"/api/models/{REPO}/branch/(?P<branch>.+)", HubHandler.delete_branch),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>.+)", HubHandler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>.+)", HubHandler.commit),
    ("POST", rf"/api/models/{REPO}/lfs-files/duplicate", HubHandler.duplicate_files),
    ("POST", rf"/api/models/{REPO}/duplicate", HubHandler.duplicate_repo),
    ("GET", rf"/api/models/{REPO}/xet-(?P<kind>read|write)-token/(?P<revision>.+)", HubHandler.xet_token),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", HubHandler.lfs_batch),
    ("PUT", rf"/_lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})", HubHandler.lfs_put),
    ("GET|HEAD", r"/_cdn/(?P<sha256>[0-9a-f]{64})", HubHandler.cdn),
    ("GET|HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", HubHandler.resolve_file),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--port", type=int, default=0)
    arguments = parser.parse_args()
    server = Double(arguments.root.resolve(), arguments.port)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
