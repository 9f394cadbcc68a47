"""`mote-refine` as a library: measures every candidate on one engine, grows a set, and checks it on prompts it never saw."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rewriter
from eval.answers.arms import Answer, Arm, Pair
from eval.answers.journal import JOURNAL, Collector, Journal, Progress
from eval.answers.live import LiveResponder
from eval.answers.plan import NamedEdit, requests_for, spread
from eval.answers.recorded import take_over
from eval.evaluate import Subject, measure_subject
from eval.experts import ModelUnderTest, check_same_model, is_routable, shift_widths
from eval.measures.controls import labels_alone, selection_frequency
from eval.measures.neutral import load_neutral
from eval.outcomes.held_out import PROVENANCE_KEY, HeldOut, prompt_sha256, split_prompts
from eval.outcomes.observed import label_answer
from eval.outcomes.targets import Target, move_rate
from eval.refine.bench import Neutral
from eval.refine.deciding import Node, deciding_tokens
from eval.refine.options import ALL_ACTIVE, RefineRequest, expert_file
from eval.refine.page import PAGE, write_page
from eval.refine.results import (
    FILE_NAME,
    DecidingPlace,
    NullSearch,
    RefineResults,
    ScreenedExpert,
    TunedStrengths,
    entries_of,
    path_of,
)
from eval.refine.screening import active_experts
from eval.refine.search import Labelled, Searched, SearchOptions, search, shuffled
from eval.refine.tuning import Dose
from eval.report.outputs import CARD_SECTION, REPORT, SAFETY_SECTION, make_output
from eval.report.transcripts import FILE_NAME as TRANSCRIPTS
from eval.results import FILE_NAME as CHECK_RESULTS
from eval.results import Results
from eval.run import load_measures
from eval.session import LentEngine, Say, Session, open_session
from ftri.labels.names import PAPER_CLASSES
from ftri.prompts.sets import PromptRecord, load_prompt_set, without_path
from rewriter.errors import InputError, OutputError
from rewriter.expert_set import ExpertSet
from rewriter.semantics import CENTROID, REROUTE

if TYPE_CHECKING:
    import numpy as np

BASE_ARM = Arm("base", "base")


@dataclass(frozen=True)
class Refined:
    """The search's results, the expert set that was written, and mote-eval's results of checking it (None: nothing found)."""

    results: RefineResults
    expert_set: ExpertSet | None
    check: Results | None


def refine(request: RefineRequest, say: Say, progress: Progress, lent: LentEngine | None = None) -> Refined:
    """Search, write the expert set and the pages, and check the set on held-out prompts.

    The engine is loaded and closed here, unless one is `lent`. A run that was stopped goes on where it was: answers and
    measured edits are kept in the report folder's journal.

    Raises:
        MoteError: when the search could not be made; parts of the check that failed are in its results.
    """
    request.check()
    evaluation = request.as_evaluation()
    prompt_set = load_prompt_set(request.prompts, column=request.column)
    make_output(request.folder)
    started = time.monotonic()
    with (
        closing(open_session(evaluation, say, lent)) as session,
        Journal(request.folder / JOURNAL, session.responder.identity()) as journal,
    ):
        if len(journal):
            say(f"{journal.path}: going on with {len(journal)} records")
        finding, testing = split_prompts(
            spread(prompt_set.records, request.limit), request.split, by=request.split_by, seed=request.seed
        )
        if request.traces is not None:
            requests = requests_for([*finding, *testing], evaluation.options)
            identity = session.responder.identity()
            taken = take_over(request.traces, journal, identity, BASE_ARM, requests, session.think_format)
            say(f"{request.traces}: holds {taken} of the base's {len(requests)} answers")
        bench = _Workbench(
            request, session, Collector(session.responder, journal, progress, session.think_format), finding, say
        )
        found = bench.search(bench.responses, request.seed, progress)
        results = bench.results(found, len(testing), time.monotonic() - started)
        expert_set = bench.expert_set(found, results, finding)
        _remove_former(request)
        if expert_set is None:
            results.save(request.folder / FILE_NAME)
            write_page(request.folder, results, None)
            say(f"no set was found: {found.growth.ended}")
            return Refined(results, None, None)
        expert_set.save(request.output)
        assert found.chosen is not None
        say(f"{request.output}: {len(expert_set.experts)} experts; checking them on {len(testing)} other prompts")
        session.expert_sets.append(expert_set)
        held_out = HeldOut(
            status="split",
            num_prompts=len(testing),
            sentence=f"The experts were searched for on {len(finding)} prompts and tested on {len(testing)} others.",
        )
        subject = Subject(
            NamedEdit(request.output.stem, tuple(results.chosen), (), found.chosen.dose.bias_shifts),
            request.target_label,
            "leave",
            testing,
            held_out,
        )
        check = measure_subject(
            evaluation, session, subject, bench.collector, prompt_set.source, load_measures(evaluation), say
        )
        results.nulls = bench.nulls(testing, progress)
        results.seconds = time.monotonic() - started
    results.save(request.folder / FILE_NAME)
    write_page(request.folder, results, check)
    return Refined(results, expert_set, check)


def _remove_former(request: RefineRequest) -> None:
    """Remove what a former search with other options left: its set is not this one's, and its check is of its set.

    Raises: OutputError.
    """
    check = (CHECK_RESULTS, REPORT, CARD_SECTION, SAFETY_SECTION, TRANSCRIPTS)
    for path in (
        request.output,
        request.folder / FILE_NAME,
        request.folder / PAGE,
        *map(request.folder.joinpath, check),
    ):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{path}: cannot be replaced ({error.strerror}), expected a file to write") from None


class _Workbench:
    """What all searches of one run share: the base's labelled responses, the candidates, the neutral text, the engine."""

    def __init__(
        self,
        request: RefineRequest,
        session: Session,
        collector: Collector,
        finding: Sequence[PromptRecord],
        say: Say,
    ) -> None:
        assert session.model is not None and session.live is not None
        self.request = request
        self.session = session
        self.model: ModelUnderTest = session.model
        self.live: LiveResponder = session.live
        self.collector = collector
        self.say = say
        self.widths = shift_widths(self.model) if request.tune_strength else None
        self.options = request.as_evaluation().options
        answers = list(collector.answers(BASE_ARM, requests_for(finding, self.options)))
        labels = self._labels_of(answers)
        wanted = {request.target_label, *request.toward_labels}
        self.responses = [
            Labelled(answer, label == request.target_label)
            for answer, label in zip(answers, labels, strict=True)
            if label in wanted
        ]
        num_target = sum(one.is_target for one in self.responses)
        if not 0 < num_target < len(self.responses):
            raise InputError(
                f"{len(answers)} responses hold {num_target} {request.target_label} and {len(self.responses) - num_target}"
                f" {' or '.join(request.toward_labels)}, expected some of both; give other --prompts, --target or --toward"
            )
        self.frequency, self.resonance = self._routing()
        self.candidates = self._candidates()
        text = load_neutral(request.as_evaluation())
        assert text is not None, "an engine has neutral prompts"
        prompts = requests_for(text.records[: request.kl_prompts], replace(self.options, max_tokens=request.kl_tokens))
        neutral = [one for one in collector.answers(BASE_ARM, prompts) if one.token_ids]
        self.neutral = Neutral(
            tuple((*one.prompt_token_ids, *one.token_ids) for one in neutral),
            tuple(len(one.prompt_token_ids) for one in neutral),
        )

    def _routing(self) -> tuple[dict[int, np.ndarray], np.ndarray]:
        """Selections per token by layer, over prompts and answers, and the paper's fTRI map [L, E] over the prompts' tokens."""
        import numpy as np

        from ftri.analysis.maps import count_selections
        from ftri.analysis.resonance import resonance_map

        sequences = [[*one.answer.prompt_token_ids, *one.answer.token_ids] for one in self.responses]
        live = self.live.model_for(BASE_ARM)
        layers, num_experts = list(live.moe_layers), live.num_experts
        counts = np.zeros((len(sequences), len(layers), num_experts), np.int32)
        routings = []
        for one in self.live.score(BASE_ARM, sequences, None, routing=True):
            assert one.routing is not None
            routings.append(one.routing)
            prompt = one.routing[: len(self.responses[one.index].answer.prompt_token_ids)]
            counts[one.index] = count_selections(prompt, num_experts, live.num_other_choices).reshape(
                len(layers), num_experts
            )
        is_target = np.array([one.is_target for one in self.responses])
        return selection_frequency(routings, layers, num_experts), resonance_map(counts, is_target)

    def _candidates(self) -> list[Pair]:
        if self.request.candidates == ALL_ACTIVE:
            return active_experts(self.frequency, self.request.least_rate)
        name, count = expert_file(self.request.candidates)
        ranked = ExpertSet.load(name, model=self.request.model).top(count)
        # A ranking of another model's experts is the user's own business, as long as this one has them.
        check_same_model(self.model, ranked, name, any_model=True)
        return list(dict.fromkeys(ranked.model_pairs(self.model.layout.moe_layers)))

    def search(self, responses: Sequence[Labelled], seed: int, progress: Progress) -> Searched:
        """One search on responses labelled so or so."""
        request = self.request
        return search(
            self.live,
            self.collector.journal,
            self.live.identity(),
            responses,
            self.candidates,
            self.neutral,
            SearchOptions(
                request.semantics,
                request.max_experts,
                request.budget_kl,
                request.screen_prompts,
                request.grow_prompts,
                request.pool,
                request.kl_listed,
                seed,
                request.tune_trials if request.tune_strength else 0,
            ),
            lambda experts, shifts: (
                request.semantics not in (REROUTE, CENTROID) or is_routable(self.model, experts, (), shifts)
            ),
            self.say,
            progress,
            self.widths,
        )

    def nulls(self, testing: Sequence[PromptRecord], progress: Progress) -> list[NullSearch]:
        """Searches with shuffled labels, and what their sets move on the held-out prompts."""
        request = self.request
        requests = requests_for(testing, self.options)
        target = Target("behavior", request.target_label, "leave")
        before = self._labels(BASE_ARM, requests)
        # Of what a null's set does only the labels count, unless the label is one that only whole answers have.
        requests = labels_alone(requests) if request.target_label in PAPER_CLASSES else requests
        found = []
        for number in range(1, request.null_searches + 1):
            self.say(f"null search {number} of {request.null_searches}: the same with shuffled labels")
            one = self.search(shuffled(self.responses, request.seed + number), request.seed, progress).chosen
            dose = one.dose if one else Dose(())
            arm = Arm(f"null-{number}", "control", request.semantics, dose.experts, bias_shifts=dose.bias_shifts)
            after = self._labels(arm, requests) if one else None
            found.append(
                NullSearch(
                    seed=request.seed + number,
                    experts=list(dose.experts),
                    moved_in_search=one.moved if one else 0.0,
                    held_out_moved=move_rate(target, before, after) if after is not None else None,
                )
            )
        return found

    def _labels(self, arm: Arm, requests: Sequence[Any]) -> list[str]:
        return self._labels_of(self.collector.answers(arm, requests))

    def _labels_of(self, answers: Iterable[Answer]) -> list[str]:
        return [label_answer(one, self.collector.think_format) for one in answers]

    def results(self, found: Searched, num_testing: int, seconds: float) -> RefineResults:
        """What the search found, as refine.json holds it."""
        layers = list(self.live.model_for(BASE_ARM).moe_layers)
        rows = [
            ScreenedExpert.of(
                row,
                float(self.frequency[row.pair[0]][row.pair[1]]),
                float(self.resonance[layers.index(row.pair[0]), row.pair[1]]),
            )
            for row in found.screened
        ]
        best = found.chosen
        options = asdict(self.request)
        return RefineResults(
            schema="mote.refine/1",
            tool_version=rewriter.__version__,
            subject=self.session.subject(self.collector.journal),
            options={name: str(value) if isinstance(value, Path) else value for name, value in options.items()},
            num_finding=len(self.responses),
            num_finding_target=sum(one.is_target for one in self.responses),
            num_testing=num_testing,
            deciding=self._deciding(found.tree),
            base_chance=sum(found.base_chances) / len(found.base_chances),
            layers=layers,
            num_experts=int(self.resonance.shape[1]),
            resonance=self.resonance.tolist(),
            screened=rows,
            path=path_of(found.growth),
            chosen=list(best.dose.experts) if best else [],
            moved=best.moved if best else 0.0,
            kl=best.kl if best else 0.0,
            ended=found.growth.ended,
            tuned=TunedStrengths.of(found.tuning, found.growth) if found.tuning is not None else None,
            num_edits=found.num_edits,
            num_screen_tokens=found.num_screen_tokens,
            num_screen_prompts=found.num_screen_prompts,
            seconds=seconds,
        )

    def _deciding(self, tree: Node) -> list[DecidingPlace]:
        """The deciding places with their tokens as text, at most ten."""
        decode = self.live.model_for(BASE_ARM).decode
        return [
            DecidingPlace(
                before=decode(path),
                next=sorted(((decode((token,)), share) for token, share in shares.items()), key=lambda one: -one[1]),
            )
            for path, shares in deciding_tokens(tree)[:10]
        ]

    def expert_set(self, found: Searched, results: RefineResults, finding: Sequence[PromptRecord]) -> ExpertSet | None:
        """The best set as the artifact; None when the search found nothing."""
        if found.chosen is None:
            return None
        request = self.request
        return ExpertSet(
            model=self.model.name,
            revision=self.model.revision,
            layer_index="model",
            behavior=request.target,
            experts=entries_of(found.growth, found.chosen.dose, results.screened),
            provenance={
                "source": "mote-refine",
                "prompts": without_path(request.prompts),
                "config_sha256": self.model.config_sha256,
                "semantics": request.semantics,
                "moved": results.moved,
                "kl": results.kl,
                "ended": results.ended,
                "path": [step.model_dump() for step in results.path],
                "num_candidates": len(results.screened),
                PROVENANCE_KEY: sorted({prompt_sha256(prompt.text) for prompt in finding}),
            },
        )
