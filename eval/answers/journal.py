"""An append-only file of everything that was answered or computed, one JSON object a line, so that a killed run goes on where
it was; and the collector, which asks only for what is not there.

A line is written whole, flushed and fsynced before it counts. A kill can leave at most one torn last line, which is cut off
on opening. The first line names the subject, and a journal of another one is refused.
Only offsets are kept in memory: a thousand expert sets make more text than a machine may have room for.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from eval.answers.arms import Answer, Arm, Request, Responder, answer_key
from eval.errors import JournalError
from ftri.labels.think_formats import ThinkFormat
from rewriter.json_text import whole_characters
from rewriter.small_file import lines_of

SCHEMA = "mote.journal/2"
JOURNAL = "journal.jsonl"  # its name in an output folder
ANEW = "choose another output folder, or move the file away to ask everything anew"
# One fsync a finished answer would cost more than a small model's answers themselves; half a second of them is cheap to lose.
SYNC_INTERVAL_SECONDS = 0.5
Model = TypeVar("Model", bound=BaseModel)


class Progress(Protocol):
    """Told of every answer, or another piece of work, as it comes."""

    def __call__(self, part: str, there: int, wanted: int, tokens: int = 0, seconds: float | None = None) -> None:
        """`there` of the `wanted` pieces of a part have come; the last made the model run `tokens`, and the part was at work for
        `seconds` since whoever answers was ready."""


def unseen(part: str, there: int, wanted: int, tokens: int = 0, seconds: float | None = None) -> None:
    """Progress that nobody looks at."""


class Header(BaseModel):
    """The first line: what the answers are of."""

    model_config = ConfigDict(populate_by_name=True)

    kind: Literal["header"] = "header"
    key: str = ""
    schema_id: str = Field(SCHEMA, alias="schema")
    subject: dict[str, Any] = {}


class AnswerRecord(BaseModel):
    """A transcript; the tokens are checked to be whole numbers."""

    model_config = ConfigDict(strict=True)

    kind: Literal["answer"]
    key: str = Field(min_length=1)
    arm: str
    prompt_id: str
    sample: int
    text: str
    finish_reason: str
    starts_inside_think: bool
    prompt_token_ids: list[int]
    token_ids: list[int]


class ValueRecord(BaseModel):
    """A computed value, whose own reader checks it."""

    model_config = ConfigDict(strict=True)

    kind: Literal["value"]
    key: str = Field(min_length=1)
    value: Any


Record = Annotated[AnswerRecord | ValueRecord, Field(discriminator="kind")]
RECORD: TypeAdapter[AnswerRecord | ValueRecord] = TypeAdapter(Record)


def look_into(path: Path, key: str) -> tuple[int, Any]:
    """(answers that a journal holds, the value kept under `key` or None), without locking it or changing it; of whatever
    subject it is. A line that is torn or damaged counts for nothing: opening the journal says what is wrong with it."""
    num_answers, value = 0, None
    with path.open("rb") as file:
        for line in file:
            try:
                record = RECORD.validate_json(line)
            except ValidationError:
                continue
            if isinstance(record, AnswerRecord):
                num_answers += 1
            elif record.key == key:
                value = record.value
    return num_answers, value


class Journal:
    """Keyed JSON records on disk; `answer` records hold transcripts, `value` records hold computed results."""

    def __init__(self, path: str | Path, subject: Mapping[str, Any] | None = None) -> None:
        """Open or begin a journal of `subject` (who answers, as `Responder.identity` says) and drop a torn last line.

        Raises: JournalError when the file is no journal, is of another subject, is damaged in the middle, cannot be written,
        or another process writes it.
        """
        self.path = Path(path)
        self.subject = json.loads(json.dumps(subject or {}))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Reading a device or a pipe need not end.
            if self.path.exists() and not self.path.is_file():
                raise JournalError(f"{self.path}: is no regular file, expected a journal of {SCHEMA}, or nothing")
            self._file = self.path.open("a+b")
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be opened ({error.strerror})") from None
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
            if self._file.tell() == 0:
                self._append({"kind": "header", "key": "", "schema": SCHEMA, "subject": self.subject})
                self.sync()
        except JournalError:
            self._close_quietly()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def add_answer(self, key: str, arm: str, answer: Answer) -> None:
        """Keep a transcript; a key that is there already is left as it is."""
        if key not in self._offsets:
            self._append({"kind": "answer", "key": key, "arm": arm, **asdict(answer)})

    def answer(self, key: str) -> Answer:
        """The transcript kept under `key`. Raises KeyError."""
        record = self._record(key)
        if not isinstance(record, AnswerRecord):
            raise JournalError(f"{self.path}: the record {key} is a {record.kind}, expected an answer")
        return Answer(**{name: getattr(record, name) for name in Answer.__dataclass_fields__})

    def add_value(self, key: str, value: Any) -> None:
        """Keep a computed JSON value and sync at once: such values stand for a lot of work."""
        if key not in self._offsets:
            self._append({"kind": "value", "key": key, "value": value})
            self.sync()

    def value(self, key: str) -> Any:
        """The value kept under `key`. Raises KeyError."""
        record = self._record(key)
        if not isinstance(record, ValueRecord):
            raise JournalError(f"{self.path}: the record {key} is an {record.kind}, expected a value")
        return record.value

    def checked(self, key: str, kind: type[Model]) -> Model:
        """The value kept under `key` as a result type. Raises: JournalError when it is none; KeyError."""
        try:
            return kind.model_validate(self.value(key))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "value"
            raise JournalError(
                f"{self.path}: the value {key} is damaged ({where}: {first['msg']}), expected a {kind.__name__}"
            ) from None

    def records(self) -> Iterator[AnswerRecord | ValueRecord]:
        """All records in the order in which they were written, one at a time. Raises: JournalError."""
        self.sync()
        for key in sorted(self._offsets, key=self._offsets.__getitem__):
            yield self._record(key)

    def sync(self) -> None:
        """Make everything written so far survive a power cut. Raises: JournalError, for example on a full disk."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from None
        self._synced_at = time.monotonic()

    def close(self) -> None:
        """Sync and release the file. Raises: JournalError."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._close_quietly()

    def _close_quietly(self) -> None:
        # What could not be written was reported where it was written; closing would only try, and fail, once more.
        with suppress(OSError):
            self._file.close()

    def _unwritable(self, error: OSError) -> JournalError:
        return JournalError(
            f"{self.path}: cannot be written ({error.strerror}); what it holds so far is kept, make room and run the same"
            " command again to go on from there"
        )

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False).encode("utf-8", errors="surrogatepass") + b"\n"
        try:
            self._file.seek(0, os.SEEK_END)
            offset = self._file.tell()
            self._file.write(line)
            # Into the kernel at once, so that a kill loses nothing; onto the disk a little later, against a power cut.
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from None
        if record["key"]:
            self._offsets[record["key"]] = offset
        if time.monotonic() - self._synced_at > SYNC_INTERVAL_SECONDS:
            self.sync()

    def _record(self, key: str) -> AnswerRecord | ValueRecord:
        offset = self._offsets[key]
        self._file.seek(offset)
        record = self._parse(self._file.readline(), f"the record {key}")
        if record.key != key:
            raise JournalError(f"{self.path}: the record {key} was changed while it was in use")
        return record

    def _parse(self, line: bytes, what: str) -> AnswerRecord | ValueRecord:
        try:
            return RECORD.validate_python(whole_characters(json.loads(line.decode("utf-8", errors="surrogatepass"))))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"
        except (ValueError, RecursionError) as error:
            reason = type(error).__name__
        raise JournalError(f"{self.path}: {what} is damaged ({reason[:200]}), expected a record of {SCHEMA}; {ANEW}")

    def _read_back(self) -> None:
        self._file.seek(0)
        offset = 0
        for number, line in enumerate(lines_of(self._file, self.path, error=JournalError), start=1):
            if not line.endswith(b"\n"):
                self._file.truncate(offset)
                break
            if number == 1:
                self._check_header(line)
            else:
                self._offsets.setdefault(self._parse(line, f"line {number}").key, offset)
            offset += len(line)
        self._file.seek(0, os.SEEK_END)

    def _check_header(self, line: bytes) -> None:
        try:
            header = Header.model_validate_json(line)
        except (ValidationError, RecursionError):
            raise JournalError(f"{self.path}: line 1 is damaged, expected the header of {SCHEMA}; {ANEW}") from None
        if header.schema_id != SCHEMA:
            older = "; its answers do not say which model gave them: choose another output folder"
            hint = older if header.schema_id == "mote.journal/1" else ""
            raise JournalError(
                f"{self.path}: is not a journal of {SCHEMA}, its first line says {header.schema_id[:80]!r}{hint or f'; {ANEW}'}"
            )
        if header.subject != self.subject:
            names = sorted(
                name
                for name in header.subject.keys() | self.subject.keys()
                if header.subject.get(name) != self.subject.get(name)
            )
            values = "; ".join(
                f"{name} {_short(header.subject.get(name))}, now {_short(self.subject.get(name))}" for name in names[:3]
            )
            raise JournalError(
                f"{self.path}: holds the answers of another subject ({values}); choose another output folder, or give the"
                " options that it was made with"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Collector:
    """Answers of arms: from the journal where it has them, from the responder where not."""

    def __init__(
        self,
        responder: Responder,
        journal: Journal,
        progress: Progress = unseen,
        think_format: ThinkFormat | None = None,
    ) -> None:
        """`progress` is told of each as it comes; `think_format` splits them."""
        self.think_format = think_format
        self.responder = responder
        self.journal = journal
        self._progress = progress
        self._identity = responder.identity()

    def keys(self, arm: Arm, requests: Sequence[Request]) -> list[str]:
        """The journal keys of the answers, in the order of `requests`."""
        return [answer_key(self._identity, arm, request) for request in requests]

    def complete(self, arm: Arm, requests: Sequence[Request]) -> list[str]:
        """Make sure that the journal holds every answer; returns their keys. Raises whatever the responder raises."""
        (keys,) = self.complete_each([arm], requests)
        return keys

    def complete_each(self, arms: Sequence[Arm], requests: Sequence[Request]) -> list[list[str]]:
        """As `complete` for several arms at once, whose requests share batches; keys are [arms][requests]."""
        keys = [self.keys(arm, requests) for arm in arms]
        # An arm under another name is not asked again.
        asked: dict[str, tuple[Arm, Request]] = {}
        for arm, row in zip(arms, keys, strict=True):
            for key, request in zip(row, requests, strict=True):
                if key not in self.journal:
                    asked.setdefault(key, (arm, request))
        wanted = list(asked)
        total = sum(map(len, keys))
        there = total - len(wanted)
        part = arms[0].name if len(arms) == 1 else f"{arms[0].name} to {arms[-1].name}"
        began = time.monotonic()

        def keep(position: int, answer: Answer) -> None:
            nonlocal there
            key = wanted[position]
            self.journal.add_answer(key, asked[key][0].name, answer)
            there += 1
            # The last token was sampled and never run; some servers do not say which tokens they wrote.
            tokens = len(answer.prompt_token_ids) + len(answer.token_ids) - 1 if answer.token_ids else 0
            seconds = time.monotonic() - max(began, self.responder.ready_at)
            self._progress(part, there, total, tokens, seconds)

        if asked:
            self.responder.answer([arm for arm, _ in asked.values()], [request for _, request in asked.values()], keep)
            self.journal.sync()
        return keys

    def answers(self, arm: Arm, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers in the order of `requests`, one at a time."""
        for key in self.complete(arm, requests):
            yield self.journal.answer(key)
