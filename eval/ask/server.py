"""The page's server on 127.0.0.1: a page, its script and style, and questions, whose answers are streamed as lines of JSON.

Whoever can open a page in the user's browser can have it send requests to 127.0.0.1, and other users of the machine can
send theirs. So the address has a random part; the Host header must be this server's own, which a name that was pointed
at 127.0.0.1 (DNS rebinding) is not; a question must come from the page itself (Origin), as JSON, by POST; and the page may
load nothing and run nothing but its own files (Content-Security-Policy).

    GET  /TOKEN/           ask.html        GET  /TOKEN/about   who answers, as JSON
    GET  /TOKEN/ask.js     its script      POST /TOKEN/ask     a question; the answer is a stream of `eval.ask.events`
    GET  /TOKEN/ask.css    its style       POST /TOKEN/stop    {"number": of the question}
"""

from __future__ import annotations

import hmac
import json
import queue
import secrets
import select
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from eval.ask.desk import Asked, BusyError, Desk
from eval.ask.question import MOST_CHARACTERS, read_object, read_question
from rewriter.errors import InputError
from rewriter.semantics import Semantics

ADDRESS = "127.0.0.1"
NAMES = (ADDRESS, "localhost")
TOKEN_BYTES = 24
# JSON writes a character as twelve at most (a surrogate pair).
MOST_BODY_BYTES = 12 * MOST_CHARACTERS + 10_000
# A reader that takes nothing for so long is gone.
STALLED_SECONDS = 30.0
# A reader that went away while nothing is written is noticed this soon.
LOOK_SECONDS = 0.25
FILES = {"": ("ask.html", "text/html"), "ask.js": ("ask.js", "text/javascript"), "ask.css": ("ask.css", "text/css")}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # The address is a secret, which no other site and no cache is to learn.
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@dataclass(frozen=True)
class Page:
    """What is served: `about` as JSON for the page, the semantics to choose from, the longest answer."""

    about: Mapping[str, Any]
    semantics: tuple[Semantics, ...]
    most_tokens: int


class Refused(Exception):
    """A request that is not answered, with the status and the sentence that say why."""

    def __init__(self, status: HTTPStatus, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class PageServer(ThreadingHTTPServer):
    """Serves one page and hands its questions to a desk."""

    daemon_threads = True

    page: Page

    def __init__(self, port: int, desk: Desk) -> None:
        """Listen on a port of 127.0.0.1, a free one where it is 0; nothing is answered before `serving`.

        Raises:
            InputError: the port cannot be had.
        """
        self.desk = desk
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        try:
            super().__init__((ADDRESS, port), Handler)
        except OSError as error:
            raise InputError(f"--port {port} cannot be listened on ({error.strerror}), expected a free port") from None

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{ADDRESS}:{self.server_port}/{self.token}/"

    @property
    def hosts(self) -> frozenset[str]:
        """What the Host header may be."""
        return frozenset(f"{name}:{self.server_port}" for name in NAMES)

    @contextmanager
    def serving(self, page: Page) -> Iterator[str]:
        """Serve the page from threads of its own; yields its address."""
        self.page = page
        thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield self.url
        finally:
            self.desk.close()
            self.shutdown()
            thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader who went away in the middle is no fault of the server's; anything else is shown as Python does."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: PageServer
    server_version, sys_version = "mote-eval-ask", ""
    timeout = STALLED_SECONDS
    # An event is a packet: waiting for more to fill one would hold text back.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """The page and its parts."""
        self._answer({name: self._file for name in FILES} | {"about": self._about})

    def do_POST(self) -> None:
        """A question, or the end of one."""
        self._answer({"ask": self._ask, "stop": self._stop})

    def _answer(self, paths: Mapping[str, Callable[[str], None]]) -> None:
        try:
            name = self._checked_name()
            if name not in paths:
                known = name in FILES or name in ("about", "ask", "stop")
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND, "there is nothing here")
            paths[name](name)
        except Refused as refused:
            self._send(refused.status, {"error": refused.sentence})

    def _checked_name(self) -> str:
        """What is asked for behind the token. Raises: Refused."""
        if self.headers["Host"] not in self.server.hosts:
            raise Refused(HTTPStatus.FORBIDDEN, f"this page is at {ADDRESS}:{self.server.server_port} alone")
        token, slash, name = self.path.removeprefix("/").partition("/")
        # Compared as bytes: what came need not be ASCII.
        if not slash or not hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode()):
            raise Refused(HTTPStatus.NOT_FOUND, "no page is here; open the address that mote-eval ask printed")
        if self.command == "POST" and self.headers["Origin"] != f"http://{self.headers['Host']}":
            raise Refused(HTTPStatus.FORBIDDEN, "questions are taken from the page alone (Origin)")
        return name

    def _file(self, name: str) -> None:
        file, kind = FILES[name]
        content = (resources.files("eval.ask") / "templates" / file).read_bytes()
        self._head(HTTPStatus.OK, kind, len(content))
        self.wfile.write(content)

    def _about(self, name: str) -> None:
        self._send(HTTPStatus.OK, self.server.page.about)

    def _stop(self, name: str) -> None:
        try:
            number = read_object(self._body()).get("number")
        except InputError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        found = isinstance(number, int) and self.server.desk.stop(number)
        self._send(HTTPStatus.OK, {"stopped": found})

    def _ask(self, name: str) -> None:
        page = self.server.page
        try:
            asked = self.server.desk.ask(read_question(self._body(), page.semantics, page.most_tokens))
        except InputError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, str(error)) from None
        except BusyError as error:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        try:
            # The end of the connection is the end of the answer.
            self._head(HTTPStatus.OK, "application/x-ndjson", None)
            self._stream(asked)
        except OSError:
            self.close_connection = True
        finally:
            self.server.desk.leave(asked)

    def _stream(self, asked: Asked) -> None:
        while True:
            try:
                event = asked.told.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                if self._is_left():
                    return
                continue
            if event is None:
                return
            self.wfile.write(json.dumps(event).encode() + b"\n")

    def _is_left(self) -> bool:
        """Whether the other end closed the connection: it has nothing more to send, so that anything to read is its end."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def _body(self) -> bytes:
        """The body of a POST. Raises: Refused."""
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "expected application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or self.headers.get("Transfer-Encoding"):
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "expected a Content-Length")
        if len(length) > 12 or int(length) > MOST_BODY_BYTES:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the prompt is too long, expected at most {MOST_CHARACTERS} characters",
            )
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise Refused(HTTPStatus.BAD_REQUEST, "the request ended before its body did")
        return body

    def _send(self, status: HTTPStatus, document: Mapping[str, Any]) -> None:
        content = json.dumps(document).encode()
        self._head(status, "application/json", len(content))
        self.wfile.write(content)

    def _head(self, status: HTTPStatus, kind: str, length: int | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server itself refuses, without repeating what it was sent."""
        self.close_connection = True
        self._send(HTTPStatus(code), {"error": HTTPStatus(code).phrase})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing: what is asked stays between the page and the model."""
