"""What is asked for: the options of mote-tune, which are those of mote-refine and what the other steps need. No heavy import."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from eval.options import one_of
from eval.refine.options import ALL_ACTIVE, BEHAVIOR_NAMES, INPUT, SEARCH, RefineRequest, expert_file
from rewriter.command import Option
from rewriter.errors import InputError

if TYPE_CHECKING:
    from ftri.traces.schema import WeightsName

FOUND = "found"
FIND = "The list by correlation, which the search is compared with"


@dataclass(frozen=True)
class TuneRequest(RefineRequest):
    """What `mote-tune` was asked for."""

    # The same names as mote-refine's with another meaning: a folder for everything, and the field's word for the target.
    output: Annotated[
        Path, Option("Folder for the recording, the sets, the reports and the variant.", INPUT, short="-o")
    ]
    target: Annotated[
        str,
        Option(
            "Behaviour that responses are to leave.",
            SEARCH,
            name="behavior",
            metavar="BEHAVIOR",
            parse=one_of(BEHAVIOR_NAMES),
        ),
    ] = "refused"
    candidates: Annotated[
        str,
        Option(
            "all-active; the first N of mote-ftri's ranking with found:N; or an expert set, its first N with FILE:N.",
            SEARCH,
            metavar="all-active|found:N|FILE[:N]",
        ),
    ] = ALL_ACTIVE
    weights: Annotated[
        str | None,
        Option(
            "Keep the weights of the recorded experts too, as float16 or float32.",
            INPUT,
            metavar="TYPE",
            parse=one_of(("float16", "float32")),
        ),
    ] = None
    k: Annotated[int, Option("Experts of mote-ftri's list.", FIND, short="-k", name="top")] = 10
    statistic: Annotated[str, Option("mote-ftri's ranking.", FIND)] = "paper"
    positions: Annotated[str, Option("mote-ftri's tokens.", FIND)] = "prompt"
    # Settled by the command itself: not options, so not annotated.
    report: Path | None = None
    traces: Path | None = None
    limit: int | None = None

    @property
    def weights_type(self) -> WeightsName | None:
        """What weights are kept in."""
        return None if self.weights is None else "float16" if self.weights == "float16" else "float32"

    @property
    def recording(self) -> Path:
        """mote-record's folder."""
        return self.output / "traces"

    @property
    def labels(self) -> Path:
        """mote-label's lines for the prompts that the search may see."""
        return self.output / "labels.jsonl"

    @property
    def found(self) -> Path:
        """mote-ftri's expert set."""
        return self.output / "found.json"

    @property
    def ranked(self) -> Path:
        """mote-ftri's expert set of the candidates, with --candidates found:N."""
        return self.output / "candidates.json"

    @property
    def num_ranked(self) -> int | None:
        """How many candidates mote-ftri is to rank; None where they do not come from it."""
        name, count = expert_file(self.candidates)
        return count if name == FOUND else None

    @property
    def find_report(self) -> Path:
        """The folder of mote-ftri's report."""
        return self.output / "find"

    @property
    def refined(self) -> Path:
        """mote-refine's expert set."""
        return self.output / "refined.json"

    @property
    def variant(self) -> Path:
        """mote-rewrite's folder."""
        return self.output / "variant"

    def check(self) -> None:
        """Raise InputError for values that cannot be meant."""
        if self.k < 1:
            raise InputError(f"--top is {self.k}, expected at least 1")
        if self.candidates == FOUND or self.num_ranked == 0:
            raise InputError(f"--candidates is {self.candidates}, expected a number above 0 as in found:200")
        self.as_refinement().check()

    def as_refinement(self, *, recorded: bool = True) -> RefineRequest:
        """What mote-refine is asked for; before the recording is there, without its answers and without mote-ftri's list."""
        own = {one.name: getattr(self, one.name) for one in fields(RefineRequest)}
        compare = (*self.compare, str(self.found)) if recorded else self.compare
        return RefineRequest(
            **own
            | {
                "output": self.refined,
                "report": self.output / "refine",
                "traces": self.recording if recorded else None,
                "compare": compare,
                "candidates": self.candidates if self.num_ranked is None else str(self.ranked),
            }
        )
