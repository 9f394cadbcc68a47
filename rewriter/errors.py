"""The errors a user can cause or meet; each message is one sentence that names the file, what was found and what was expected."""

import json
from typing import TYPE_CHECKING

from rewriter.redaction import redact

if TYPE_CHECKING:
    from pydantic import ValidationError

NUM_LETTERS_SHOWN = 80
NUM_LETTERS_OF_A_MESSAGE = 400
_CUT = " [...] "


class MoteError(Exception):
    """Something the user asked for or supplied cannot be used; the message is one line, whatever the file held that it quotes."""

    def __init__(self, message: str = "") -> None:
        """message: one sentence; secrets are taken out, characters that could do something to a terminal are escaped, and a
        long middle is cut."""
        super().__init__(shortened(printable(redact(message))))


class InputError(MoteError):
    """An argument or an input file other than the checkpoint is wrong."""


class ExpertSetError(InputError):
    """An expert set is malformed, or does not fit the model."""


class RecordError(InputError):
    """A `mote` block or a recipe is not one."""


class CheckpointError(MoteError):
    """A checkpoint folder or one of its files is damaged, incomplete or not what its config says."""


class UnknownFamilyError(MoteError):
    """The model's architecture has no row in the family table."""


class PlanError(MoteError):
    """The requested edit cannot be done on this model, for example because a layer would run out of experts."""


class OutputError(MoteError):
    """The output folder cannot be written: it exists, is in use, lies in the source, or the disk refused."""


class VerificationError(MoteError):
    """A variant differs from what its plan says."""


class HubError(MoteError):
    """The Hub refused, could not be reached, or does not hold what was asked for."""


def quoted(value: object) -> str:
    """A value found in a file, as JSON in one line: cut where it is long, and with its control, bidirectional and surrogate
    characters escaped, so that it can do nothing to a terminal."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__} that is no JSON"
    return printable(text if len(text) <= NUM_LETTERS_SHOWN else f"{text[: NUM_LETTERS_SHOWN - 3]}...")


def printable(text: str) -> str:
    """Text with every character escaped that is not a letter, mark, number, sign or space to be seen."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def shortened(text: str, num_letters: int = NUM_LETTERS_OF_A_MESSAGE) -> str:
    """A message within its length: what is wrong stands at its start, what was expected at its end, so its middle goes."""
    if len(text) <= num_letters:
        return text
    kept = num_letters - len(_CUT)
    return f"{text[: kept // 2 + kept % 2]}{_CUT}{text[-(kept // 2) :]}"


def first_problem(error: "ValidationError", of: str = "") -> str:
    """The first of pydantic's complaints in one clause: the place, the value found, what was expected.

    of: what the place is part of, with a space in front.
    """
    first = error.errors(include_url=False)[0]
    place = printable(".".join(str(part) for part in first["loc"])[:NUM_LETTERS_SHOWN]) or "the document"
    if first["type"] == "missing":
        return f"{place}{of} is missing"
    if first["type"] == "json_invalid":
        return f"it is not JSON ({printable(first['msg'].removeprefix('Invalid JSON: '))})"
    if first["type"] == "model_type":
        return f"{place}{of} is {quoted(first['input'])}, expected an object"
    return f"{place}{of} is {quoted(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}"
