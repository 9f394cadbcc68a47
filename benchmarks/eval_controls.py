"""Random controls, three ways: seconds and tokens a set, their ratios, and the labels that differ.

usage: python benchmarks/eval_controls.py MODEL [--controls 30] [--prompts 60] [--max-tokens 64] [--experts 6]
                                                 [--max-num-seqs 256]

One engine answers the same prompts under the same random sets: a set at a time in whole answers, and ten sets a pass with each
answer ended once its label is decided, which is what mote-eval does; by turns, and both kept and labelled as mote-eval does.
The sequential test is made of the first set against the others. What there is without live edits, a rewrite and a load for
each set, is measured on one set.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eval.answers.arms import Arm, Request
from eval.answers.engine import load_model
from eval.answers.journal import Collector, Journal
from eval.answers.live import LiveResponder
from eval.answers.plan import requests_for
from eval.measures.controls import SETS_A_ROUND, labels_alone, null_distribution
from eval.measures.random_sets import random_sets
from eval.options import RunOptions
from eval.outcomes.observed import observe
from eval.outcomes.targets import Target
from ftri.prompts.rendering import make_render
from ftri.prompts.sets import load_prompts
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.patches import EditOptions
from rewriter.edit.plan import make_plan
from rewriter.expert_set import ExpertEntry, ExpertSet
from rewriter.families.lookup import router_layout
from rewriter.variant.write import write_variant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--controls", type=int, default=30)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--experts", type=int, default=6)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    checkpoint = Checkpoint.open(arguments.model)
    layout = router_layout(checkpoint.config)
    sets = random_sets(
        "uniform",
        [(layer, expert) for expert in range(layout.num_experts) for layer in layout.moe_layers][: arguments.experts],
        layers=layout.moe_layers,
        num_experts=layout.num_experts,
        num_sets=arguments.controls,
        seed=0,
    )
    arms = [Arm(f"random-{number}", "control", "reroute", tuple(pairs)) for number, pairs in enumerate(sets)]
    render, template = make_render(arguments.model)
    listed = load_prompts("what-happened:reconstructed-756")
    chosen = [listed[number * len(listed) // arguments.prompts] for number in range(arguments.prompts)]
    requests = requests_for(chosen, RunOptions(max_tokens=arguments.max_tokens))
    started = time.monotonic()
    engine_arguments = {"max_model_len": 512, "max_num_seqs": arguments.max_num_seqs}
    model = load_model(str(arguments.model), None, render, template, None, engine_arguments, live_edits=True)
    load_seconds = time.monotonic() - started
    live = LiveResponder({"model": "benchmark"}, lambda checkpoint: model)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.jsonl", live.identity()) as journal:
        collector = Collector(live, journal)
        # Kernels are compiled at first use.
        observe(collector, Arm("base", "base"), requests)
        observe(collector, Arm("base", "base"), labels_alone(requests))
        whole, short = Measured(), Measured()
        # By turns, so that whatever else this machine does falls on both alike.
        for start in range(0, len(arms), SETS_A_ROUND):
            part = arms[start : start + SETS_A_ROUND]
            for arm in part:
                measure(collector, [arm], requests, whole)
            measure(collector, part, labels_alone(requests), short)
        # The first set as a variant, tested against the others, whose answers are there.
        base, tested = (observe(collector, arm, labels_alone(requests)) for arm in (Arm("base", "base"), arms[0]))
        null = null_distribution(
            collector,
            Target("behavior", "REFUSED", "leave"),
            "uniform",
            arms[1:],
            labels_alone(requests),
            base,
            tested,
            tested=arms[0].suppress,
            frequency=None,
            label_cut=False,
            stop_after=RunOptions.control_stop,
        )
        live.close()
        variant = Path(folder) / "variant"
        started = time.monotonic()
        entries = [ExpertEntry(layer=layer, expert=expert) for layer, expert in sets[0]]
        expert_set = ExpertSet(layer_index="model", behavior="random", experts=entries)
        plan = make_plan(checkpoint, expert_set, None, EditOptions(semantics="reroute"))
        write_variant(plan, arguments.model, variant)
        model = load_model(str(variant), None, render, template, None, engine_arguments, live_edits=False)
        with Journal(Path(folder) / "reloaded.jsonl", live.identity()) as other:
            observe(Collector(live, other), Arm("variant", "base"), requests)
        reload_seconds = time.monotonic() - started
        live.close()
    differing = sum(left != right for left, right in zip(whole.labels, short.labels, strict=True))
    print(
        f"{len(sets)} random sets of {arguments.experts}, {len(requests)} prompts each; engine load {load_seconds:.1f} s"
    )
    print(f"a rewrite and a load for each set   {reload_seconds:8.3f} s a set")
    print(f"a set a pass, whole answers         {whole.words()}")
    print(f"ten sets a pass, ended at the label {short.words()}")
    print(f"whole / ended at the label          {whole.seconds / short.seconds:8.2f} in time", end="")
    print(
        f" {whole.tokens / short.tokens:8.2f} in answer tokens, labels that differ {differing} of {len(whole.labels)}"
    )
    print(f"a load for each set / ended so      {reload_seconds * short.num_sets / short.seconds:8.2f}")
    run, planned = len(null.null_values), len(arms) - 1
    seconds = whole.seconds / whole.num_sets * planned, short.seconds / short.num_sets * run
    print(f"a set that is nothing special       p = {null.p_value:.2g} after {run} of {planned} sets:", end="")
    print(f" {seconds[0] / seconds[1]:.1f} times less than all of them in whole answers")


@dataclass
class Measured:
    """Seconds, answer tokens and labels of all sets so far."""

    num_sets: int = 0
    seconds: float = 0.0
    tokens: int = 0
    labels: list[str] = field(default_factory=list)

    def words(self) -> str:
        """Seconds and tokens a set."""
        return f"{self.seconds / self.num_sets:8.3f} s a set {self.tokens / self.num_sets:8.0f} answer tokens a set"


def measure(collector: Collector, arms: Sequence[Arm], requests: Sequence[Request], measured: Measured) -> None:
    """Run the arms over the requests in one pass, as mote-eval does, and add what that took."""
    started = time.monotonic()
    collector.complete_each(arms, requests)
    outcomes = [observe(collector, arm, requests) for arm in arms]
    measured.seconds += time.monotonic() - started
    measured.num_sets += len(arms)
    for one in outcomes:
        measured.labels += one.behaviors
        measured.tokens += sum(len(collector.journal.answer(key).token_ids) for key in one.keys)


if __name__ == "__main__":
    main()
