"""The bench on which edits are measured: probes of the behaviour and neutral text, scored under one edit a request.

Each edit costs one teacher-forced pass over every probe and every neutral answer. Requests of different edits share
batches, so thousands of edits are measured in one engine load without anything being installed between them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pydantic import BaseModel

from eval.answers.arms import Arm, Semantics, digest
from eval.answers.journal import Journal
from eval.answers.live import TokenDistributions
from eval.measures.kl import kl_per_position
from eval.refine.deciding import Probe, chance
from eval.refine.measured import Measured, Pair
from eval.refine.tuning import Dose

if TYPE_CHECKING:
    import numpy as np

# Edits in flight together: enough to fill an engine's batches, few enough that a killed run loses little.
EDITS_AT_A_TIME = 16


class EditScorer(Protocol):
    """What the bench needs of a loaded model."""

    def score_each(
        self, sequences: Sequence[Sequence[int]], arms: Sequence[Arm], num_listed: int
    ) -> Iterable[TokenDistributions]:
        """The likeliest next tokens at every position of the n-th sequence under the n-th arm's edit, in order."""
        ...


@dataclass(frozen=True)
class Neutral:
    """Answers of the base whose tokens an edit should leave as they are: `starts` are where the answers begin."""

    sequences: tuple[tuple[int, ...], ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Bench:
    """Probes and neutral text, and how many of the likeliest tokens are compared at a position."""

    probes: tuple[Probe, ...]
    neutral: Neutral
    num_listed: int

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """All that one edit is run on."""
        return [*(probe.token_ids for probe in self.probes), *self.neutral.sequences]

    @property
    def num_tokens(self) -> int:
        """Tokens that one edit costs."""
        return sum(map(len, self.sequences))

    def fingerprint(self) -> str:
        """Changes with anything that decides a measurement."""
        read = [[probe.token_ids, probe.positions, [sorted(s.items()) for s in probe.shares]] for probe in self.probes]
        return digest([read, self.neutral.sequences, self.neutral.starts, self.num_listed])

    def read(self, base: Sequence[TokenDistributions], scored: Sequence[TokenDistributions]) -> Measured:
        """Chances and KL from the distributions of all sequences, `base`'s of the neutral ones alone."""
        chances = tuple(
            chance(probe, [as_probabilities(one, position) for position in probe.positions])
            for probe, one in zip(self.probes, scored[: len(self.probes)], strict=True)
        )
        per_token = [
            kl
            for start, left, right in zip(self.neutral.starts, base, scored[len(self.probes) :], strict=True)
            # Position n predicts token n + 1: the answer's first token is predicted at the prompt's last position.
            for kl in kl_per_position(left, right)[start - 1 :]
        ]
        return Measured(chances, float(sum(per_token) / len(per_token)) if per_token else 0.0)


def as_probabilities(listed: TokenDistributions, position: int) -> dict[int, float]:
    """The listed next tokens at one position with their probabilities."""
    import numpy as np

    ids: np.ndarray = listed.token_ids[position]
    return dict(zip(ids.tolist(), np.exp(listed.log_probabilities[position].astype(np.float64)).tolist(), strict=True))


class KeptEdit(BaseModel):
    """A measurement as the journal keeps it; see Measured."""

    chances: tuple[float, ...]
    kl: float


class EditBench:
    """Measures edits on a bench, each once: what the journal has is not run again."""

    def __init__(
        self, scorer: EditScorer, journal: Journal, identity: object, bench: Bench, semantics: Semantics
    ) -> None:
        """`identity` says what, besides edit and bench, decides a measurement (the model and how it is run).

        `tokens_per_second` is the rate of the latest edits that shared batches, None before any.
        """
        self._scorer = scorer
        self._journal = journal
        self._key = [identity, bench.fingerprint()]
        self._base: list[TokenDistributions] | None = None
        self.bench = bench
        self.semantics = semantics
        self._asked: set[str] = set()
        self.tokens_per_second: float | None = None

    @property
    def num_edits(self) -> int:
        """How many different edits were asked for, those that the journal had among them."""
        return len(self._asked)

    def base(self) -> Measured:
        """The base's own chances (and a KL of 0)."""
        return self.measure([()])[0]

    def measure(
        self, sets: Sequence[tuple[Pair, ...]], progress: Callable[[int], None] = lambda num_edits: None
    ) -> list[Measured]:
        """Measure sets of experts, each suppressed as a whole, in the order given; `progress` hears of every edit done."""
        return self.measure_doses([Dose(experts) for experts in sets], progress)

    def measure_doses(
        self, doses: Sequence[Dose], progress: Callable[[int], None] = lambda num_edits: None
    ) -> list[Measured]:
        """The same for sets of which some experts have a finite bias shift."""
        arms = [
            Arm("edit", "sweep", self.semantics if one.experts else None, one.experts, bias_shifts=one.bias_shifts)
            for one in doses
        ]
        keys = [digest(["edit", *self._key, arm.identity()])[:32] for arm in arms]
        self._asked.update(keys)
        missing = {key: arm for key, arm in zip(keys, arms, strict=True) if key not in self._journal}
        progress(len(doses) - len(missing))
        for part in in_parts(list(missing.items()), EDITS_AT_A_TIME):
            started = time.monotonic()
            for (key, _), measured in zip(part, self._run([arm for _, arm in part]), strict=True):
                self._journal.add_value(key, KeptEdit(chances=measured.chances, kl=measured.kl).model_dump(mode="json"))
            if len(part) > 1:
                self.tokens_per_second = len(part) * self.bench.num_tokens / (time.monotonic() - started)
            progress(len(part))
        kept = [self._journal.checked(key, KeptEdit) for key in keys]
        return [Measured(one.chances, one.kl) for one in kept]

    def _run(self, arms: Sequence[Arm]) -> Iterator[Measured]:
        sequences = self.bench.sequences
        if self._base is None:
            neutral = self.bench.neutral.sequences
            base = Arm("base", "base")
            self._base = list(self._scorer.score_each(neutral, [base] * len(neutral), self.bench.num_listed))
        scored = iter(
            self._scorer.score_each(
                [tokens for _ in arms for tokens in sequences],
                [arm for arm in arms for _ in sequences],
                self.bench.num_listed,
            )
        )
        for _ in arms:
            yield self.bench.read(self._base, [next(scored) for _ in sequences])


def in_parts(items: Sequence[tuple[str, Arm]], size: int) -> Iterator[Sequence[tuple[str, Arm]]]:
    """Items in parts of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
