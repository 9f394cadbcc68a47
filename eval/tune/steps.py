"""Which steps of a run are done, and of what inputs: a run that was stopped does the others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.answers.arms import digest
from rewriter.errors import InputError
from rewriter.small_file import read_small
from rewriter.whole_file import write_whole

SCHEMA_ID: Literal["mote.tune/1"] = "mote.tune/1"
FILE_NAME = "tune.json"


class StepRecord(BaseModel):
    """One step that is done: the digest of what decides its result, and the seconds that it took."""

    key: str
    seconds: float


class TuneState(BaseModel):
    """The steps that are done, as `tune.json` holds them."""

    model_config = ConfigDict(populate_by_name=True)

    schema_id: Literal["mote.tune/1"] = Field(SCHEMA_ID, alias="schema")
    tool_version: str
    steps: dict[str, StepRecord] = {}


class Steps:
    """Does each step unless it was done before with the same inputs and its files are there."""

    def __init__(self, folder: Path, tool_version: str, say: Callable[[str], None]) -> None:
        """Go on with what `folder` holds.

        Raises:
            InputError: its tune.json cannot be read or is none.
        """
        self._path = folder / FILE_NAME
        self._say = say
        self._tool_version = tool_version
        self._state = TuneState(schema="mote.tune/1", tool_version=tool_version)
        if self._path.is_file():
            try:
                self._state = TuneState.model_validate_json(read_small(self._path))
            except OSError as error:
                raise InputError(f"{self._path}: cannot be read ({error.strerror})") from None
            except (ValidationError, UnicodeDecodeError):
                raise InputError(f"{self._path}: is damaged, expected the steps of mote-tune ({SCHEMA_ID})") from None

    def do(self, name: str, inputs: Any, outputs: Sequence[Path], work: Callable[[], None]) -> None:
        """Do a step. `inputs` (JSON) and the tool's version decide what it writes; it is done when all of `outputs` are there.

        Raises: as `work`.
        """
        key = digest([self._tool_version, name, inputs])
        done = self._state.steps.get(name)
        if done is not None and done.key == key and all(path.exists() for path in outputs):
            self._say(f"{name}: done before, in {done.seconds:.0f} s")
            return
        self._say(f"{name}: begins")
        if done is not None:
            # From here on its files may be of these inputs: a run with the former ones must not take them for its own.
            del self._state.steps[name]
            self._save()
        started = time.monotonic()
        work()
        self._state.tool_version = self._tool_version
        self._state.steps[name] = StepRecord(key=key, seconds=time.monotonic() - started)
        self._save()

    def _save(self) -> None:
        write_whole(self._path, self._state.model_dump_json(by_alias=True, indent=1) + "\n")


def file_digest(path: Path) -> str:
    """SHA-256 of a file that a step before has written."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
