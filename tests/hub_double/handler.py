"""One request to the double: routing, injected faults, replies, and who may do what."""

import json
import re
import socket
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from store import Refusal

if TYPE_CHECKING:
    from server import Double


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    routes: list[tuple[str, str, Callable[..., None]]] = []  # methods, pattern, what answers
    server: "Double"

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
            for method, pattern, function in self.routes:
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
        if "body" in fault:  # as a captive portal or a proxy would answer
            self.reply_bytes(fault["body"].encode(), fault.get("status", 200), {"Content-Type": "text/html"})
            return True
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
