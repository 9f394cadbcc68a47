"""The arms of a run and the requests that each of them answers. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.answers.arms import BASE, REPEAT, VARIANT, Arm, Factor, Pair, Request, Sampling, Shift
from eval.options import RunOptions
from ftri.prompts.sets import PromptRecord
from rewriter.errors import InputError
from rewriter.semantics import DROP, DROP_RENORM, REROUTE, Semantics

TUNED = "tuned"


@dataclass(frozen=True)
class NamedEdit:
    """One set of experts under test, with a name for tables."""

    name: str
    suppress: tuple[Pair, ...] = ()
    stimulate: tuple[Pair, ...] = ()
    bias_shifts: tuple[
        Shift, ...
    ] = ()  # of suppressed experts; a reroute's alone, other semantics suppress them as a whole
    # Of suppressed experts what is kept of their output, of stimulated ones their gain; see factors_under.
    factors: tuple[Factor, ...] = ()

    def top(self, count: int) -> NamedEdit:
        """The first `count` experts of either list."""
        suppress = self.suppress[:count]
        stimulate = self.stimulate[:count]
        shifts = tuple(one for one in self.bias_shifts if one[:2] in suppress)
        factors = tuple(one for one in self.factors if one[:2] in suppress or one[:2] in stimulate)
        return NamedEdit(self.name, suppress, stimulate, shifts, factors)

    def shifts_under(self, semantics: Semantics | None) -> tuple[Shift, ...]:
        """The bias shifts that an arm of these semantics has."""
        return self.bias_shifts if semantics == REROUTE else ()

    @property
    def is_partial(self) -> bool:
        """Whether a part of a suppressed expert's output is kept."""
        return any(one[:2] in self.suppress for one in self.factors)

    def factors_under(self, semantics: Semantics | None) -> tuple[Factor, ...]:
        """The factors that an arm of these semantics has: a place in the selection has no parts, so a reroute suppresses as a
        whole, and the paper's own stimulation gives the largest weight, whatever the gain."""
        return tuple(
            one
            for one in self.factors
            if semantics in ((DROP, DROP_RENORM) if one[:2] in self.suppress else (REROUTE, DROP))
        )

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All experts of the edit."""
        return (*self.suppress, *self.stimulate)


@dataclass(frozen=True)
class VariantFolder:
    """A checkpoint of its own under test, what it holds, and, where it is a served variant with a dial, what is chosen."""

    path: Path
    content_sha256: str
    choice: str | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        name = self.path.name or str(self.path)
        return name if self.choice is None else f"{name}:{self.choice}"


@dataclass
class Plan:
    """The arms of a run in the order in which they are run."""

    base: Arm
    repeat: Arm | None
    variants: list[Arm]
    others: list[Arm] = field(default_factory=list)

    @property
    def primary(self) -> Arm:
        """The variant that the tables, controls, sweep and safety sets are about: the first of the semantics asked for."""
        return self.variants[0]


def plan_live(options: RunOptions, edit: NamedEdit, others: Sequence[NamedEdit | VariantFolder]) -> Plan:
    """Arms of one engine: the base twice, the edit under every semantics, other sets under the first, variant
    folders as they are.

    Raises: InputError when nothing is left to run, or two variants have one name.
    """
    # Without anything to suppress, drop is reroute under another name: both stimulate by the bias.
    semantics_to_run = [one for one in options.semantics if edit.suppress or one != DROP]
    if not semantics_to_run:
        raise InputError("--semantics drop has no stimulation of its own, expected reroute or drop-renorm")
    variants = [
        Arm(
            name=VARIANT if number == 0 else f"{VARIANT}-{semantics}",
            kind="variant",
            semantics=semantics,
            suppress=edit.suppress,
            stimulate=edit.stimulate,
            bias_shifts=edit.shifts_under(semantics),
            factors=edit.factors_under(semantics),
        )
        for number, semantics in enumerate(semantics_to_run)
    ]
    more = [
        Arm(
            name=other.name,
            kind="other",
            checkpoint=str(other.path),
            content_sha256=other.content_sha256,
            choice=other.choice,
        )
        if isinstance(other, VariantFolder)
        else Arm(
            name=other.name,
            kind="other",
            semantics=semantics_to_run[0],
            suppress=other.suppress,
            stimulate=other.stimulate,
            bias_shifts=other.shifts_under(semantics_to_run[0]),
            factors=other.factors_under(semantics_to_run[0]),
        )
        for other in others
    ]
    names = [BASE, REPEAT, *(arm.name for arm in (*variants, *more))]
    doubled = {name for name in names if names.count(name) > 1}
    if doubled:
        raise InputError(f"two variants are called {sorted(doubled)[0]!r}; rename one of their files")
    return Plan(Arm(BASE, "base"), _repeat(options), variants, more)


def plan_served(options: RunOptions) -> Plan:
    """Arms of two servers: the base twice, and the tuned one."""
    return Plan(Arm(BASE, "base"), _repeat(options), [Arm(VARIANT, "variant", checkpoint=TUNED)])


def _repeat(options: RunOptions) -> Arm | None:
    return Arm(REPEAT, "repeat", repeat=1) if options.repeat_base else None


def sampling_of(options: RunOptions) -> Sampling:
    """How answers to the prompts under test are drawn."""
    return Sampling(options.max_tokens, options.temperature, options.top_p, options.seed)


def requests_for(prompts: Sequence[PromptRecord], options: RunOptions, *, repeat: int = 0) -> list[Request]:
    """One request for each prompt and sample, prompt-major."""
    sampling = sampling_of(options)
    return [
        Request(
            prompt.prompt_id, sample, (("user", prompt.text),), sampling.with_seed_for(repeat, prompt.prompt_id, sample)
        )
        for prompt in prompts
        for sample in range(options.samples)
    ]


def spread(prompts: Sequence[PromptRecord], limit: int | None) -> list[PromptRecord]:
    """At most `limit` prompts, evenly spread over the list, whose neighbours are often alike."""
    if limit is None or limit >= len(prompts):
        return list(prompts)
    return [prompts[position * len(prompts) // limit] for position in range(limit)]
