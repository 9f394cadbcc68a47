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

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        *,
        announce_after: int | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """`total` pieces called `unit` (plural); after `announce_after` of them what is left is said, in node-hours too."""
        self.name, self.total, self.unit, self._now = name, total, unit, now
        self._announce_after = announce_after
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

    def advance(self, pieces: int = 1, tokens: int = 0, seconds: float | None = None) -> None:
        """Count what has come; `seconds` is the time at work so far where that is known better than here."""
        self.there += pieces
        self.tokens += tokens
        if seconds is not None:
            self.began = self._now() - seconds
        if self._bar is not None:
            if self.tokens:
                self._bar.set_postfix_str(f"{self.tokens_per_second:,.0f} tokens/s", refresh=False)
            self._bar.update(pieces)
        elif self._now() - self.said >= SENTENCE_EVERY_SECONDS:
            self.said = self._now()
            say(self.sentence())
        if self._announce_after is not None and self.there - self.first >= self._announce_after and self.seconds_left:
            self._announce()

    def _announce(self) -> None:
        if self._bar is not None:
            self._bar.clear()
        done, left = self.there - self.first, self.seconds_left or 0.0
        say(
            f"measured on the first {done:,} {self.unit}: {self.tokens_per_second:,.0f} tokens/s; the {self.total - self.there:,}"
            f" that are left take about {duration_text(left)}, {left / 3600:.2f} node-hours"
        )
        self._announce_after = None

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None before anything has come."""
        done = self.there - self.first
        return (self._now() - self.began) / done * (self.total - self.there) if done else None

    @property
    def tokens_per_second(self) -> float:
        """Tokens since `begin` over the time since then."""
        return self.tokens / max(self._now() - self.began, 1e-9)

    def sentence(self) -> str:
        """What the bar shows, in words."""
        left = self.seconds_left
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


class PartsProgress:
    """A line for each part that comes, the one before it left as it was."""

    def __init__(self, unit: str) -> None:
        """`unit`: what a piece is called, in the plural."""
        self._unit = unit
        self._line: PartProgress | None = None

    def __call__(self, part: str, there: int, wanted: int, tokens: int = 0, seconds: float | None = None) -> None:
        """`there` of the `wanted` pieces of a part have come, the last of them after `tokens`."""
        if self._line is None or (self._line.name, self._line.total) != (part, wanted) or there <= self._line.there:
            self.close()
            self._line = PartProgress(part, wanted, self._unit)
            self._line.begin(there - 1)
        self._line.advance(there - self._line.there, tokens, seconds)

    def close(self) -> None:
        """Leave the last line as it is."""
        if self._line is not None:
            self._line.close()
