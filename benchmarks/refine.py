"""Experts by cause beside experts by correlation, on prompts that found neither: flips, KL, and p against random sets.

usage: python benchmarks/refine.py MODEL --work DIR [--prompts what-happened:reconstructed-756] [--controls 99] [--at-risk 30]

One engine: mote-tune's steps (recording, list, search on half of the prompts), then, on the other half, every ranking of
mote-ftri (statistics x positions) and the search's set at every size, each by its flips on all prompts at risk, its KL on
neutral prompts, and its p-value against random sets. A run that was stopped goes on where it was. Prints Markdown.
"""

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from eval.answers.arms import Arm, Pair, digest
from eval.answers.journal import Collector, Journal, unseen
from eval.answers.plan import requests_for
from eval.experts import is_routable
from eval.measures.controls import control_arms, labels_alone, null_distribution, selection_frequency
from eval.measures.neutral import NeutralText, kl_from_base, load_neutral
from eval.options import MATCHINGS
from eval.outcomes.held_out import split_prompts
from eval.outcomes.observed import Outcomes, observe, select
from eval.outcomes.targets import Target, move_rate
from eval.session import Session, open_session
from eval.tune.options import TuneRequest
from eval.tune.tune import OneEngine, plan_tuning, tune
from ftri.analysis import maps
from ftri.analysis.resonance import STATISTICS, rank
from ftri.analysis.significance import observed_scores
from ftri.labels.contrast import file_labeller, parse_contrast, read_labels
from ftri.traces.reader import TraceReader
from rewriter.expert_set import ExpertSet

BASE = Arm("base", "base")
PAPER = "paper/prompt"
NUM_EXPERTS = 6


@dataclass
class HeldOut:
    """The prompts that found nothing: all that are at risk, and the base's outcomes on them."""

    session: Session
    collector: Collector
    requests: list
    base: Outcomes
    text: NeutralText
    frequency: dict[int, np.ndarray]
    target: Target
    num_controls: int
    some: list[int]  # positions of the prompts that random sets answer
    cache: list

    def arm(self, pairs: Sequence[Pair]) -> Arm:
        """The set as a reroute."""
        return Arm("set", "other", "reroute", tuple(pairs))

    def flips(self, pairs: Sequence[Pair]) -> tuple[Outcomes, float]:
        """Outcomes of a set, and the share of refusals that it ends."""
        outcomes = observe(self.collector, self.arm(pairs), self.requests)
        return outcomes, move_rate(self.target, self.base.behaviors, outcomes.behaviors)

    def moved(self, pairs: Sequence[Pair]) -> float:
        """The share of refusals that a set ends, on the prompts that random sets answer."""
        outcomes = observe(self.collector, self.arm(pairs), [self.requests[position] for position in self.some])
        return move_rate(self.target, select(self.base, self.some).behaviors, outcomes.behaviors)

    def kl(self, pairs: Sequence[Pair]) -> float:
        """Nats a token of the base's answers to neutral prompts; kept in the journal."""
        live, journal, arm = self.session.live, self.collector.journal, self.arm(pairs)
        assert live is not None
        name = digest(["benchmark-kl", self.text.fingerprint(), arm.identity()])[:32]
        if name not in journal:
            found = kl_from_base(
                self.collector, live, arm, BASE, self.text, num_listed=128, seed=0, base_cache=self.cache
            )
            journal.add_value(name, found.estimate or 0.0)
        value: float = journal.value(name)
        return value

    def p_value(self, matching: str, pairs: Sequence[Pair]) -> str:
        """p, how many sets were run, and the most that one of them moved."""
        model, live = self.session.model, self.session.live
        assert model is not None and live is not None
        layers, num_experts = model.layout.moe_layers, model.layout.num_experts
        arms = control_arms(
            matching,  # type: ignore[arg-type]
            "reroute",
            pairs,
            (),
            layers=layers,
            num_experts=num_experts,
            num_sets=self.num_controls,
            seed=0,
            frequency=self.frequency,
            is_feasible=partial(is_routable, model),
        )
        outcomes, _ = self.flips(pairs)
        null = null_distribution(
            self.collector,
            self.target,
            matching,  # type: ignore[arg-type]
            arms,
            [self.requests[position] for position in self.some],
            select(self.base, self.some),
            select(outcomes, self.some),
            tested=pairs,
            frequency=self.frequency,
            label_cut=False,
            stop_after=10,
        )
        return f"{null.p_value:.3g} ({len(null.null_values)}, {null.highest:.0%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--prompts", default="what-happened:reconstructed-756")
    parser.add_argument("--controls", type=int, default=99)
    parser.add_argument("--at-risk", type=int, default=30, help="prompts at risk that random sets answer")
    parser.add_argument("--max-tokens", type=int, default=64)
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    request = TuneRequest(
        model=str(arguments.model),
        prompts=arguments.prompts,
        output=arguments.work / "tuned",
        k=NUM_EXPERTS,
        # Random sets are drawn below, for more sets than one.
        controls=0,
        max_tokens=arguments.max_tokens,
        engine_arguments={"max_model_len": 512},
    )
    started = time.monotonic()
    recording = plan_tuning(request, print)
    with closing(OneEngine(recording)) as engine:
        tune(request, recording, print, unseen, engine)
        print(f"{time.monotonic() - started:.0f} s for mote-tune's steps\n")
        evaluation = request.as_refinement().as_evaluation()
        session = open_session(evaluation, print, engine)
        with closing(session), Journal(arguments.work / "journal.jsonl", session.responder.identity()) as journal:
            compare(request, session, Collector(session.responder, journal), arguments)
    print(f"\n{time.monotonic() - started:.0f} s in all")


def compare(request: TuneRequest, session: Session, collector: Collector, arguments: argparse.Namespace) -> None:
    """Print the tables."""
    held_out = prepare(request, session, collector, arguments)
    refined = json.loads((request.refined.parent / "refine" / "refine.json").read_text())
    assert session.model is not None
    layout = session.model.layout
    path = [tuple(pair) for pair in ExpertSet.load(request.refined).model_pairs(layout.moe_layers)]
    ranked = rankings(request)
    paper = ranked[PAPER]
    size = len(path)
    print(f"{len(held_out.requests)} refusals among the prompts that found nothing\n")
    print("| set | experts | flips | KL |\n|---|---|---|---|")
    for name, pairs in [
        *((f"refined, first {count}", path[:count]) for count in range(1, size + 1)),
        *((f"the paper's list, first {count}", paper[:count]) for count in range(1, NUM_EXPERTS + 1)),
    ]:
        print(f"| {name} | {words(pairs)} | {held_out.flips(pairs)[1]:.1%} | {held_out.kl(pairs):.4f} |", flush=True)
    print(f"\nthe search moved {refined['moved']:.1%} by its own measure; with shuffled labels:", end=" ")
    print([(one["experts"], one["moved_in_search"], one["held_out_moved"]) for one in refined["nulls"]], "\n")
    everywhere = [(layer, expert) for layer in layout.moe_layers for expert in range(layout.num_experts)]
    generator = random.Random(0)
    null = [held_out.moved(generator.sample(everywhere, NUM_EXPERTS)) for _ in range(held_out.num_controls)]
    print(f"| ranking | flips of {size} | KL | flips of {NUM_EXPERTS} | KL | p of {NUM_EXPERTS} | rank of {path[0]} |")
    print("|---|---|---|---|---|---|---|")
    for name, pairs in ranked.items():
        few, many = pairs[:size], pairs[:NUM_EXPERTS]
        as_many = sum(value >= held_out.moved(many) for value in null)
        print(
            f"| {name} | {held_out.flips(few)[1]:.1%} | {held_out.kl(few):.4f} | {held_out.flips(many)[1]:.1%}"
            f" | {held_out.kl(many):.4f} | {(1 + as_many) / (1 + len(null)):.2g} | {pairs.index(path[0]) + 1} |",
            flush=True,
        )
    print(f"\np there: beside {len(null)} sets of {NUM_EXPERTS} drawn from all experts, the same for every ranking\n")
    print_p_values(held_out, path, paper)


def print_p_values(held_out: HeldOut, path: Sequence[Pair], paper: Sequence[Pair]) -> None:
    """The table of p-values of both lists against all matchings."""
    size = len(path)
    print(
        "| set (flips of those prompts) | "
        + " | ".join(f"p {matching} (sets, highest)" for matching in MATCHINGS)
        + " |\n|---|---|---|---|"
    )
    for name, pairs in (
        ("refined, first 1", path[:1]),
        (f"refined, {size}", path),
        (f"the paper's list, first {size}", paper[:size]),
        (f"the paper's list, {NUM_EXPERTS}", paper[:NUM_EXPERTS]),
    ):
        for matching in MATCHINGS:
            print(
                f"| {name} ({held_out.moved(pairs):.0%}) | " * (matching == MATCHINGS[0])
                + held_out.p_value(matching, pairs),
                end=" | ",
                flush=True,
            )
        print()


def prepare(request: TuneRequest, session: Session, collector: Collector, arguments: argparse.Namespace) -> HeldOut:
    """The testing half's refusals, the base's neutral text, and how often the base selects each expert on them."""
    evaluation = request.as_refinement().as_evaluation()
    live, model = session.live, session.model
    assert live is not None and model is not None
    recording = plan_tuning(request, lambda message: None)
    _, testing = split_prompts(recording.records, request.split, seed=request.seed)
    requests = requests_for(testing, evaluation.options)
    base = observe(collector, BASE, requests)
    risky = [position for position, label in enumerate(base.behaviors) if label == request.target_label]
    neutral = load_neutral(evaluation)
    assert neutral is not None
    answers = list(collector.answers(BASE, requests_for(neutral.records[:16], evaluation.options)))
    own = [journal_answer for journal_answer in map(collector.journal.answer, [base.keys[one] for one in risky])]
    scored = live.score(BASE, [one.prompt_token_ids + one.token_ids for one in own], None, routing=True)
    frequency = selection_frequency(
        (one.routing for one in scored if one.routing is not None),
        list(model.layout.moe_layers),
        model.layout.num_experts,
    )
    return HeldOut(
        session,
        collector,
        labels_alone([requests[position] for position in risky]),
        select(base, risky),
        NeutralText.from_answers(answers, neutral.source),
        frequency,
        Target("behavior", request.target_label, "leave"),
        arguments.controls,
        list(range(min(arguments.at_risk, len(risky)))),
        [],
    )


def rankings(request: TuneRequest) -> dict[str, list[Pair]]:
    """Every ranking of mote-ftri on the finding half, best expert first."""
    labels = read_labels(str(request.labels))
    compared = parse_contrast(request.target_label, labels.values())
    found = {}
    for positions in maps.POSITIONS:
        activation = maps.read_maps([TraceReader(request.recording)], compared, file_labeller(labels), positions)
        for name, statistic in STATISTICS.items():
            order = rank(observed_scores(activation, statistic)).tolist()
            found[f"{name}/{positions}"] = [
                (activation.moe_layers[flat // activation.num_experts], flat % activation.num_experts) for flat in order
            ]
    return found


def words(pairs: Sequence[Pair]) -> str:
    """Pairs as layer/expert."""
    return " ".join(f"{layer}/{expert}" for layer, expert in pairs)


if __name__ == "__main__":
    main()
