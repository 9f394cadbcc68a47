"""Random controls, three ways: seconds and tokens a set, their ratios, and the labels that differ.

usage: python benchmarks/eval_controls.py MODEL [--controls 30] [--prompts 60] [--max-tokens 64] [--experts 6]

One engine answers the same prompts under the same random sets: a set at a time in whole answers, and ten sets a pass with each
answer ended once its label is decided, which is what mote-eval does. Both keep and label every answer as mote-eval does.
What there is without live edits, a rewrite and a load for each set, is measured on one set.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from eval.answers.arms import Arm, Request
from eval.answers.engine import load_model
from eval.answers.journal import Collector, Journal
from eval.answers.live import LiveResponder
from eval.answers.plan import requests_for
from eval.measures.controls import SETS_A_ROUND, labels_alone
from eval.measures.random_sets import random_sets
from eval.options import RunOptions
from eval.outcomes.observed import observe
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
    engine_arguments = {"max_model_len": 512}
    model = load_model(str(arguments.model), None, render, template, None, engine_arguments, live_edits=True)
    load_seconds = time.monotonic() - started
    live = LiveResponder({"model": "benchmark"}, lambda checkpoint: model)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.jsonl", live.identity()) as journal:
        collector = Collector(live, journal)
        # Kernels are compiled at first use.
        observe(collector, Arm("base", "base"), requests)
        observe(collector, Arm("base", "base"), labels_alone(requests))
        whole = measure(collector, arms, requests, sets_a_pass=1)
        short = measure(collector, arms, labels_alone(requests), sets_a_pass=SETS_A_ROUND)
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
    print(f"a set a pass, whole answers         {whole.seconds:8.3f} s a set {whole.tokens:8.0f} answer tokens a set")
    print(f"ten sets a pass, ended at the label {short.seconds:8.3f} s a set {short.tokens:8.0f} answer tokens a set")
    print(
        f"ratios                              {reload_seconds / short.seconds:8.1f} {whole.seconds / short.seconds:8.1f}"
    )
    print(f"labels that differ                  {differing:8d} of {len(whole.labels)}")


class Measured:
    """Seconds and answer tokens a set, and the labels of all answers."""

    def __init__(self, seconds: float, tokens: float, labels: list[str]) -> None:
        self.seconds, self.tokens, self.labels = seconds, tokens, labels


def measure(collector: Collector, arms: Sequence[Arm], requests: Sequence[Request], sets_a_pass: int) -> Measured:
    """Run the arms over the requests as mote-eval does."""
    started = time.monotonic()
    labels: list[str] = []
    keys: list[str] = []
    for start in range(0, len(arms), sets_a_pass):
        part = arms[start : start + sets_a_pass]
        collector.complete_each(part, requests)
        for arm in part:
            outcomes = observe(collector, arm, requests)
            labels += outcomes.behaviors
            keys += outcomes.keys
    seconds = (time.monotonic() - started) / len(arms)
    tokens = sum(len(collector.journal.answer(key).token_ids) for key in keys) / len(arms)
    return Measured(seconds, tokens, labels)


if __name__ == "__main__":
    main()
