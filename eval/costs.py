"""What an evaluation will cost before an engine is loaded: answers, tokens and time of each part, and what would halve it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.answers.journal import ANEW, JOURNAL, Progress, look_into
from eval.answers.plan import plan_live, plan_served, spread
from eval.errors import JournalError
from eval.measures import fidelity, mt_bench, safety
from eval.measures.controls import SETS_A_ROUND
from eval.measures.mt_bench_files import load_questions
from eval.options import EvalRequest
from eval.outcomes.held_out import split_prompts
from eval.outcomes.targets import find_target
from eval.run import Loaded, load_measures
from eval.session import Say, Session, open_session
from ftri.costs import Costs, estimate
from ftri.prompts.rendering import Render, make_render
from ftri.prompts.sets import PromptRecord, load_prompt_set
from rewriter.console import duration_text
from rewriter.errors import first_problem
from rewriter.semantics import BIAS_FREE_SEMANTICS, DROP_RENORM, REROUTE, SEMANTICS, STIMULATE, SUPPRESS

# The journal's value by which a later --dry-run knows how fast this run's first answers were.
RATE_KEY = "rate-of-first-answers"
# A dry run looks whether servers are there, and waits no longer for each.
LOOK_SECONDS = 5.0
# Rendered for the mean length of a prompt; all of a large set would take minutes.
NUM_RENDERED = 200


class MeasuredRate(BaseModel):
    """What the first answers of a run took: tokens a second, and tokens an answer with its prompt."""

    model_config = ConfigDict(frozen=True)

    tokens_per_second: float = Field(gt=0)
    tokens_per_answer: float = Field(gt=0)


@dataclass(frozen=True)
class PartCost:
    """The answers of one part, and the tokens that it makes the model read without an answer.

    at_most: what the run finds decides how many answers there are. by_chance: where random sets may end early, the answers
    expected of a variant that moves no more than they do. max_tokens: of an answer, where that is not the run's. elsewhere:
    another server than the one under test answers. ends_with_label: an answer is no longer than its label takes to decide.
    """

    part: str
    answers: int
    at_most: bool = False
    by_chance: int | None = None
    forced_tokens: int = 0
    max_tokens: int | None = None
    elsewhere: bool = False
    ends_with_label: bool = False

    def sentence(self, width: int) -> str:
        """The part for people."""
        words = f"{self.part:<{width}}  {'at most ' if self.at_most else ''}{self.answers:,} answers"
        if self.max_tokens is not None:
            words += f" of at most {self.max_tokens:,} tokens"
        if self.ends_with_label:
            words += " that end with their label"
        if self.by_chance is not None and self.by_chance < self.answers:
            words += f", about {self.by_chance:,} where the variant moves no more than random sets"
        if self.forced_tokens:
            words += f", {'at most ' if self.at_most else ''}{self.forced_tokens:,} tokens read"
        return words


@dataclass(frozen=True)
class EvalCosts:
    """The parts, and all together but for what other servers answer; `early` is the total where all random sets end early.

    `num_kept` answers are in the output folder's journal and not asked again.
    """

    parts: tuple[PartCost, ...]
    total: Costs
    early: Costs
    num_kept: int = 0

    def as_json(self) -> dict[str, Any]:
        """The costs for scripts."""
        return {
            "parts": [asdict(part) for part in self.parts],
            "total": self.total.as_json(),
            "early": self.early.as_json(),
            "num_kept": self.num_kept,
        }

    def sentences(self) -> list[str]:
        """The costs for people, a line each."""
        width = max(len(part.part) for part in self.parts)
        lines = [part.sentence(width) for part in self.parts] + self.total_sentences()
        if self.num_kept:
            lines.append(f"{self.num_kept:,} answers are kept in the output folder already and not asked again")
        return lines

    def total_sentences(self) -> list[str]:
        """All parts together, for people."""
        lines = self.total.sentences()
        if self.total.requests and any(part.ends_with_label for part in self.parts):
            # Before what would halve it.
            lines.insert(2, "less than that, since answers that end with their label are reckoned as whole ones here")
        if self.early.requests < self.total.requests:
            time = f", about {duration_text(self.early.seconds)}" if self.early.seconds is not None else ""
            lines.append(
                f"where the variant moves no more than random sets: {self.early.requests:,} requests, at most"
                f" {self.early.most_tokens:,} tokens{time}"
            )
        return lines


def evaluation_costs(request: EvalRequest, say: Say, tokens_per_second: float | None = None) -> EvalCosts:
    """Reckon a run from its options, prompts and model, at a given rate or at the one that an earlier run into the same folder
    measured; no engine is loaded and no server asked for an answer, only once whether it is there.

    Raises: MoteError for what the run itself would refuse before it loads an engine.
    """
    request.check()
    request = replace(request, attempts=1, timeout=min(request.timeout, LOOK_SECONDS))
    prompts = spread(load_prompt_set(request.prompts, column=request.column).records, request.limit)
    loaded = load_measures(request)
    journal = request.output / JOURNAL
    num_kept, measured = _kept(journal)
    costs = costs_of(
        request,
        open_session(request, say),
        prompts,
        loaded,
        given_rate=tokens_per_second,
        measured_rate=measured.tokens_per_second if measured is not None else None,
        measured_on=f"the first answers of the earlier run in {journal}",
        tokens_per_answer=measured.tokens_per_answer if measured is not None else None,
    )
    return replace(costs, num_kept=num_kept)


def _kept(journal: Path) -> tuple[int, MeasuredRate | None]:
    """(answers, rate) that an earlier run into the same folder left; (0, None) where there was none."""
    if not journal.is_file():
        return 0, None
    num_answers, value = look_into(journal, RATE_KEY)
    try:
        return num_answers, MeasuredRate.model_validate(value) if value is not None else None
    except ValidationError as error:
        raise JournalError(f"{journal}: the value {RATE_KEY} is damaged ({first_problem(error)}); {ANEW}") from None


def costs_of(
    request: EvalRequest,
    session: Session,
    prompts: Sequence[PromptRecord],
    loaded: Loaded,
    *,
    given_rate: float | None = None,
    measured_rate: float | None = None,
    measured_on: str = "the first answers",
    tokens_per_answer: float | None = None,
) -> EvalCosts:
    """Reckon a run whose model and inputs are open already, with a rate and the mean tokens of an answer, its prompt included,
    where they are known."""
    inputs = {measure.field: found for measure, found in loaded}
    options = request.options
    plan = plan_served(options) if request.is_served else plan_live(options, session.edit, session.others)
    num_checkpoints = sum(arm.checkpoint is not None for arm in plan.others)
    num_safety = sum(len(one.prompts.records) for one in inputs.get(safety.MEASURE.field) or ())
    benchmark = inputs.get(mt_bench.MEASURE.field)
    questions = load_questions(benchmark.questions, benchmark.references)[0] if benchmark is not None else []
    neutral = inputs.get(fidelity.MEASURE.field)
    texts = neutral.records[: options.neutral_prompts] if neutral is not None else []
    finding: Sequence[PromptRecord] = ()
    testing = prompts
    if request.split is not None:
        finding, testing = split_prompts(prompts, request.split, by=request.split_by, seed=options.seed)
    prompt_tokens = _mean_prompt_tokens(request, session, prompts)
    parts = part_costs(
        request,
        num_prompts=len(testing),
        num_variants=len(plan.variants) + len(plan.others),
        num_safety=num_safety,
        num_questions=len(questions),
        num_finding=len(finding),
        prompt_tokens=prompt_tokens,
        num_neutral=len(texts),
        neutral_tokens=_mean_prompt_tokens(request, session, texts),
        num_passes=num_passes(request, session),
        max_judge_tokens=benchmark.max_judge_tokens if benchmark is not None else 0,
        ends_with_label=_ends_with_label(request, session),
    )

    def all_of(answers: Callable[[PartCost], int], halved_by: Sequence[str]) -> Costs:
        own = [part for part in parts if not part.elsewhere]
        usual = sum(answers(part) for part in own if part.max_tokens is None)
        others = [part for part in own if part.max_tokens is not None]
        return estimate(
            num_requests=usual,
            num_prompt_tokens=round(usual * prompt_tokens),
            max_tokens=options.max_tokens,
            num_other_requests=sum(part.answers for part in others),
            num_other_tokens=sum(part.forced_tokens for part in own)
            + round(sum(part.answers * (prompt_tokens + (part.max_tokens or 1) - 1) for part in others)),
            mean_completion_tokens=None if tokens_per_answer is None else max(tokens_per_answer - prompt_tokens + 1, 0),
            engine_loads=0 if request.is_served else 1 + num_checkpoints,
            given_rate=given_rate,
            measured_rate=measured_rate,
            measured_on=measured_on,
            halved_by=halved_by,
        )

    num_answers = sum(part.answers for part in parts if not part.elsewhere)
    return EvalCosts(
        tuple(parts),
        all_of(lambda part: part.answers, halved_by(request, parts, num_answers)),
        all_of(lambda part: part.by_chance if part.by_chance is not None else part.answers, ()),
    )


def num_passes(request: EvalRequest, session: Session) -> int:
    """How often the neutral text is read for the divergences: by the base and by every kind of edit, for each action, for the
    sweep by the base and once a size, and for other variants by the base and by each."""
    if session.live is None:
        return 0
    has_bias = session.model is None or session.model.layout.has_bias
    suppressing = len(SEMANTICS if has_bias else BIAS_FREE_SEMANTICS)
    found_down = request.split is not None and not request.stimulate_found
    found_up = request.split is not None and request.stimulate_found
    down = 1 + suppressing if found_down else 0
    up = 1 + len((REROUTE, DROP_RENORM)) if found_up else 0
    if session.edit.suppress:
        down = 1 + len(fidelity.fidelity_arms(session.edit, SUPPRESS, has_bias=has_bias))
    if session.edit.stimulate:
        up = 1 + len(fidelity.fidelity_arms(session.edit, STIMULATE, has_bias=has_bias))
    sizes = len(request.options.sweep_k)
    others = len(session.others)
    return down + up + (1 + sizes if sizes else 0) + (1 + others if others else 0)


def _ends_with_label(request: EvalRequest, session: Session) -> bool:
    """Whether answers of random sets and of the sweep end once their label is decided, see eval/measures/controls.py."""
    if request.options.whole_controls or request.is_served:
        return False
    named = session.expert_sets[0].behavior if session.expert_sets else request.find or "refused"
    return find_target(named, "leave", request.target).axis == "behavior"


def sets_by_chance(num_sets: int, stop_after: int) -> int:
    """The random sets expected to run where the variant is one of them, ending at `stop_after` that move as much.

    The number of the first n that move as much is then uniform on 0..n, so that set n + 1 runs with probability
    min(1, stop_after / (n + 1)); all sets of a round run.
    """
    expected = sum(min(1.0, stop_after / (n + 1)) for n in range(num_sets))
    return min(num_sets, SETS_A_ROUND * ceil(expected / SETS_A_ROUND))


def part_costs(
    request: EvalRequest,
    *,
    num_prompts: int,
    num_variants: int,
    num_safety: int,
    num_questions: int,
    num_finding: int = 0,
    prompt_tokens: float = 0.0,
    num_neutral: int = 0,
    neutral_tokens: float = 0.0,
    num_passes: int = 0,
    max_judge_tokens: int = 0,
    ends_with_label: bool = True,
) -> list[PartCost]:
    """The answers that each part asks for; `prompt_tokens` and `neutral_tokens` are of one prompt each."""
    options = request.options
    each = num_prompts * options.samples
    repeated = min(each, options.control_prompts + options.control_others)
    live = not request.is_served
    matchings = len(options.control_matching)
    controls = matchings * repeated if live else 0
    parts = [
        PartCost(
            "base, to find experts",
            num_finding * options.samples,
            forced_tokens=round(num_finding * options.samples * prompt_tokens),
        ),
        PartCost("base", each),
        PartCost("base again (A/A)", each if options.repeat_base else 0),
        PartCost(f"{num_variants} variant{'s' if num_variants != 1 else ''}", num_variants * each),
        PartCost(
            f"divergence ({num_passes} passes over the base's answers to neutral prompts)",
            num_neutral if num_passes else 0,
            forced_tokens=round(num_passes * num_neutral * (neutral_tokens + options.kl_tokens)),
            max_tokens=options.kl_tokens,
        ),
        PartCost(
            "sweep over k",
            len(options.sweep_k) * repeated if live else 0,
            at_most=True,
            ends_with_label=ends_with_label,
        ),
        PartCost(
            f"random sets ({options.controls} x {matchings} matchings)",
            options.controls * controls,
            at_most=True,
            by_chance=sets_by_chance(options.controls, options.control_stop) * controls,
            ends_with_label=ends_with_label,
            # The base's answers to these prompts are read once for how often it selects each expert.
            forced_tokens=round(repeated * (prompt_tokens + options.max_tokens))
            if options.controls and controls
            else 0,
        ),
        PartCost("sets of harm and XSTest", 2 * num_safety),
        # Two turns, base and variant.
        PartCost("MT-Bench", 4 * num_questions),
        PartCost(
            "MT-Bench's judge, at its own server",
            4 * num_questions,
            at_most=True,
            max_tokens=max_judge_tokens,
            elsewhere=True,
        ),
    ]
    return [part for part in parts if part.answers]


def halved_by(request: EvalRequest, parts: Sequence[PartCost], num_answers: int) -> list[str]:
    """Options that take about half of the work away, the cheapest in evidence first."""
    options = request.options
    found = []
    random_sets = sum(part.answers for part in parts if part.part.startswith("random sets"))
    if random_sets > num_answers / 2:
        # Fewer where there are no more prompts, so that the bound is not what costs.
        repeated = random_sets // (options.controls * len(options.control_matching))
        if len(options.control_matching) > 1:
            found.append(
                f"--control-matching {options.control_matching[-1]}, one matching of {len(options.control_matching)}"
            )
        if repeated >= options.control_prompts + options.control_others:
            found.append(
                f"--control-prompts {max(options.control_prompts // 2, 1)} --control-others {options.control_others // 2}"
            )
        # The smallest p-value that N sets can show is 1 / (N + 1).
        found.append(f"--controls {options.controls // 2}, with p-values of at least 1/{options.controls // 2 + 1}")
    found.append(f"--max-tokens {max(options.max_tokens // 2, 1)}, which cuts long answers off (TRUNCATED)")
    if random_sets <= num_answers / 2:
        found.append("--limit with half as many prompts")
    return found


def _mean_prompt_tokens(request: EvalRequest, session: Session, prompts: Sequence[PromptRecord]) -> float:
    """Tokens of a rendered prompt; 0 where no model is here to render with."""
    if session.model is None:
        return 0.0
    render, _ = make_render(session.model.folder, request.chat_template)
    return mean_prompt_tokens(render, prompts)


def mean_prompt_tokens(render: Render, prompts: Sequence[PromptRecord]) -> float:
    """Tokens of a rendered prompt, the mean of some of them; 0 without any."""
    some = prompts[:: max(len(prompts) // NUM_RENDERED, 1)]
    return sum(len(render([("user", one.text)]).token_ids) for one in some) / len(some) if some else 0.0


class Announcement:
    """Passes progress on, and says once, when the first part that was asked for is answered, what the run will take: the answers
    that come first are the shortest, so fewer of them would promise too much."""

    def __init__(
        self, progress: Progress, reckon: Callable[..., EvalCosts], say: Say, keep: Callable[[MeasuredRate], None]
    ) -> None:
        """`reckon(measured_rate=, tokens_per_answer=)` gives the costs of the whole run; `keep` is told the rate too."""
        self._progress, self._reckon, self._say, self._keep = progress, reckon, say, keep
        self._answers = self._tokens = 0
        self._is_said = False

    def __call__(self, part: str, there: int, wanted: int, tokens: int = 0, seconds: float | None = None) -> None:
        """See `eval.answers.journal.Progress`."""
        self._progress(part, there, wanted, tokens, seconds)
        self._answers += 1
        self._tokens += tokens
        if self._is_said or there < wanted or not seconds or not self._tokens:
            return
        self._is_said = True
        measured = MeasuredRate(
            tokens_per_second=self._tokens / seconds, tokens_per_answer=self._tokens / self._answers
        )
        self._keep(measured)
        rate = measured.tokens_per_second
        costs = self._reckon(measured_rate=rate, tokens_per_answer=measured.tokens_per_answer)
        self._say(f"measured on the first {self._answers:,} answers: {rate:,.0f} tokens/s; the whole run then is")
        for sentence in costs.total_sentences():
            self._say(sentence)
