"""Questions come from the threads of the page's server and are answered one after another by the thread that has the engine."""

from __future__ import annotations

import itertools
import queue
import threading
from dataclasses import dataclass, field
from typing import Protocol

from eval.ask import events
from eval.ask.question import Question
from rewriter.errors import MoteError

# More than a few people at one page have open at once.
MOST_WAITING = 16


class BusyError(MoteError):
    """Too many questions wait already."""


@dataclass(eq=False)
class Asked:
    """A question on its way: the server reads `told` until None comes; whoever answers looks at whether that is still wanted."""

    number: int
    question: Question
    told: queue.SimpleQueue[events.Event | None] = field(default_factory=queue.SimpleQueue)
    _stopped: threading.Event = field(default_factory=threading.Event)
    _left: threading.Event = field(default_factory=threading.Event)

    def tell(self, event: events.Event) -> None:
        """Tell the reader, who may be gone."""
        self.told.put(event)

    def finish(self) -> None:
        """Nothing more comes."""
        self.told.put(None)

    def stop(self) -> None:
        """The reader wants no more text, but what there is with its marks."""
        self._stopped.set()

    def leave(self) -> None:
        """The reader is gone: nothing more is wanted."""
        self._left.set()
        self._stopped.set()

    @property
    def is_stopped(self) -> bool:
        """Whether no more text is wanted."""
        return self._stopped.is_set()

    @property
    def is_left(self) -> bool:
        """Whether nothing at all is wanted."""
        return self._left.is_set()


class Sides(Protocol):
    """Who answers: an engine whose requests carry edits, or two servers."""

    def answer(self, asked: Asked) -> None:
        """Let both answer, and tell what comes as it comes.

        Raises:
            MoteError: this question cannot be answered.
        """
        ...

    @property
    def is_dead(self) -> bool:
        """Whether no further question can be answered."""
        ...

    def close(self) -> None:
        """Free what answers."""
        ...


class Desk:
    """Where questions wait."""

    def __init__(self) -> None:
        """An empty one."""
        self._changed = threading.Condition()
        self._waiting: list[Asked] = []
        self._current: Asked | None = None
        self._numbers = itertools.count(1)

    @property
    def num_waiting(self) -> int:
        """Questions that are not answered yet, but for the one that is being answered."""
        with self._changed:
            return len(self._waiting)

    @property
    def current(self) -> Asked | None:
        """The question that is being answered."""
        with self._changed:
            return self._current

    def ask(self, question: Question) -> Asked:
        """Put a question behind those that wait.

        Raises:
            BusyError: too many do.
        """
        with self._changed:
            if len(self._waiting) >= MOST_WAITING:
                raise BusyError(f"{len(self._waiting)} questions wait already; ask again when some are answered")
            asked = Asked(next(self._numbers), question)
            self._waiting.append(asked)
            ahead = len(self._waiting) - 1 + (self._current is not None)
            if ahead:
                asked.tell(events.waiting(ahead))
            self._changed.notify()
        return asked

    def leave(self, asked: Asked) -> None:
        """The reader of a question is gone; those behind it hear that they have moved up."""
        with self._changed:
            asked.leave()
            if asked in self._waiting:
                self._waiting.remove(asked)
                asked.finish()
                self._tell_places()

    def stop(self, number: int) -> bool:
        """Stop a question by its number; whether there was one."""
        with self._changed:
            for asked in self._all():
                if asked.number == number:
                    asked.stop()
                    return True
        return False

    def answer_all(self, sides: Sides) -> None:
        """Answer what comes until interrupted.

        Raises:
            MoteError: whoever answers has died.
        """
        while True:
            asked = self._take()
            try:
                asked.tell(events.begin(asked.number))
                sides.answer(asked)
                asked.tell(events.done())
            except MoteError as error:
                asked.tell(events.error(str(error)))
                if sides.is_dead:
                    raise
            finally:
                asked.finish()
                with self._changed:
                    self._current = None

    def close(self) -> None:
        """End all that wait, with a sentence."""
        with self._changed:
            for asked in self._all():
                asked.leave()
                asked.tell(events.error("mote-eval ask was ended before this question was answered"))
                asked.finish()
            self._waiting.clear()

    def _all(self) -> list[Asked]:
        return [*([self._current] if self._current is not None else []), *self._waiting]

    def _take(self) -> Asked:
        """The next question; the others hear that they have moved up."""
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            self._current = self._waiting.pop(0)
            self._tell_places()
            return self._current

    def _tell_places(self) -> None:
        for place, asked in enumerate(self._waiting):
            asked.tell(events.waiting(place + (self._current is not None)))
