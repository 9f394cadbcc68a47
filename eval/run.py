"""Runs a whole evaluation: part after part, each kept in the journal, and what fails named in the result instead
of losing the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from eval.answers.arms import Arm, Request, Sampling, digest
from eval.answers.collect import Collector
from eval.answers.live import LiveResponder
from eval.measures.divergence import NeutralText, kl_from_base, measure_fidelity
from eval.measures.fidelity import TokenDistributions, selection_frequency
from eval.measures.held_out import cluster_of
from eval.measures.judging import MtBenchOptions, measure_mt_bench
from eval.measures.null_model import choose_requests, control_arms, null_distribution, select
from eval.measures.outcomes import Outcomes, observe
from eval.measures.safety import measure_safety
from eval.measures.statistics import Rate, wilson
from eval.measures.targets import Axis, Target
from eval.measures.transitions import Comparison, compare, moves
from eval.options import NamedEdit, Plan, RunOptions, SafetyInput, requests_for
from eval.results import Fidelity, Missing, MtBench, NullDistribution, SafetySet, SweepPoint
from ftri.prompts.sets import PromptRecord, PromptSet
from rewriter.errors import MoteError
from rewriter.semantics import DROP_RENORM, REROUTE, SEMANTICS, STIMULATE, SUPPRESS

if TYPE_CHECKING:
    import numpy as np

Say = Callable[[str], None]


@dataclass
class Inputs:
    """What is evaluated and on what."""

    options: RunOptions
    plan: Plan
    edit: NamedEdit
    target: Target
    prompts: Sequence[PromptRecord]
    neutral: PromptSet | None = None
    safety: Sequence[SafetyInput] = ()
    mt_bench: MtBenchOptions | None = None
    is_feasible: Callable[[Sequence[tuple[int, int]], Sequence[tuple[int, int]]], bool] = lambda down, up: True


@dataclass
class SideBySide:
    """Answers of several arms to the same requests, as journal keys: what transcripts.jsonl is written from."""

    part: str
    requests: Sequence[Request]
    outcomes: list[Outcomes]


@dataclass
class Measured:
    """Everything that a run found; parts that failed are in `missing`, with the sentence."""

    outcomes: dict[str, Outcomes] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    other_axis: list[Comparison] = field(default_factory=list)
    repeat_flips: Rate | None = None
    repeat_flips_at_risk: Rate | None = None
    controls: list[NullDistribution] = field(default_factory=list)
    sweep: list[SweepPoint] = field(default_factory=list)
    fidelity: list[Fidelity] = field(default_factory=list)
    safety: list[SafetySet] = field(default_factory=list)
    mt_bench: MtBench | None = None
    transcripts: list[SideBySide] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


class Run:
    """One evaluation in progress; `live` is None when servers answer."""

    def __init__(self, inputs: Inputs, collector: Collector, live: LiveResponder | None, say: Say) -> None:
        self.inputs = inputs
        self.collector = collector
        self.live = live
        self.say = say
        self.found = Measured()
        self.requests = requests_for(inputs.prompts, inputs.options)
        self.clusters = [cluster_of(prompt) for prompt in inputs.prompts for _ in range(inputs.options.samples)]
        self._neutral: NeutralText | None = None

    def measure(self) -> Measured:
        """Measure every part that was asked for.

        Raises: MoteError when not even the base and the variant could be compared; any later failure is kept in `missing`.
        """
        inputs = self.inputs
        plan = inputs.plan
        self.say(f"{len(self.requests)} answers of the base")
        base = self._observe(plan.base)
        for arm in plan.variants:
            self._attempt(
                f"variant {arm.name}",
                partial(self._observe_and_compare, base, arm),
                fatal=arm is plan.primary,
            )
        if plan.repeat is not None:
            repeat = plan.repeat
            self._attempt("A/A repeat", lambda: self._repeat(base, repeat))
        for arm in plan.others:
            if arm.checkpoint is None:
                self._attempt(f"variant {arm.name}", partial(self._observe_and_compare, base, arm))
        if self.live is not None:
            live = self.live
            if inputs.neutral is not None:
                self._attempt("fidelity", lambda: self._fidelity(live))
            if inputs.options.sweep_k:
                self._attempt("sweep over k", lambda: self._sweep(live, base))
            if inputs.options.controls:
                self._attempt("random controls", lambda: self._controls(live, base))
        for safety in inputs.safety:
            self._attempt(safety.name, partial(self._safety, safety))
        if inputs.mt_bench is not None:
            options = inputs.mt_bench
            self._attempt("MT-Bench", lambda: self._mt_bench(options))
        # Other checkpoints come last: each takes the place of the base's engine, and nothing may need that again.
        for arm in plan.others:
            if arm.checkpoint is not None:
                self._attempt(f"variant {arm.name}", partial(self._observe_and_compare, base, arm))
        outcomes = list(self.found.outcomes.values())
        self.found.transcripts.insert(0, SideBySide("prompts", self.requests, outcomes))
        return self.found

    def _attempt(self, part: str, work: Callable[[], None], *, fatal: bool = False) -> None:
        try:
            work()
        except MoteError as error:
            if fatal:
                raise
            self.say(f"{part}: {error}")
            self.found.missing.append(Missing(part=part, reason=str(error)))

    def _observe(self, arm: Arm) -> Outcomes:
        requests = self.requests
        if arm.repeat:
            requests = requests_for(self.inputs.prompts, self.inputs.options, repeat=arm.repeat)
        outcomes = observe(self.collector, arm, requests, label_cut=self.inputs.options.label_cut)
        self.found.outcomes[arm.name] = outcomes
        return outcomes

    def _observe_and_compare(self, base: Outcomes, arm: Arm) -> None:
        self._compare(base, self._observe(arm))

    def _compare(self, base: Outcomes, after: Outcomes) -> None:
        self.found.comparisons.append(self._comparison(self.inputs.target, base, after))
        other: Axis = "language" if self.inputs.target.axis == "behavior" else "behavior"
        label = "english" if other == "language" else "REFUSED"
        self.found.other_axis.append(self._comparison(Target(other, label, "leave"), base, after))

    def _comparison(self, target: Target, base: Outcomes, after: Outcomes) -> Comparison:
        return compare(
            target,
            base.arm.name,
            after.arm.name,
            base.labels(target.axis),
            after.labels(target.axis),
            self.clusters,
            seed=self.inputs.options.seed,
        )

    def _repeat(self, base: Outcomes, repeat: Arm) -> None:
        target = self.inputs.target
        before = base.labels(target.axis)
        after = self._observe(repeat).labels(target.axis)
        self.found.repeat_flips = wilson(sum(b != a for b, a in zip(before, after, strict=True)), len(before))
        at_risk, made = moves(target, before, after)
        self.found.repeat_flips_at_risk = wilson(sum(made), sum(at_risk))

    def _neutral_text(self) -> NeutralText:
        if self._neutral is None:
            assert self.inputs.neutral is not None
            options = self.inputs.options
            chosen = self.inputs.neutral.records[: options.neutral_prompts]
            # Greedy, whatever the run's own temperature: the text only has to be the base's own.
            sampling = Sampling(max_tokens=options.kl_tokens)
            requests = [Request(prompt.prompt_id, 0, (("user", prompt.text),), sampling) for prompt in chosen]
            answers = list(self.collector.answers(self.inputs.plan.base, requests))
            self._neutral = NeutralText.from_answers(answers, self.inputs.neutral.source)
        return self._neutral

    def _fidelity(self, live: LiveResponder) -> None:
        options, edit = self.inputs.options, self.inputs.edit
        self.say("divergence of reroute, drop and drop-renorm from the base and from each other")
        # Suppression and stimulation are different questions, so an edit with both is measured for each by itself.
        for action, pairs in ((SUPPRESS, edit.suppress), (STIMULATE, edit.stimulate)):
            if not pairs:
                continue
            semantics = SEMANTICS if action == SUPPRESS else (REROUTE, DROP_RENORM)
            arms = [
                Arm(
                    name=f"fidelity-{action}-{one}",
                    kind="variant",
                    semantics=one,
                    suppress=pairs if action == SUPPRESS else (),
                    stimulate=pairs if action == STIMULATE else (),
                )
                for one in semantics
            ]
            self.found.fidelity.append(
                measure_fidelity(
                    self.collector,
                    live,
                    arms,
                    self.inputs.plan.base,
                    self._neutral_text(),
                    action=action,
                    num_listed=options.kl_listed,
                    seed=options.seed,
                )
            )

    def _control_positions(self, base: Outcomes) -> list[int]:
        options, target = self.inputs.options, self.inputs.target
        return choose_requests(
            target,
            base.labels(target.axis),
            num_at_risk=options.control_prompts,
            num_others=options.control_others,
            seed=options.seed,
        )

    def _sweep(self, live: LiveResponder, base: Outcomes) -> None:
        options, edit, target = self.inputs.options, self.inputs.edit, self.inputs.target
        positions = self._control_positions(base)
        requests = [self.requests[position] for position in positions]
        chosen = select(base, positions)
        clusters = [self.clusters[position] for position in positions]
        base_cache: list[TokenDistributions] = []
        # Beyond the size of the set every k is the whole set.
        largest = max(len(edit.suppress), len(edit.stimulate))
        for count in sorted({min(count, largest) for count in options.sweep_k}):
            top = edit.top(count)
            arm = Arm(f"top-{count}", "sweep", self.inputs.plan.primary.semantics, top.suppress, top.stimulate)
            outcomes = observe(self.collector, arm, requests, label_cut=options.label_cut)
            before, after = chosen.labels(target.axis), outcomes.labels(target.axis)
            comparison = compare(target, "base", arm.name, before, after, clusters, seed=options.seed)
            at_risk, _ = moves(target, before, before)
            others = [b != a for b, a, risk in zip(before, after, at_risk, strict=True) if not risk]
            kl = None
            if self.inputs.neutral is not None:
                kl = kl_from_base(
                    self.collector,
                    live,
                    arm,
                    self.inputs.plan.base,
                    self._neutral_text(),
                    num_listed=options.kl_listed,
                    seed=options.seed,
                    base_cache=base_cache,
                )
            damaged = outcomes.damaged()
            self.found.sweep.append(
                SweepPoint(
                    num_experts=len(top.pairs),
                    semantics=str(arm.semantics),
                    moved=comparison.moved,
                    others_changed=wilson(sum(others), len(others)),
                    damaged=wilson(sum(damaged), len(damaged)),
                    kl_per_token=kl,
                )
            )

    def _controls(self, live: LiveResponder, base: Outcomes) -> None:
        options, edit, plan = self.inputs.options, self.inputs.edit, self.inputs.plan
        positions = self._control_positions(base)
        requests = [self.requests[position] for position in positions]
        layers, num_experts, frequency = self._router(live, base, positions)
        assert plan.primary.semantics is not None
        for matching in options.control_matching:
            arms = control_arms(
                matching,
                plan.primary.semantics,
                edit.suppress,
                edit.stimulate,
                layers=layers,
                num_experts=num_experts,
                num_sets=options.controls,
                seed=options.seed,
                frequency=frequency,
                is_feasible=self.inputs.is_feasible,
            )
            self.say(f"{len(arms)} random sets matched by {matching}, {len(requests)} prompts each")
            self.found.controls.append(
                null_distribution(
                    self.collector,
                    self.inputs.target,
                    matching,
                    arms,
                    requests,
                    select(base, positions),
                    select(self.found.outcomes[plan.primary.name], positions),
                    tested=edit.pairs,
                    frequency=frequency,
                    label_cut=options.label_cut,
                )
            )

    def _router(
        self, live: LiveResponder, base: Outcomes, positions: Sequence[int]
    ) -> tuple[list[int], int, Mapping[int, np.ndarray]]:
        """MoE layers, experts per layer and selections per token over the base's own answers to the control prompts."""
        import numpy as np

        keys = [base.keys[position] for position in positions]
        name = digest(["frequency", live.identity(), keys])[:32]
        if name not in self.collector.journal:
            answers = [self.collector.journal.answer(key) for key in keys]
            sequences = [answer.prompt_token_ids + answer.token_ids for answer in answers]
            model = live.model_for(self.inputs.plan.base)
            scored = live.score(self.inputs.plan.base, sequences, None, routing=True)
            routings = (one.routing for one in scored if one.routing is not None)
            frequency = selection_frequency(routings, list(model.moe_layers), model.num_experts)
            value: dict[str, Any] = {
                "num_experts": model.num_experts,
                "frequency": {str(layer): rates.tolist() for layer, rates in frequency.items()},
            }
            self.collector.journal.add_value(name, value)
        value = self.collector.journal.value(name)
        rates = {int(layer): np.asarray(numbers) for layer, numbers in value["frequency"].items()}
        return sorted(rates), int(value["num_experts"]), rates

    def _safety(self, safety: SafetyInput) -> None:
        options = self.inputs.options
        self.say(f"{safety.name}: {len(safety.prompts.records)} prompts")
        result, before, after, requests = measure_safety(
            self.collector,
            safety.name,
            safety.prompts,
            self.inputs.plan.base,
            self.inputs.plan.primary,
            options.sampling(),
            grouped=safety.grouped,
            label_cut=options.label_cut,
            seed=options.seed,
        )
        self.found.safety.append(result)
        self.found.transcripts.append(SideBySide(safety.name, requests, [before, after]))

    def _mt_bench(self, options: MtBenchOptions) -> None:
        self.say("MT-Bench")
        plan = self.inputs.plan
        sampling = self.inputs.options.sampling()
        result, warnings = measure_mt_bench(self.collector, plan.base, plan.primary, sampling, options)
        self.found.mt_bench = result
        self.found.warnings.extend(warnings)
