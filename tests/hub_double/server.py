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
import base64
import hashlib
import json
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))

from store import Refusal, Store, git_blob_id, is_lfs

PAGE_SIZE = 100
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


class Double(ThreadingHTTPServer):
    """The server, its store, the faults to inject and the requests it has seen."""

    daemon_threads = True

    def __init__(self, root: Path, port: int) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.store = Store(root)
        self.faults: list[dict[str, Any]] = []
        self.requests: list[dict[str, Any]] = []
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Double

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep the request log in memory only."""

    def do_GET(self) -> None:
        self.handle_any()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    # --- plumbing --------------------------------------------------------------------------------------------------

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        self.body_read = False
        record = {
            "method": self.command, "path": self.route, "range": self.headers.get("Range"),
            "received_bytes": int(self.headers.get("Content-Length") or 0), "sent_bytes": 0, "status": None,
            "authorization": "Authorization" in self.headers,
        }  # fmt: skip
        self.record = record
        if not self.route.startswith("/_double/"):
            with self.server.lock:
                self.server.requests.append(record)
            if self.inject_fault():
                return
        try:
            self.answer()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client was killed

    def answer(self) -> None:
        try:
            for method, pattern, function in ROUTES:
                match = re.fullmatch(pattern, self.route)
                if match and self.command in method.split("|"):
                    function(self, **match.groupdict())
                    return
            raise Refusal(404, f"no such route: {self.command} {self.route}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code:
                headers["X-Error-Code"] = refusal.code
            self.reply({"error": refusal.message}, refusal.status, headers)

    def inject_fault(self) -> bool:
        """Apply the first fault whose pattern matches; say whether the request ends with it."""
        line = f"{self.command} {self.route}"
        with self.server.lock:
            fault = next((f for f in self.server.faults if f["times"] > 0 and re.search(f["match"], line)), None)
            if fault is None:
                return False
            if fault.get("skip", 0) > 0:
                fault["skip"] -= 1
                return False
            fault["times"] -= 1
        if "delay_s" in fault:
            time.sleep(fault["delay_s"])
        if "drop_after_bytes" in fault:
            # Read so much of the request's body, then reset the connection as a failing network would.
            remaining = fault["drop_after_bytes"]
            while remaining > 0 and (part := self.rfile.read(min(65536, remaining))):
                remaining -= len(part)
            self.record["status"] = "dropped"
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.connection.close()
            self.close_connection = True
            return True
        if fault.get("ignore_range"):
            self.headers.replace_header("Range", "none")
            return False
        if "foreign_commit" in fault:
            repo = self.server.store.state["repos"][fault["foreign_commit"]]
            branch = fault.get("branch", "main")
            files = self.server.store.files(repo, branch)
            self.server.store.add_commit(repo, branch, files, "somebody else's", repo["branches"][branch])
            return False
        if fault.get("lose_response"):
            self.lose_response = True  # carry the request out, then drop the answer
            return False
        if "status" in fault:
            headers = dict(fault.get("headers", {}))
            self.reply({"error": fault.get("message", "injected")}, fault["status"], headers)
            return True
        return False

    def body(self) -> bytes:
        self.body_read = True
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def json_body(self) -> Any:
        return json.loads(self.body() or b"{}")

    def reply(self, document: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.reply_bytes(json.dumps(document).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def reply_bytes(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if not self.body_read:
            self.body()
        self.record["status"] = status
        if getattr(self, "lose_response", False):
            self.connection.close()
            self.close_connection = True
            return
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
            self.record["sent_bytes"] = len(content)

    # --- who asks, and may they ------------------------------------------------------------------------------------

    def user(self) -> dict[str, Any] | None:
        header = self.headers.get("Authorization")
        if header is None:
            return None
        user = self.server.store.state["tokens"].get(header.removeprefix("Bearer "))
        if user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return dict(user)

    def readable(self, repo_id: str) -> dict[str, Any]:
        """Return a repo whose existence and file list the user may see."""
        user, repo = self.user(), self.server.store.state["repos"].get(repo_id)
        owner = repo_id.split("/")[0]
        if repo is None or (repo["private"] and (user is None or owner not in user["namespaces"])):
            raise Refusal(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def content_readable(self, repo_id: str) -> dict[str, Any]:
        """Return a repo whose files the user may read: a gated one asks for being let in."""
        repo, user = self.readable(repo_id), self.user()
        if repo["gated"]:
            if user is None:
                raise Refusal(401, f"Access to model {repo_id} is restricted.", "GatedRepo")
            if repo_id.split("/")[0] not in user["namespaces"] and user["name"] not in repo["readers"]:
                raise Refusal(403, f"Access to model {repo_id} is restricted.", "GatedRepo")
        return repo

    def check_write(self, repo_id: str) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        if user["role"] != "write" or repo_id.split("/")[0] not in user["namespaces"]:
            raise Refusal(403, f"You don't have the rights to write under the namespace {repo_id.split('/')[0]}")

    def writable(self, repo_id: str) -> dict[str, Any]:
        repo = self.readable(repo_id)
        self.check_write(repo_id)
        return repo

    # --- the Hub's API ---------------------------------------------------------------------------------------------

    def whoami(self) -> None:
        user = self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        self.reply({"type": "user", "name": user["name"], "orgs": []})

    def create_repo(self) -> None:
        body, user = self.json_body(), self.user()
        if user is None:
            raise Refusal(401, "Invalid username or password.")
        repo_id = f"{body.get('organization') or user['name']}/{body['name']}"
        self.check_write(repo_id)
        if repo_id in self.server.store.state["repos"]:
            self.reply(
                {"error": "You already created this model repo", "url": f"{self.endpoint()}/{repo_id}"}, status=409
            )
            return
        self.server.store.create(repo_id, body.get("visibility") == "private")
        self.reply({"url": f"{self.endpoint()}/{repo_id}", "name": repo_id})

    def validate_yaml(self) -> None:
        from huggingface_hub import ModelCard

        try:
            data = ModelCard(self.json_body()["content"]).data.to_dict()
        except ValueError as error:
            self.reply({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        if not isinstance(data.get("license", ""), str):
            self.reply({"errors": [{"message": '"license" must be a string'}], "warnings": []}, 400)
            return
        self.reply({"errors": [], "warnings": []})

    def model_info(self, repo: str, revision: str = "main") -> None:
        stored = self.readable(repo)
        commit = self.server.store.resolve(stored, revision)
        files = stored["commits"][commit]["files"]
        self.reply(
            {
                "id": repo, "modelId": repo, "sha": commit, "private": stored["private"], "gated": stored["gated"],
                "disabled": False, "tags": [], "siblings": [{"rfilename": name} for name in sorted(files)],
            }
        )  # fmt: skip

    def describe(self, path: str, entry: dict[str, Any]) -> dict[str, Any]:
        described = {"type": "file", "path": path, "oid": entry["oid"], "size": entry["size"]}
        if entry["lfs"]:
            described["lfs"] = {"oid": entry["lfs"], "size": entry["size"], "pointerSize": 135}
            if entry["xet"]:
                described["xetHash"] = entry["xet"]
        return described

    def tree(self, repo: str, revision: str) -> None:
        files = self.server.store.files(self.readable(repo), revision)
        start = int(self.query.get("cursor", ["0"])[0])
        names = sorted(files)
        headers = {}
        if start + PAGE_SIZE < len(names):
            link = f"{self.endpoint()}{self.path.split('?')[0]}?recursive=True&cursor={start + PAGE_SIZE}"
            headers["Link"] = f'<{link}>; rel="next"'
        page = names[start : start + PAGE_SIZE]
        self.reply([self.describe(name, files[name]) for name in page], headers=headers)

    def paths_info(self, repo: str, revision: str) -> None:
        files = self.server.store.files(self.readable(repo), revision)
        paths = parse_qs(self.body().decode()).get("paths", [])
        self.reply([self.describe(path, files[path]) for path in paths if path in files])

    def refs(self, repo: str) -> None:
        branches = self.readable(repo)["branches"].items()
        listed = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit} for n, commit in branches]
        self.reply({"branches": listed, "converts": [], "tags": []})

    def create_branch(self, repo: str, branch: str) -> None:
        stored, body = self.writable(repo), self.json_body()
        if branch in stored["branches"]:
            raise Refusal(409, f"Reference refs/heads/{branch} already exists")
        stored["branches"][branch] = self.server.store.resolve(stored, body.get("startingPoint") or "main")
        self.server.store.save()
        self.reply({})

    def delete_branch(self, repo: str, branch: str) -> None:
        self.writable(repo)["branches"].pop(branch)
        self.server.store.save()
        self.reply({})

    def preupload(self, repo: str, revision: str) -> None:
        stored = self.writable(repo)
        present = self.server.store.files(stored, revision)
        answers = []
        for file in self.json_body()["files"]:
            known = present.get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if is_lfs(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": (known["lfs"] or known["oid"]) if known else None,
                }
            )
        self.reply({"files": answers})

    def commit(self, repo: str, revision: str) -> None:
        stored, store = self.writable(repo), self.server.store
        lines = [json.loads(line) for line in self.body().splitlines() if line]
        header = lines[0]["value"]
        with store.lock:
            if revision not in stored["branches"]:
                raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            head = stored["branches"][revision]
            if header.get("parentCommit") not in (None, head):
                raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            files = store.files(stored, revision)
            for line in lines[1:]:
                self.apply(stored, files, line["key"], line["value"])
            digest = store.add_commit(stored, revision, files, header["summary"], head)
        self.reply({"success": True, "commitOid": digest, "commitUrl": f"{self.endpoint()}/{repo}/commit/{digest}"})

    def apply(self, stored: dict[str, Any], files: dict[str, Any], key: str, value: dict[str, Any]) -> None:
        store = self.server.store
        if key == "file":
            content = base64.b64decode(value["content"])
            store.put_object(content)
            files[value["path"]] = {"oid": git_blob_id(content), "size": len(content), "lfs": None, "xet": None}
        elif key == "lfsFile":
            sha256 = value["oid"]
            known = self.known_large_file(stored, sha256, xet=True)
            if known is None:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['path']}")
            if "size" in value and value["size"] != known["size"]:
                raise Refusal(400, f"LFS size {value['size']} of {value['path']} differs from {known['size']}")
            files[value["path"]] = {"oid": git_blob_id(sha256.encode()), "lfs": sha256, **known}
        elif key == "deletedFile":
            if files.pop(value["path"], None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise Refusal(400, f"unknown commit line {key}")

    def known_large_file(self, stored: dict[str, Any], sha256: str, xet: bool = False) -> dict[str, Any] | None:
        """Return size and Xet hash of a large file that this repo may point to: its own, uploaded, or duplicated."""
        for commit in stored["commits"].values():
            for entry in commit["files"].values():
                if entry["lfs"] == sha256:
                    return {"size": entry["size"], "xet": entry["xet"]}
        if sha256 in stored.get("duplicated", {}):
            return dict(stored["duplicated"][sha256])
        if sha256 in stored.get("uploaded", {}):
            return {"size": stored["uploaded"][sha256], "xet": None}
        # Xet's store does not know for which repo a file was sent.
        uploaded = self.server.store.xet_hashes().get(sha256)
        return dict(uploaded) if uploaded is not None and xet else None

    def duplicate_files(self, repo: str) -> None:
        source, body = self.content_readable(repo), self.json_body()
        target = self.writable(body["target"]["name"])
        failed = []
        entries = {e["lfs"]: e for c in source["commits"].values() for e in c["files"].values() if e["lfs"]}
        for file in body["files"]:
            entry = entries.get(file["sha256"])
            if entry is None or entry["xet"] != file["xetHash"]:
                failed.append({"sha256": file["sha256"], "error": "file not found"})
            elif source["region"] != target["region"]:
                failed.append({"sha256": file["sha256"], "error": "the repos are in different storage regions"})
            else:
                known = {"size": entry["size"], "xet": entry["xet"]}
                target.setdefault("duplicated", {})[file["sha256"]] = known
        self.server.store.save()
        self.reply({"success": [], "failed": failed})

    def duplicate_repo(self, repo: str) -> None:
        source, body = self.content_readable(repo), self.json_body()
        target_id = body["repository"]
        self.check_write(target_id)
        store = self.server.store
        if target_id in store.state["repos"]:
            self.reply({"error": "already exists", "url": f"{self.endpoint()}/{target_id}"}, 409)
            return
        target = json.loads(json.dumps(source))
        target["gated"] = False
        target["private"] = body.get("visibility", "private" if source["private"] else "public") == "private"
        store.state["repos"][target_id] = target
        store.save()
        self.reply({"url": f"{self.endpoint()}/{target_id}", "filesCopyPending": False})

    def xet_token(self, repo: str, kind: str, revision: str) -> None:
        if kind == "write":
            self.writable(repo)
        else:
            self.content_readable(repo)
        endpoint = f"local://{self.server.store.root / 'cas'}"
        expires = int(time.time()) + 3600
        self.reply(
            {"accessToken": "xet", "exp": expires, "casUrl": endpoint},
            headers={
                "X-Xet-Cas-Url": endpoint,
                "X-Xet-Access-Token": "xet",
                "X-Xet-Token-Expiration": str(expires),
            },
        )

    def lfs_batch(self, repo: str) -> None:
        stored = self.writable(repo)
        objects = []
        for wanted in self.json_body()["objects"]:
            answer = dict(wanted)
            if self.known_large_file(stored, wanted["oid"]) is None:
                answer["actions"] = {"upload": {"href": f"{self.endpoint()}/_lfs/{repo}/{wanted['oid']}"}}
            objects.append(answer)
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, repo: str, oid: str) -> None:
        size, digest = int(self.headers.get("Content-Length") or 0), hashlib.sha256()
        temporary = self.server.store.objects / f"{oid}.{threading.get_ident()}.part"
        self.body_read = True
        with temporary.open("wb") as opened:
            if self.headers.get("Transfer-Encoding") == "chunked":
                while length := int(self.rfile.readline(), 16):
                    part = self.rfile.read(length)
                    self.rfile.readline()
                    size += length
                    digest.update(part)
                    opened.write(part)
                self.rfile.readline()
                self.record["received_bytes"] = size
            else:
                remaining = size
                while remaining and (part := self.rfile.read(min(1 << 20, remaining))):
                    remaining -= len(part)
                    digest.update(part)
                    opened.write(part)
        if digest.hexdigest() != oid:
            temporary.unlink()
            raise Refusal(400, "content does not match its hash")
        temporary.rename(self.server.store.objects / oid)
        self.server.store.state["repos"][repo].setdefault("uploaded", {})[oid] = size
        self.server.store.save()
        self.reply({})

    # --- files -----------------------------------------------------------------------------------------------------

    def resolve_file(self, repo: str, revision: str, path: str) -> None:
        stored = self.content_readable(repo)
        commit = self.server.store.resolve(stored, revision)
        entry = stored["commits"][commit]["files"].get(path)
        if entry is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{entry["lfs"] or entry["oid"]}"'}
        if not entry["lfs"]:
            content = self.server.store.content_path(entry)
            assert content is not None
            self.reply_range(content, entry["size"], headers)
            return
        headers |= {"X-Linked-Etag": f'"{entry["lfs"]}"', "X-Linked-Size": str(entry["size"])}
        if self.server.store.content_path(entry) is None:
            headers["X-Xet-Hash"] = entry["xet"]
            headers["X-Xet-Refresh-Route"] = f"{self.endpoint()}/api/models/{repo}/xet-read-token/{commit}"
        # Another origin, as the Hub's content network is: clients must not send their token there.
        address = f"http://localhost:{self.server.server_port}/_cdn/{entry['lfs']}"
        self.reply_bytes(b"", 302, {**headers, "Location": address})

    def cdn(self, sha256: str) -> None:
        path = self.server.store.content_path({"lfs": sha256, "oid": sha256})
        if path is None:
            raise Refusal(404, "this double serves Xet files by Xet only")
        if "Authorization" in self.headers:
            raise Refusal(400, "a token was sent to the content network")
        self.reply_range(path, path.stat().st_size, {"ETag": f'"{sha256}"'})

    def reply_range(self, path: Path, size: int, headers: dict[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start, stop, status = 0, size, 200
        if match:
            start, stop, status = int(match[1]), min(size, int(match[2] or size - 1) + 1), 206
            if start >= size:
                raise Refusal(416, "Range not satisfiable")
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        self.body()
        self.record["status"] = status
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(stop - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with path.open("rb") as opened:
            opened.seek(start)
            remaining = stop - start
            while remaining and (part := opened.read(min(1 << 20, remaining))):
                self.wfile.write(part)
                self.record["sent_bytes"] += len(part)
                remaining -= len(part)

    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    # --- test controls ---------------------------------------------------------------------------------------------

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


ROUTES = [
    ("POST", r"/_double/seed", Handler.control_seed),
    ("POST", r"/_double/fault", Handler.control_fault),
    ("POST", r"/_double/token", Handler.control_token),
    ("GET", r"/_double/requests", Handler.control_requests),
    ("GET", rf"/_double/repo/{REPO}", Handler.control_repo),
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create_repo),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("GET", rf"/api/models/{REPO}", Handler.model_info),
    ("GET", rf"/api/models/{REPO}/revision/(?P<revision>.+)", Handler.model_info),
    ("GET", rf"/api/models/{REPO}/tree/(?P<revision>.+)", Handler.tree),
    ("POST", rf"/api/models/{REPO}/paths-info/(?P<revision>.+)", Handler.paths_info),
    ("GET", rf"/api/models/{REPO}/refs", Handler.refs),
    ("POST", rf"/api/models/{REPO}/branch/(?P<branch>.+)", Handler.create_branch),
    ("DELETE", rf"/api/models/{REPO}/branch/(?P<branch>.+)", Handler.delete_branch),
    ("POST", rf"/api/models/{REPO}/preupload/(?P<revision>.+)", Handler.preupload),
    ("POST", rf"/api/models/{REPO}/commit/(?P<revision>.+)", Handler.commit),
    ("POST", rf"/api/models/{REPO}/lfs-files/duplicate", Handler.duplicate_files),
    ("POST", rf"/api/models/{REPO}/duplicate", Handler.duplicate_repo),
    ("GET", rf"/api/models/{REPO}/xet-(?P<kind>read|write)-token/(?P<revision>.+)", Handler.xet_token),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", rf"/_lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})", Handler.lfs_put),
    ("GET|HEAD", r"/_cdn/(?P<sha256>[0-9a-f]{64})", Handler.cdn),
    ("GET|HEAD", rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve_file),
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
