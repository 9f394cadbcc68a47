"""Gets answers for an arm: from the journal where it has them, from the responder where not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from eval.answers.arms import Answer, Arm, Request, Responder, answer_key
from eval.answers.journal import Journal

Progress = Callable[[str, int, int], None]


class Collector:
    """Answers that are asked for once and kept for ever."""

    def __init__(
        self, responder: Responder, journal: Journal, progress: Progress = lambda name, done, total: None
    ) -> None:
        """`progress(arm name, answers there, answers wanted)` is called as they come."""
        self.responder = responder
        self.journal = journal
        self._progress = progress
        self._identity = responder.identity()

    def keys(self, arm: Arm, requests: Sequence[Request]) -> list[str]:
        """The journal keys of the answers, in the order of `requests`."""
        return [answer_key(self._identity, arm, request) for request in requests]

    def complete(self, arm: Arm, requests: Sequence[Request]) -> list[str]:
        """Make sure that the journal holds every answer; returns their keys. Raises whatever the responder raises."""
        keys = self.keys(arm, requests)
        missing = [position for position, key in enumerate(keys) if key not in self.journal]
        there = len(keys) - len(missing)

        def keep(position: int, answer: Answer) -> None:
            nonlocal there
            self.journal.add_answer(keys[missing[position]], arm.name, answer)
            there += 1
            self._progress(arm.name, there, len(keys))

        if missing:
            self.responder.answer(arm, [requests[position] for position in missing], keep)
            self.journal.sync()
        return keys

    def answers(self, arm: Arm, requests: Sequence[Request]) -> Iterator[Answer]:
        """The answers in the order of `requests`, one at a time."""
        for key in self.complete(arm, requests):
            yield self.journal.answer(key)
