"""One line for one part of a long run: what is there, tokens per second, and what is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rewriter.console import SENTENCE_EVERY_SECONDS, duration_text, is_drawn, progress_bar, say


class PartProgress:
    """A bar on a terminal, a sentence a minute elsewhere, nothing when quiet. Rates are those since `begin`, so that neither an
    engine's start nor an earlier run counts."""

    def __init__(self, name: str, total: int, unit: str, now: Callable[[], float] = time.monotonic) -> None:
        """`total` pieces called `unit` (plural)."""
        self.name, self.total, self.unit, self._now = name, total, unit, now
        self._bar = progress_bar(total, name, unit=f" {unit}") if is_drawn() else None
        self.begin(0)

    def begin(self, there: int) -> None:
        """Start to measure, with so many pieces there already."""
        self.first = self.there = there
        self.tokens = 0
        self.began = self.said = self._now()
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = there
            self._bar.start_t = self._bar.last_print_t = self._bar._time()
            self._bar.refresh()

    def advance(self, pieces: int = 1, tokens: int = 0) -> None:
        """Count what has come."""
        self.there += pieces
        self.tokens += tokens
        if self._bar is not None:
            if self.tokens:
                self._bar.set_postfix_str(f"{self.tokens_per_second:,.0f} tokens/s", refresh=False)
            self._bar.update(pieces)
        elif self._now() - self.said >= SENTENCE_EVERY_SECONDS:
            self.said = self._now()
            say(self.sentence())

    @property
    def tokens_per_second(self) -> float:
        """Tokens since `begin` over the time since then."""
        return self.tokens / max(self._now() - self.began, 1e-9)

    def sentence(self) -> str:
        """What the bar shows, in words."""
        done = self.there - self.first
        left = (self._now() - self.began) / done * (self.total - self.there) if done else None
        rate = f", {self.tokens_per_second:,.0f} tokens/s" if self.tokens else ""
        rest = f", about {duration_text(left)} left" if left is not None else ""
        return f"{self.name}: {self.there:,} of {self.total:,} {self.unit}{rate}{rest}"

    def close(self) -> None:
        """Leave the line as it is."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
