"""What a measure of mote-eval is: a value that says what to load, what to run, and how its result is shown.

A new measure is one file beside this one, an entry in `eval.run.MEASURES`, and its field in `eval.results.Results`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eval.answers.arms import Arm, Pair, Request, Shift
from eval.answers.journal import Collector
from eval.answers.live import LiveResponder
from eval.answers.plan import NamedEdit, Plan, requests_for
from eval.options import EvalRequest, RunOptions
from eval.outcomes.held_out import cluster_of
from eval.outcomes.observed import ArmSummary, Outcomes, observe
from eval.outcomes.statistics import Rate
from eval.outcomes.targets import Target
from ftri.prompts.sets import PromptRecord

Say = Callable[[str], None]
# What is added to the results: field -> a value, or a list that is appended to the field's.
Found = Mapping[str, Any]


@dataclass
class SideBySide:
    """Answers of several arms to the same requests, as journal keys: what transcripts.jsonl is written from."""

    part: str
    requests: Sequence[Request]
    outcomes: list[Outcomes]


@dataclass
class Scene:
    """A run in progress: who answers what, and what became of it so far. `live` is None when servers answer."""

    options: RunOptions
    plan: Plan
    edit: NamedEdit
    target: Target
    prompts: Sequence[PromptRecord]
    collector: Collector
    live: LiveResponder | None = None
    say: Say = lambda message: None
    has_bias: bool = True  # whether the routers have a selection bias; known without loading the engine
    is_feasible: Callable[[Sequence[Pair], Sequence[Pair], Sequence[Shift]], bool] = lambda down, up, shifts: True
    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    transcripts: list[SideBySide] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Work out the requests that every arm of the comparison answers, the prompts that they are of, and the bootstrap's
        clusters of them."""
        self.requests = requests_for(self.prompts, self.options)
        self.units = [request.prompt_id for request in self.requests]
        self.clusters = [cluster_of(prompt) for prompt in self.prompts for _ in range(self.options.samples)]

    @property
    def base(self) -> Outcomes:
        """What became of the base's answers to the prompts."""
        return self.outcomes[self.plan.base.name]

    @property
    def primary(self) -> Outcomes:
        """What became of the answers of the variant that was asked about."""
        return self.outcomes[self.plan.primary.name]

    def observe(self, arm: Arm, requests: Sequence[Request]) -> Outcomes:
        """Have an arm answer, and label the answers."""
        return observe(self.collector, arm, requests, label_cut=self.options.label_cut)

    def observe_prompts(self, arm: Arm) -> Outcomes:
        """Have an arm answer all prompts; it is one of the results' arms from then on."""
        requests = self.requests
        if arm.repeat:
            requests = requests_for(self.prompts, self.options, repeat=arm.repeat)
        self.outcomes[arm.name] = self.observe(arm, requests)
        return self.outcomes[arm.name]


@dataclass(frozen=True)
class Part:
    """One step of a run. What it raises is kept in the results' `missing` under its name, unless it is `fatal`."""

    name: str
    work: Callable[[], Found]
    fatal: bool = False


class Shown(Protocol):
    """What a measure may look at, besides its own result, when it shows it."""

    @property
    def target(self) -> dict[str, str]:
        """The counted change: axis, label, direction, and `change` in words."""

    @property
    def primary(self) -> str:
        """The name of the variant that was asked about."""

    @property
    def repeat_flips_at_risk(self) -> Rate | None:
        """How many answers of the base made the counted change when it ran again."""

    def arm(self, name: str) -> ArmSummary:
        """An arm's summary."""


def nothing(found: Any, shown: Shown) -> list[Any]:
    """Shows nothing."""
    return []


@dataclass(frozen=True)
class Measure:
    """One measure; functions that show it get its field of the results, when that is filled.

    parts: steps, given what `load` returned. rows: cells of the table's columns (arm, counted change, opposite change, label
    share, damage, McNemar). lines: of the table, below those. card: (what, result). report: Jinja, with `found`,
    `results`, `words` and what `figures` returns. place: in card and report, ascending. shown_empty: the report has its
    section also when there is no result.
    """

    field: str
    parts: Callable[[Any, Scene], Iterable[Part]]
    load: Callable[[EvalRequest], Any] = lambda request: None
    rows: Callable[[Any, Shown], Sequence[Sequence[str]]] = nothing
    lines: Callable[[Any, Shown], Sequence[str]] = nothing
    card: Callable[[Any, Shown], Sequence[tuple[str, str]]] = nothing
    report: str = ""
    figures: Callable[[Any, Shown], Mapping[str, Any]] = lambda found, shown: {}
    place: int = 0
    shown_empty: bool = False
