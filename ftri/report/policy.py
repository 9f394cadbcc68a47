"""What a page may do: the rule that a browser keeps for it, whatever text has got into it."""

from __future__ import annotations

import base64
import hashlib


def content_policy(script: str | None = None) -> str:
    """The content security policy of a page that needs nothing from outside, and runs at most this one script.

    script: the text between the script element's tags, to the byte.
    """
    rules = [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    if script is not None:
        digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
        rules.append(f"script-src 'sha256-{digest}'")
    return "; ".join(rules)
