"""The reader of JSON that others wrote: what Python's parser lets through but later code or a runtime cannot bear is refused."""

import json
import math
import re
from collections.abc import Callable
from typing import Any

from rewriter.errors import printable

MAX_DEPTH = 64  # the runtimes' parsers stop at 128; nothing that is read here nests deeper than ten
_HALF = re.compile("[\ud800-\udfff]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """Text that is not JSON, or not JSON that can be used; the message is one clause."""


def read_json(
    text: str | bytes,
    *,
    finite: bool = True,
    parse_float: Callable[[str], float] = float,
    parse_int: Callable[[str], int] = int,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> Any:
    """The value that a JSON text stands for.

    finite: refuse NaN, Infinity and numbers too large for a double, as every strict parser does; configs hold such.

    Raises: JsonError for text that is not UTF-8 or not JSON, nests deeper than MAX_DEPTH, or holds half of a surrogate pair.
    """

    def number(literal: str) -> float:
        value = parse_float(literal)
        if finite and not math.isfinite(value):
            raise JsonError(f"the number {literal[:20]} is not finite")
        return value

    def constant(literal: str) -> float:
        if finite:
            raise JsonError(f"the number {literal} is not finite")
        return float(literal)

    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(
            text,
            parse_float=number,
            parse_int=parse_int,
            parse_constant=constant,
            object_pairs_hook=object_pairs_hook,
        )
    except UnicodeDecodeError as error:
        raise JsonError(f"byte {error.start} is not UTF-8 text") from None
    except RecursionError:
        raise JsonError(f"it nests deeper than {MAX_DEPTH} levels") from None
    except JsonError:
        raise
    except ValueError as error:
        raise JsonError(printable(str(error))[:120]) from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise JsonError("it holds half of a surrogate pair, which is no character") from None
    return value


def whole_characters(value: Any) -> Any:
    """The same JSON value with each half of a surrogate pair, which UTF-8 has no bytes for, as U+FFFD; two that stand
    together are the one character that they mean.

    For what a model wrote, where one such token should not cost the answer; what people write is refused by `read_json`.
    """
    if isinstance(value, str):
        is_whole = value.isascii() or not _HALF.search(value)
        return value if is_whole else value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if isinstance(value, dict):
        return {whole_characters(key): whole_characters(item) for key, item in value.items()}
    return [whole_characters(item) for item in value] if isinstance(value, list) else value


def printed_json(text: str) -> str:
    """The same JSON with what could steer a terminal (controls, marks of direction) as \\u escapes; letters stay readable."""
    if text.replace("\n", " ").isprintable():
        return text
    return "".join(letter if letter == "\n" or letter.isprintable() else _escape(letter) for letter in text)


def _escape(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{int.from_bytes(units[start : start + 2]):04x}" for start in range(0, len(units), 2))


def _check_depth(value: Any) -> None:
    """Level by level, so that no depth can exhaust the stack."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise JsonError(f"it nests deeper than {MAX_DEPTH} levels")
