"""One search: from labelled responses to a growing set of experts, each step measured on an engine."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from eval.answers.arms import Answer, Semantics, Shift
from eval.answers.journal import Journal
from eval.refine.bench import Bench, EditBench, EditScorer, Neutral
from eval.refine.deciding import Node, Probe, grow_tree, probe_for
from eval.refine.growing import Growth, grow
from eval.refine.measured import Pair
from eval.refine.screening import Screened, pool, screened
from eval.refine.tuning import Dose, Trial, Tuning, tune
from rewriter.console import duration_text
from rewriter.errors import InputError

# Under this key the journal keeps the tokens per second of the first edits that were measured.
RATE_KEY = "search-rate"
Say = Callable[[str], None]
# Called with (what is being measured, edits done, edits in all).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Labelled:
    """A response of the base and whether it shows the target behaviour."""

    answer: Answer
    is_target: bool


@dataclass(frozen=True)
class SearchOptions:
    """What decides a search besides model, responses and candidates."""

    semantics: Semantics
    max_experts: int
    budget_kl: float | None
    screen_prompts: int
    grow_prompts: int
    pool: int
    kl_listed: int
    seed: int
    num_trials: int = 0  # of tuning strengths; 0: every expert is suppressed as a whole


@dataclass(frozen=True)
class Searched:
    """What a search found: the tree of responses, every candidate's own effect, and the path of the set."""

    tree: Node
    base_chances: tuple[float, ...]
    screened: tuple[Screened, ...]
    growth: Growth
    num_edits: int
    num_screen_tokens: int
    num_screen_prompts: int
    tuning: Tuning | None = None

    @property
    def chosen(self) -> Trial | None:
        """The set that the search ends with: tuned where strengths were searched, else the best that was grown."""
        if self.tuning is not None:
            return self.tuning.best
        best = self.growth.best
        return Trial(Dose(best.experts), best.moved, best.kl) if best is not None else None


def search(
    scorer: EditScorer,
    journal: Journal,
    identity: object,
    responses: Sequence[Labelled],
    candidates: Sequence[Pair],
    neutral: Neutral,
    options: SearchOptions,
    is_feasible: Callable[[tuple[Pair, ...], tuple[Shift, ...]], bool],
    say: Say,
    progress: Progress = lambda what, done, total: None,
    widths: Mapping[int, float] | None = None,
) -> Searched:
    """Learn the deciding tokens, screen every candidate alone, grow a set from the strongest, and tune its strengths if asked.

    widths: by layer, for tuning; see eval.refine.tuning.

    Raises:
        InputError: when the responses do not hold both kinds, or nothing tells them apart.
    """
    tree = grow_tree([one.answer.token_ids for one in responses], [one.is_target for one in responses])
    probes = probes_of(tree, responses)
    if not probes:
        num_target = sum(one.is_target for one in responses)
        raise InputError(
            f"the search sees {num_target} responses of the target and {len(responses) - num_target} others, expected some of"
            " both that begin with other tokens"
        )
    few = sample(probes, options.screen_prompts, options.seed)
    screen = EditBench(scorer, journal, identity, Bench(few, neutral, options.kl_listed), options.semantics)
    alone = [(pair,) for pair in candidates if is_feasible((pair,), ())]
    known = journal.value(RATE_KEY) if RATE_KEY in journal else None
    say(
        f"screening {len(alone)} experts, each alone on {len(few)} prompts and {len(neutral.sequences)} neutral answers:"
        f" {len(alone) * screen.bench.num_tokens:,} tokens in {len(alone) * len(screen.bench.sequences):,} requests"
        + (f", {duration_text(len(alone) * screen.bench.num_tokens / known)} at {known:,.0f} tokens/s" if known else "")
    )
    base = screen.base().chances
    count = counter(progress, "screening", len(alone))

    def advance(num_edits: int) -> None:
        count(num_edits)
        # The base alone is the first edit, and no full batch: the rate is that of the edits after it.
        if screen.tokens_per_second is not None and RATE_KEY not in journal:
            journal.add_value(RATE_KEY, screen.tokens_per_second)
            left = (len(alone) - num_edits) * screen.bench.num_tokens / screen.tokens_per_second
            say(
                f"measured on the first {num_edits}: {screen.tokens_per_second:,.0f} tokens/s, {duration_text(left)} more"
            )

    measured = screen.measure(alone, advance)
    rows = screened([pair for (pair,) in alone], measured, base, options.seed)
    more = EditBench(
        scorer,
        journal,
        identity,
        Bench(sample(probes, options.grow_prompts, options.seed), neutral, options.kl_listed),
        options.semantics,
    )
    strongest = pool(rows, options.pool)
    say(f"growing a set from the {len(strongest)} strongest, at most {options.max_experts} experts")
    growth = grow(
        strongest,
        lambda sets: more.measure(sets, counter(progress, "growing", len(sets))),
        more.base().chances,
        max_experts=options.max_experts,
        budget_kl=options.budget_kl,
        is_feasible=lambda experts: is_feasible(experts, ()),
    )
    tuning = None
    if options.num_trials:
        assert widths is not None
        grown = growth.best.experts if growth.best is not None else ()
        others = [pair for pair in strongest if pair not in grown][: options.max_experts - len(grown)]
        say(
            f"tuning the strengths of {len(grown)} experts and {len(others)} that may join them: {options.num_trials} trials"
        )
        budget = options.budget_kl
        if budget is None:
            budget = growth.best.kl if growth.best is not None else math.inf
        count_trial = counter(progress, "tuning", options.num_trials)
        tuning = tune(
            grown,
            others,
            widths,
            lambda shift: is_feasible((shift[:2],), (shift,)),
            lambda doses: more.measure_doses(doses, count_trial),
            more.base().chances,
            budget_kl=budget,
            num_trials=options.num_trials,
            seed=options.seed,
        )
    return Searched(
        tree,
        base,
        tuple(rows),
        growth,
        screen.num_edits + more.num_edits,
        len(alone) * screen.bench.num_tokens,
        len(few),
        tuning,
    )


def counter(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    """Adds up the edits that a bench reports, for a progress bar."""
    done = 0

    def advance(num_edits: int) -> None:
        nonlocal done
        done += num_edits
        progress(what, done, total)

    return advance


def probes_of(tree: Node, responses: Sequence[Labelled]) -> list[Probe]:
    """The probes of all target responses that something decides."""
    found = (
        probe_for(tree, one.answer.prompt_id, one.answer.prompt_token_ids, one.answer.token_ids)
        for one in responses
        if one.is_target
    )
    return [probe for probe in found if probe is not None]


def sample(probes: Sequence[Probe], count: int, seed: int) -> tuple[Probe, ...]:
    """At most `count` probes, drawn once for a seed, in their own order."""
    if count >= len(probes):
        return tuple(probes)
    chosen = sorted(random.Random(f"probes/{seed}").sample(range(len(probes)), count))
    return tuple(probes[position] for position in chosen)


def shuffled(responses: Sequence[Labelled], seed: int) -> list[Labelled]:
    """The same responses with the labels dealt out again: what a search finds in these it finds in anything."""
    labels = [one.is_target for one in responses]
    random.Random(f"shuffled-labels/{seed}").shuffle(labels)
    return [Labelled(one.answer, label) for one, label in zip(responses, labels, strict=True)]
