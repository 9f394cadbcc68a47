"""Where a server is, how its key reaches it, and what of it may be shown."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from rewriter.errors import MoteError

MAX_SERVER_WORDS = 200


class EndpointError(MoteError):
    """A server cannot be reached, refuses, or answers something else than was asked for."""


class RefusalError(EndpointError):
    """A server answered that it does not do what it was asked for."""


@dataclass(frozen=True)
class Endpoint:
    """Where a server is and how it is asked."""

    url: str
    model: str | None = None
    api_key_variable: str | None = None
    concurrency: int = 16
    attempts: int = 6
    first_wait_seconds: float = 0.5
    timeout_seconds: float = 600.0
    extra_body: dict[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The URL that ends in /v1, with or without which people give it."""
        stripped = self.url.rstrip("/")
        return stripped if stripped.endswith("/v1") else f"{stripped}/v1"

    @property
    def shown(self) -> str:
        """The URL as messages, journals and results have it: without name, password and query, which may be secrets."""
        return without_credentials(self.url)

    @property
    def shown_base(self) -> str:
        """As `shown`, ending in /v1."""
        return without_credentials(self.base)

    def headers(self) -> dict[str, str]:
        """The key comes from the environment, so that it is in no command line, journal or result.

        Raises:
            EndpointError: the variable is not set, or holds what no header can.
        """
        if self.api_key_variable is None:
            return {}
        key = os.environ.get(self.api_key_variable, "").strip()
        if not key:
            raise EndpointError(
                f"the environment variable {self.api_key_variable}, which should hold the key for {self.shown}, is not set;"
                f" export {self.api_key_variable}=KEY"
            )
        if not (key.isascii() and key.isprintable()):
            raise EndpointError(
                f"the environment variable {self.api_key_variable} holds other than printable ASCII characters,"
                f" expected the key for {self.shown}"
            )
        return {"Authorization": f"Bearer {key}"}

    def redacted(self, text: str) -> str:
        """A server's words on one line of bounded length, without our key or the URL's credentials, which it may echo."""
        from rewriter.redaction import redact

        secrets = [os.environ.get(self.api_key_variable or "", "").strip(), *_credentials(self.url)]
        for secret in secrets:
            if secret:
                text = text.replace(secret, "<key>")
        line = " ".join(redact(text).split())
        line = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)
        return line if len(line) <= MAX_SERVER_WORDS else f"{line[: MAX_SERVER_WORDS - 3]}..."


def without_credentials(url: str) -> str:
    """A URL without the name and password before its host and without its query and fragment."""
    try:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return url.rpartition("@")[2].partition("?")[0]


def _credentials(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
        return [word for word in (parts.password, parts.username) if word]
    except ValueError:
        return []
