"""What a search will cost, before an engine is loaded: the edits it measures and the answers that check it, tokens and time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from eval.answers.journal import JOURNAL, look_into
from eval.answers.plan import spread
from eval.costs import PartCost, mean_prompt_tokens, part_costs
from eval.experts import ModelUnderTest, shift_widths
from eval.measures import safety
from eval.measures.neutral import load_neutral
from eval.outcomes.held_out import split_prompts
from eval.refine.options import ALL_ACTIVE, RefineRequest, expert_file
from eval.refine.search import RATE_KEY
from eval.run import load_measures
from eval.session import Say, open_session
from ftri.costs import Costs, estimate
from ftri.prompts.rendering import make_render
from ftri.prompts.sets import load_prompt_set
from ftri.traces.reader import TraceReader
from rewriter.expert_set import ExpertSet

# Forced tokens of a response up to the last place that decides; the tree says how many once there are responses.
ASSUMED_DECIDING_TOKENS = 5


@dataclass(frozen=True)
class SearchPart:
    """The edits of one part, each a teacher-forced pass over its prompts, and the tokens of all of them."""

    part: str
    edits: int
    tokens: int
    at_most: bool = True


@dataclass(frozen=True)
class RefineCosts:
    """The search, which runs given tokens, and the answers that it begins with and that check its set."""

    search_parts: tuple[SearchPart, ...]
    search: Costs
    answer_parts: tuple[PartCost, ...]
    answers: Costs

    def as_json(self) -> dict[str, Any]:
        """The costs for scripts."""
        return {
            "search_parts": [asdict(part) for part in self.search_parts],
            "search": self.search.as_json(),
            "answer_parts": [asdict(part) for part in self.answer_parts],
            "answers": self.answers.as_json(),
        }

    def sentences(self) -> list[str]:
        """The costs for people, a line each."""
        names = [part.part for part in self.search_parts] + [part.part for part in self.answer_parts]
        width = max(map(len, names))
        lines = [
            f"{part.part:<{width}}  {'at most ' if part.at_most else ''}{part.edits:,} edits, {part.tokens:,} tokens"
            for part in self.search_parts
        ]
        lines += [f"the search: {line}" for line in self.search.sentences()]
        lines += [part.sentence(width) for part in self.answer_parts]
        return lines + [f"the answers: {line}" for line in self.answers.sentences()]


def refinement_costs(
    request: RefineRequest,
    say: Say,
    tokens_per_second: float | None = None,
    *,
    num_recorded: int = 0,
    num_compared: int = 0,
    num_ranked: int | None = None,
) -> RefineCosts:
    """Reckon a run from its options, prompts and model, at a given rate or those that earlier runs measured; loads no engine.

    `num_recorded` answers of the base and `num_compared` further sets are there when it begins, beside --traces and --compare;
    `num_ranked` candidates, in place of those of --candidates.

    Raises: MoteError for what the run itself would refuse before it loads an engine.
    """
    request.check()
    evaluation = request.as_evaluation()
    loaded = {measure.field: inputs for measure, inputs in load_measures(evaluation)}
    prompts = spread(load_prompt_set(request.prompts, column=request.column).records, request.limit)
    finding, testing = split_prompts(prompts, request.split, by=request.split_by, seed=request.seed)
    session = open_session(evaluation, say)
    assert session.model is not None
    if request.tune_strength:
        shift_widths(session.model)  # or the sentence that there are none
    render, _ = make_render(session.model.folder, request.chat_template)
    neutral = load_neutral(evaluation)
    assert neutral is not None, "an engine has neutral prompts"
    texts = neutral.records[: request.kl_prompts]
    prompt_tokens = mean_prompt_tokens(render, prompts)
    parts = search_parts(
        request,
        num_candidates=num_ranked or num_candidates(request, session.model),
        num_finding=len(finding),
        tokens_a_prompt=prompt_tokens + ASSUMED_DECIDING_TOKENS,
        neutral_tokens=len(texts) * (mean_prompt_tokens(render, texts) + request.kl_tokens),
    )
    recorded, answer_rate = _recorded(request)
    checks = part_costs(
        evaluation,
        num_prompts=len(testing),
        num_variants=1 + len(request.compare) + num_compared,
        num_safety=sum(len(one.prompts.records) for one in loaded.get(safety.MEASURE.field) or ()),
        num_questions=0,
    )
    answers = [
        PartCost("base", max(len(prompts) - max(recorded, num_recorded), 0)),
        *(part for part in checks if part.part != "base"),
        PartCost(
            f"{request.null_searches} null searches, held out", request.null_searches * len(testing), at_most=True
        ),
    ]
    answers = [part for part in answers if part.answers]
    num_answers = sum(part.answers for part in answers)
    num_edits = sum(part.edits for part in parts)
    per_edit = min(request.screen_prompts, len(finding)) + len(texts)
    halved = [f"--candidates FILE:{parts[0].edits // 2}, the first of a ranking of mote-ftri"]
    if request.null_searches > 1:
        halved.insert(0, f"--null-searches {(request.null_searches - 1) // 2}")
    return RefineCosts(
        tuple(parts),
        replace(
            estimate(
                num_requests=num_edits * per_edit,
                num_prompt_tokens=sum(part.tokens for part in parts),
                max_tokens=1,
                given_rate=tokens_per_second,
                measured_rate=_search_rate(request),
                halved_by=halved,
            ),
            rate_source="given" if tokens_per_second is not None else "measured by an earlier run of this search",
        ),
        tuple(answers),
        estimate(
            num_requests=num_answers,
            num_prompt_tokens=round(num_answers * prompt_tokens),
            max_tokens=request.max_tokens,
            # The search's engine.
            engine_loads=0,
            given_rate=tokens_per_second,
            measured_rate=answer_rate,
            halved_by=[f"--controls {request.controls // 2}"] if request.controls > 1 else [],
        ),
    )


def search_parts(
    request: RefineRequest, *, num_candidates: int, num_finding: int, tokens_a_prompt: float, neutral_tokens: float
) -> list[SearchPart]:
    """The edits of a search, and of the null searches, each of which is one more of the same."""
    screening = min(request.screen_prompts, num_finding) * tokens_a_prompt + neutral_tokens
    growing = min(request.grow_prompts, num_finding) * tokens_a_prompt + neutral_tokens
    # The pool holds the strongest by either measure; a step tries those not yet taken, and each earlier one taken out.
    pool = min(2 * request.pool, num_candidates)
    steps = min(request.max_experts, pool)
    sets = sum(pool - taken + max(taken - 1, 0) for taken in range(steps))
    is_exact = request.candidates != ALL_ACTIVE
    parts = [
        SearchPart("screening", num_candidates, round(num_candidates * screening), at_most=not is_exact),
        SearchPart("growing", sets, round(sets * growing)),
    ]
    if request.tune_strength:
        parts.append(SearchPart("tuning", request.tune_trials, round(request.tune_trials * growing), at_most=False))
    if request.null_searches:
        parts.append(
            SearchPart(
                f"{request.null_searches} null searches",
                request.null_searches * sum(part.edits for part in parts),
                request.null_searches * sum(part.tokens for part in parts),
            )
        )
    return parts


def num_candidates(request: RefineRequest, model: ModelUnderTest) -> int:
    """How many experts are screened; for all-active every expert there is, since only answers say which are active.

    Raises: ExpertSetError for a set of candidates that cannot be read.
    """
    if request.candidates == ALL_ACTIVE:
        return len(model.layout.moe_layers) * model.layout.num_experts
    name, count = expert_file(request.candidates)
    return len(ExpertSet.load(name, model=request.model).top(count).experts)


def _recorded(request: RefineRequest) -> tuple[int, float | None]:
    """(answers of the base that need not be asked for, tokens per second of their recording)."""
    if request.traces is None:
        return 0, None
    reader = TraceReader(request.traces)
    rate = reader.manifest.get("tokens_per_second")
    return len(reader), float(rate) if isinstance(rate, int | float) else None


def _search_rate(request: RefineRequest) -> float | None:
    """Tokens per second that an earlier run into the same folder measured."""
    path = request.folder / JOURNAL
    rate = look_into(path, RATE_KEY)[1] if path.is_file() else None
    return float(rate) if isinstance(rate, int | float) else None
