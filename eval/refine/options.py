"""What is asked for: every option of mote-refine once, with its type, its default and its help. No heavy import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_args

from eval.options import EvalRequest, Matching, RunOptions, Semantics, choices, one_of
from eval.outcomes.targets import ANSWERS, BEHAVIORS
from ftri.labels.think_formats import choose_format
from rewriter.command import Option
from rewriter.errors import InputError

INPUT = "What is asked, and where the experts go"
SEARCH = "The search"
CHECK = "The check on held-out prompts"
ALL_ACTIVE = "all-active"
BEHAVIOR_NAMES = tuple(name.lower() for name in BEHAVIORS)


def expert_file(text: str) -> tuple[str, int | None]:
    """FILE or FILE:N as a file and the number of its experts that is meant, None for all."""
    name, _, count = text.rpartition(":")
    return (name, int(count)) if name and count.isascii() and count.isdecimal() else (text, None)


@dataclass(frozen=True)
class RefineRequest:
    """What `mote-refine` was asked for."""

    model: Annotated[str, Option("Base model: folder or Hub id.", INPUT)]
    prompts: Annotated[str, Option("Prompts: a built-in set, a .jsonl, .csv or .parquet file, or hub:ORG/NAME.", INPUT)]
    output: Annotated[Path, Option("Expert set to write.", INPUT, short="-o", metavar="FILE")]
    report: Annotated[
        Path | None,
        Option("Folder for the pages and the journal [default: beside the expert set].", INPUT, metavar="DIR"),
    ] = None
    revision: Annotated[str | None, Option("Hub revision of the base.", INPUT)] = None
    column: Annotated[str | None, Option("Column of the prompts' text.", INPUT)] = None
    limit: Annotated[int | None, Option("At most N prompts, evenly spread.", INPUT, metavar="N")] = None
    chat_template: Annotated[
        Path | None, Option("Chat template in place of the model's own.", INPUT, metavar="FILE")
    ] = None
    think_format: Annotated[
        str | None,
        Option(
            "How the model marks its thinking (harmony, gemma4, mistral, think, ...) [default: as its family does].",
            INPUT,
            metavar="NAME",
        ),
    ] = None
    traces: Annotated[
        Path | None,
        Option(
            "Recording of these prompts: its answers are the base's, and are not asked for again.", INPUT, metavar="DIR"
        ),
    ] = None
    target: Annotated[
        str, Option("Behaviour that responses are to leave.", SEARCH, metavar="BEHAVIOR", parse=one_of(BEHAVIOR_NAMES))
    ] = "refused"
    toward: Annotated[
        tuple[str, ...],
        Option("Comma-separated: the behaviours that they are to show instead.", SEARCH, parse=choices(BEHAVIOR_NAMES)),
    ] = tuple(name.lower() for name in ANSWERS)
    candidates: Annotated[
        str,
        Option("all-active, or an expert set, its first N with FILE:N.", SEARCH, metavar="all-active|FILE[:N]"),
    ] = ALL_ACTIVE
    least_rate: Annotated[
        float, Option("all-active: experts that at least this share of all tokens select.", SEARCH, metavar="RATE")
    ] = 0.0005
    semantics: Annotated[
        Semantics,
        Option("reroute, drop or drop-renorm.", SEARCH, parse=one_of(get_args(Semantics))),
    ] = "reroute"
    budget_kl: Annotated[
        float | None, Option("Most KL from the base, nats a token of neutral text.", SEARCH, metavar="NATS")
    ] = None
    max_experts: Annotated[int, Option("Most experts in the set.", SEARCH, metavar="K")] = 10
    tune_strength: Annotated[
        bool,
        Option(
            "Search how strongly each expert is rerouted, a finite shift of its router bias, within the KL budget"
            " [without --budget-kl: the KL of the set as a whole].",
            SEARCH,
        ),
    ] = False
    tune_trials: Annotated[int, Option("Sets of strengths that --tune-strength measures.", SEARCH, metavar="N")] = 96
    screen_prompts: Annotated[int, Option("Prompts of the target that every candidate alone is run on.", SEARCH)] = 20
    grow_prompts: Annotated[int, Option("Prompts of the target that sets are run on.", SEARCH)] = 60
    pool: Annotated[int, Option("The search goes on with this many of the strongest.", SEARCH, metavar="N")] = 16
    kl_prompts: Annotated[int, Option("Neutral prompts for the search's KL.", SEARCH)] = 8
    kl_tokens: Annotated[int, Option("Answer tokens per neutral prompt in the search.", SEARCH)] = 32
    kl_listed: Annotated[int, Option("Likeliest tokens read per position.", SEARCH)] = 64
    null_searches: Annotated[
        int, Option("The same search with shuffled labels, so many times.", CHECK, metavar="N")
    ] = 3
    split: Annotated[float, Option("Share of the prompts that the search sees; the rest checks it.", CHECK)] = 0.5
    split_by: Annotated[
        str | None, Option("Keep all prompts of one place, subject, ... on one side.", CHECK, metavar="FACTOR")
    ] = None
    controls: Annotated[int, Option("Random expert sets of each matching; 0 for none.", CHECK, metavar="N")] = 99
    control_matching: Annotated[
        tuple[Matching, ...],
        Option("Comma-separated: uniform, layer, frequency.", CHECK, parse=choices(get_args(Matching))),
    ] = get_args(Matching)
    compare: Annotated[
        tuple[str, ...],
        Option(
            "Expert set to check beside it on the same prompts, as the paper's list; repeatable.", CHECK, metavar="SET"
        ),
    ] = ()
    harm: Annotated[
        str | None, Option("Prompts that should be refused: file or hub:ORG/NAME.", CHECK, metavar="SET")
    ] = None
    xstest: Annotated[str | None, Option("XSTest: file or hub:walledai/XSTest.", CHECK, metavar="SET")] = None
    max_tokens: Annotated[int, Option("Longest answer.", CHECK)] = 1024
    seed: Annotated[int, Option("Of splits, samples of prompts, shuffles and bootstraps.", SEARCH)] = 0
    # What vLLM's own options came to.
    engine_arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the pages and the journal go."""
        return self.report or self.output.with_name(f"{self.output.stem}-refine")

    @property
    def target_label(self) -> str:
        """The target as labels name it."""
        return self.target.upper()

    @property
    def toward_labels(self) -> tuple[str, ...]:
        """The behaviours to arrive at, as labels name them."""
        return tuple(name.upper() for name in self.toward)

    def check(self) -> None:
        """Raise InputError for values that cannot be meant."""
        choose_format(self.think_format, None)
        least = {
            "max_experts": 1, "screen_prompts": 1, "grow_prompts": 1, "pool": 1, "kl_prompts": 1, "kl_tokens": 1,
            "kl_listed": 2, "null_searches": 0, "controls": 0, "max_tokens": 1, "tune_trials": 1,
        }  # fmt: skip
        for name, number in least.items():
            if getattr(self, name) < number:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}, expected at least {number}")
        if self.budget_kl is not None and not 0 < self.budget_kl < float("inf"):
            raise InputError(f"--budget-kl is {self.budget_kl:g}, expected nats a token above 0")
        if not 0 <= self.least_rate < 1:
            raise InputError(f"--least-rate is {self.least_rate:g}, expected a share of tokens from 0 to below 1")
        if self.tune_strength and self.semantics != "reroute":
            raise InputError(
                f"--tune-strength shifts router biases, so --semantics is {self.semantics}, expected reroute"
            )
        if self.target in self.toward:
            raise InputError(f"--toward names {self.target}, expected behaviours other than the --target")

    def as_evaluation(self) -> EvalRequest:
        """The evaluation that checks the experts found, on the prompts that the search did not see."""
        options = RunOptions(
            semantics=(self.semantics,),
            max_tokens=self.max_tokens,
            seed=self.seed,
            controls=self.controls,
            control_matching=self.control_matching,
            neutral_prompts=max(self.kl_prompts, RunOptions.neutral_prompts),
        )
        return EvalRequest(
            prompts=self.prompts,
            output=self.folder,
            column=self.column,
            limit=self.limit,
            model=self.model,
            revision=self.revision,
            chat_template=self.chat_template,
            think_format=self.think_format,
            variants=self.compare,
            target=self.target_label,
            harm=self.harm,
            xstest=self.xstest,
            engine_arguments=self.engine_arguments,
            options=options,
        )
