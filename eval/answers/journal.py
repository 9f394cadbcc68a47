"""An append-only file of everything that was answered or computed, one JSON object a line, so that a killed
run goes on where it was.

A line is written whole, flushed and fsynced before it counts. A kill can leave at most one torn last line,
which is cut off on opening.
Only offsets are kept in memory: a thousand expert sets make more text than a machine may have room for.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eval.answers.arms import Answer
from eval.errors import JournalError

SCHEMA = "mote.journal/1"
# One fsync a finished answer would cost more than a small model's answers themselves; half a second of them is cheap to lose.
SYNC_INTERVAL_SECONDS = 0.5


class Journal:
    """Keyed JSON records on disk; `answer` records hold transcripts, `value` records hold computed results."""

    def __init__(self, path: str | Path) -> None:
        """Open or begin a journal and drop a torn last line.

        Raises: JournalError when the file is no journal, is damaged in the middle, or another process writes it.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise JournalError(
                f"{self.path}: another run is writing to it; wait for it or choose another output folder"
            ) from None
        self._offsets: dict[str, int] = {}
        self._synced_at = time.monotonic()
        try:
            self._read_back()
        except JournalError:
            self._file.close()
            raise
        if self._file.tell() == 0:
            self._append({"kind": "header", "key": "", "schema": SCHEMA})
            self.sync()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        # The header is no record of the run.
        return len(self._offsets) - ("" in self._offsets)

    def add_answer(self, key: str, arm: str, answer: Answer) -> None:
        """Keep a transcript; a key that is there already is left as it is."""
        if key not in self._offsets:
            self._append({"kind": "answer", "key": key, "arm": arm, **asdict(answer)})

    def answer(self, key: str) -> Answer:
        """The transcript kept under `key`. Raises KeyError."""
        record = self._record(key)
        return Answer(**{name: record[name] for name in Answer.__dataclass_fields__})

    def add_value(self, key: str, value: Any) -> None:
        """Keep a computed JSON value and sync at once: such values stand for a lot of work."""
        if key not in self._offsets:
            self._append({"kind": "value", "key": key, "value": value})
            self.sync()

    def value(self, key: str) -> Any:
        """The value kept under `key`. Raises KeyError."""
        return self._record(key)["value"]

    def records(self) -> Iterator[dict[str, Any]]:
        """All records in the order in which they were written, one at a time."""
        self.sync()
        with self.path.open("rb") as file:
            for line in file:
                record = json.loads(line)
                if record["kind"] != "header":
                    yield record

    def sync(self) -> None:
        """Make everything written so far survive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync and release the file."""
        if not self._file.closed:
            self.sync()
            self._file.close()

    def _append(self, record: dict[str, Any]) -> None:
        self._file.seek(0, os.SEEK_END)
        offset = self._file.tell()
        self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", errors="surrogatepass") + b"\n")
        # Into the kernel at once, so that a kill loses nothing; onto the disk a little later, against a power cut.
        self._file.flush()
        self._offsets[record["key"]] = offset
        if time.monotonic() - self._synced_at > SYNC_INTERVAL_SECONDS:
            self.sync()

    def _record(self, key: str) -> dict[str, Any]:
        self._file.seek(self._offsets[key])
        record: dict[str, Any] = json.loads(self._file.readline())
        return record

    def _read_back(self) -> None:
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(offset)
                break
            try:
                record = json.loads(line)
                key = record["key"]
            except (ValueError, KeyError, TypeError):
                raise JournalError(f"{self.path}: line {number} is damaged, expected a record of {SCHEMA}") from None
            if number == 1 and record.get("schema") != SCHEMA:
                raise JournalError(
                    f"{self.path}: is not a journal of {SCHEMA}, its first line says {record.get('schema')!r}"
                )
            if number > 1:
                self._offsets.setdefault(key, offset)
            offset += len(line)
        self._file.seek(0, os.SEEK_END)
        self._offsets.pop("", None)
