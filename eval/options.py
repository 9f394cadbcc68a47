"""What a run is asked to measure, and the arms that follow from it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel

from eval.answers.arms import BASE, REPEAT, VARIANT, Arm, Pair, Request, Sampling
from eval.measures.controls import MATCHINGS, Matching
from ftri.prompts.sets import PromptRecord, PromptSet
from rewriter.errors import InputError
from rewriter.semantics import DROP, SEMANTICS, Semantics

TUNED = "tuned"


class RunOptions(BaseModel):
    """Everything that changes what is measured; kept in the results as it was."""

    semantics: list[Semantics] = list(SEMANTICS)
    samples: int = 1
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    label_cut: bool = False
    repeat_base: bool = True
    controls: int = 99
    control_matching: list[Matching] = list(MATCHINGS)
    control_prompts: int = 200
    control_others: int = 50
    sweep_k: list[int] = []
    kl_tokens: int = 64
    kl_listed: int = 128
    neutral_prompts: int = 32

    def sampling(self) -> Sampling:
        """How answers to the prompts under test are drawn."""
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed)

    def check(self) -> None:
        """Raises: InputError for values that cannot be meant."""
        if self.samples > 1 and self.temperature == 0:
            raise InputError(
                f"--samples {self.samples} at --temperature 0 gives the same answer each time; set a temperature"
            )
        for name in ("samples", "max_tokens", "kl_tokens", "control_prompts"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least 1")
        if self.kl_listed < 1 and self.kl_listed != -1:
            raise InputError(
                f"--kl-listed is {self.kl_listed}, expected a positive number, or -1 for the whole vocabulary"
            )
        if self.temperature < 0:
            raise InputError(f"--temperature is {self.temperature:g}, expected 0 or more")
        if not self.semantics:
            raise InputError(f"--semantics is empty, expected some of {', '.join(SEMANTICS)}")


@dataclass(frozen=True)
class NamedEdit:
    """One set of experts under test, with a name for tables."""

    name: str
    suppress: tuple[Pair, ...] = ()
    stimulate: tuple[Pair, ...] = ()

    def top(self, count: int) -> NamedEdit:
        """The first `count` experts of either list."""
        return NamedEdit(self.name, self.suppress[:count], self.stimulate[:count])

    @property
    def pairs(self) -> tuple[Pair, ...]:
        """All experts of the edit."""
        return (*self.suppress, *self.stimulate)


@dataclass(frozen=True)
class SafetyInput:
    """One safety set to run; `grouped` sets are split into safe and unsafe prompts."""

    name: str
    prompts: PromptSet
    grouped: bool


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


def plan_live(options: RunOptions, edit: NamedEdit, others: Sequence[NamedEdit | Path]) -> Plan:
    """Arms of one engine: the base twice, the edit under every semantics, other sets under the first, variant
    folders as they are."""
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
        )
        for number, semantics in enumerate(semantics_to_run)
    ]
    more = [
        Arm(name=other.name or str(other), kind="other", checkpoint=str(other))
        if isinstance(other, Path)
        else Arm(
            name=other.name,
            kind="other",
            semantics=semantics_to_run[0],
            suppress=other.suppress,
            stimulate=other.stimulate,
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


def requests_for(prompts: Sequence[PromptRecord], options: RunOptions, *, repeat: int = 0) -> list[Request]:
    """One request for each prompt and sample, prompt-major."""
    sampling = options.sampling()
    return [
        Request(
            prompt.prompt_id, sample, (("user", prompt.text),), sampling.with_seed_for(repeat, prompt.prompt_id, sample)
        )
        for prompt in prompts
        for sample in range(options.samples)
    ]
