"""What an evaluation will cost before an engine is loaded: answers, tokens and time of each part, and what would halve it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eval.answers.plan import plan_live, plan_served, spread
from eval.measures import mt_bench, safety
from eval.measures.mt_bench_files import load_questions
from eval.options import EvalRequest
from eval.run import load_measures
from eval.session import Say, Session, open_session
from ftri.costs import Costs, estimate
from ftri.prompts.rendering import Render, make_render
from ftri.prompts.sets import PromptRecord, load_prompt_set

# Rendered for the mean length of a prompt; all of a large set would take minutes.
NUM_RENDERED = 200


@dataclass(frozen=True)
class PartCost:
    """The answers of one part; `at_most` where the base's own answers decide how many there are."""

    part: str
    answers: int
    at_most: bool = False


@dataclass(frozen=True)
class EvalCosts:
    """The parts, and all of them together."""

    parts: tuple[PartCost, ...]
    total: Costs

    def as_json(self) -> dict[str, Any]:
        """The costs for scripts."""
        return {"parts": [asdict(part) for part in self.parts], "total": self.total.as_json()}

    def sentences(self) -> list[str]:
        """The costs for people, a line each."""
        width = max(len(part.part) for part in self.parts)
        lines = [
            f"{part.part:<{width}}  {'at most ' if part.at_most else ''}{part.answers:,} answers" for part in self.parts
        ]
        return lines + self.total.sentences()


def evaluation_costs(request: EvalRequest, say: Say, tokens_per_second: float | None = None) -> EvalCosts:
    """Reckon a run from its options, prompts and model; no engine is loaded and no server asked for an answer.

    Raises: MoteError for what the run itself would refuse before it loads an engine.
    """
    request.check()
    prompts = spread(load_prompt_set(request.prompts, column=request.column).records, request.limit)
    loaded = {measure.field: inputs for measure, inputs in load_measures(request)}
    session = open_session(request, say)
    options = request.options
    plan = plan_served(options) if request.is_served else plan_live(options, session.edit, session.others)
    num_checkpoints = sum(arm.checkpoint is not None for arm in plan.others)
    num_safety = sum(len(one.prompts.records) for one in loaded.get(safety.MEASURE.field) or ())
    benchmark = loaded.get(mt_bench.MEASURE.field)
    questions = load_questions(benchmark.questions, benchmark.references)[0] if benchmark is not None else []
    parts = part_costs(
        request,
        num_prompts=len(prompts),
        num_variants=len(plan.variants) + len(plan.others),
        num_safety=num_safety,
        num_questions=len(questions),
    )
    num_answers = sum(part.answers for part in parts)
    return EvalCosts(
        tuple(parts),
        estimate(
            num_requests=num_answers,
            num_prompt_tokens=round(num_answers * _mean_prompt_tokens(request, session, prompts)),
            max_tokens=options.max_tokens,
            engine_loads=0 if request.is_served else 1 + num_checkpoints,
            given_rate=tokens_per_second,
            halved_by=halved_by(request, parts, num_answers),
        ),
    )


def part_costs(
    request: EvalRequest, *, num_prompts: int, num_variants: int, num_safety: int, num_questions: int
) -> list[PartCost]:
    """The answers that each part asks for."""
    options = request.options
    each = num_prompts * options.samples
    repeated = min(each, options.control_prompts + options.control_others)
    live = not request.is_served
    parts = [
        PartCost("base", each),
        PartCost("base again (A/A)", each if options.repeat_base else 0),
        PartCost(f"{num_variants} variants", num_variants * each),
        PartCost("sweep over k", len(options.sweep_k) * repeated if live else 0, at_most=True),
        PartCost(
            f"random sets ({options.controls} x {len(options.control_matching)} matchings)",
            options.controls * len(options.control_matching) * repeated if live else 0,
            at_most=True,
        ),
        PartCost("sets of harm and XSTest", 2 * num_safety),
        # Two turns, base and variant; the judge's own answers are its server's business.
        PartCost("MT-Bench", 4 * num_questions),
    ]
    return [part for part in parts if part.answers]


def halved_by(request: EvalRequest, parts: Sequence[PartCost], num_answers: int) -> list[str]:
    """Options that take about half of the work away, the cheapest in evidence first."""
    options = request.options
    found = []
    random_sets = sum(part.answers for part in parts if part.part.startswith("random sets"))
    if random_sets > num_answers / 2:
        if len(options.control_matching) > 1:
            found.append(
                f"--control-matching {options.control_matching[-1]}, one matching of {len(options.control_matching)}"
            )
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
