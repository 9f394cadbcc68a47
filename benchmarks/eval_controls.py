"""What random controls cost, old way and new: seconds and tokens a set, sets until p is decided, and the labels that differ.

usage: python benchmarks/eval_controls.py MODEL [EXPERT_SET] [--controls 99] [--timed 20] [--at-risk 24] [--others 6]
                                                [--max-tokens 64] [--max-num-seqs 256] [--dtype float32]
                                                [--compiled] [--reload]

One engine answers the same prompts, chosen as mote-eval chooses them, under the same random sets, by turns in three ways: a set
at a time in whole answers; ten sets a pass in whole answers; and ten sets a pass with each answer ended once its label is
decided, which is what mote-eval does. All are kept and labelled as mote-eval does. Then the sequential test, for expert sets of
which chance does more and less: how many of the planned sets it runs, and what a matching costs all in all, old way against
new. With --compiled, the two new ways have a compiled engine of their own, while live edits were eager only once; the time of
its start is told. With --reload, what there is without live edits, a rewrite and a load for each set, is measured on one set.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eval.answers.arms import Arm, Pair, Request
from eval.answers.engine import load_model
from eval.answers.journal import Collector, Journal
from eval.answers.live import LiveResponder
from eval.answers.plan import requests_for
from eval.measures.controls import SETS_A_ROUND, choose_requests, labels_alone, null_distribution
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
from rewriter.families.family import RouterLayout
from rewriter.families.lookup import router_layout
from rewriter.variant.write import write_variant

BASE = Arm("base", "base")
NUM_LOOKED_AT = 180  # prompts that the base answers, to choose from


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("expert_set", type=Path, nargs="?", help="MODEL's refusal.json by default")
    parser.add_argument("--controls", type=int, default=99, help="random sets that are planned, as mote-eval's default")
    parser.add_argument("--timed", type=int, default=20, help="of these, run in all three ways")
    parser.add_argument("--at-risk", type=int, default=24, help="prompts that the base refuses")
    parser.add_argument("--others", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--dtype", default="auto", help="of the engine [default: the checkpoint's]")
    parser.add_argument("--compiled", action="store_true", help="the new ways in a compiled engine")
    parser.add_argument("--reload", action="store_true", help="also rewrite and load one set as a checkpoint")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    checkpoint = Checkpoint.open(arguments.model)
    layout = router_layout(checkpoint.config)
    listed = ExpertSet.load(arguments.expert_set or arguments.model / "refusal.json").model_pairs(layout.moe_layers)
    render, template = make_render(arguments.model)
    records = load_prompts("what-happened:reconstructed-756")
    some = [records[number * len(records) // NUM_LOOKED_AT] for number in range(NUM_LOOKED_AT)]
    asked = requests_for(some, RunOptions(max_tokens=arguments.max_tokens))
    target = Target("behavior", "REFUSED", "leave")
    started = time.monotonic()
    engine_arguments = {"max_model_len": 512, "max_num_seqs": arguments.max_num_seqs, "dtype": arguments.dtype}
    model = load_model(str(arguments.model), None, render, template, None, engine_arguments, live_edits=True)
    load_seconds = time.monotonic() - started
    live = LiveResponder({"model": "benchmark"}, lambda checkpoint: model)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        journal = stack.enter_context(Journal(Path(folder) / "journal.jsonl", live.identity()))
        collector = Collector(live, journal)
        new = collector
        if arguments.compiled:
            new = compiled_collector(arguments.model, engine_arguments, Path(folder), stack)
        # Kernels are compiled at first use.
        labels = observe(collector, BASE, asked).behaviors
        positions = choose_requests(target, labels, num_at_risk=arguments.at_risk, num_others=arguments.others, seed=0)
        requests = [asked[position] for position in positions]
        observe(new, BASE, requests)
        base = observe(new, BASE, labels_alone(requests))
        arms = arms_like("random", listed, layout, arguments.controls)
        by_set, by_ten, short = Measured(), Measured(), Measured()
        # By turns, so that whatever else this machine does falls on all alike.
        for start in range(0, len(arms), SETS_A_ROUND):
            part = arms[start : start + SETS_A_ROUND]
            if start < arguments.timed:
                for arm in part:
                    measure(collector, [arm], requests, by_set)
                # The same edits under other names, or the journal would know the answers.
                measure(new, [replace(arm, repeat=1) for arm in part], requests, by_ten)
            measure(new, part, labels_alone(requests), short)
        print(
            f"{len(arms)} random sets of {len(listed)}, {len(requests)} prompts each, of which"
            f" {sum(label == 'REFUSED' for label in base.behaviors)} refused; engine load {load_seconds:.1f} s\n"
        )
        print("| way | seconds a set | answer tokens a set |\n|---|---|---|")
        for name, one in (
            ("a set a pass, whole answers", by_set),
            ("ten sets a pass, whole answers", by_ten),
            ("ten sets a pass, ended at the label", short),
        ):
            print(f"| {name} | {one.seconds / one.num_sets:.3f} | {one.tokens / one.num_sets:.0f} |")
        print()
        num_timed = len(by_set.labels)
        differing = sum(left != right for left, right in zip(by_set.labels, short.labels[:num_timed], strict=True))
        print(f"labels that differ: {differing} of {num_timed}")
        label_ratio = by_set.seconds / by_set.num_sets / (short.seconds / short.num_sets)
        batch_ratio = by_set.seconds / by_ten.seconds
        print(f"by batching {batch_ratio:.2f} times, with the end at the label {label_ratio:.2f} times\n")
        print(
            "| tested | flips | p of all sets | sequential p | sets run | old / new in time |\n|---|---|---|---|---|---|"
        )
        tested = [(f"the list's first {size}", listed[:size]) for size in range(1, len(listed) + 1)]
        for name, pairs in [
            ("a random set", list(arms_like("tested", listed, layout, 1, seed=1)[0].suppress)),
            *tested,
        ]:
            variant = observe(new, Arm(name, "other", "reroute", tuple(pairs)), labels_alone(requests))
            everything, stopped = (
                null_distribution(
                    new,
                    target,
                    "uniform",
                    arms,
                    labels_alone(requests),
                    base,
                    variant,
                    tested=pairs,
                    frequency=None,
                    label_cut=False,
                    stop_after=stop_after,
                )
                for stop_after in (len(arms) + 1, RunOptions.control_stop)
            )
            run = len(stopped.null_values)
            print(
                f"| {name} | {stopped.observed:.0%} | {everything.p_value:.2g} | {stopped.p_value:.2g} | {run} |"
                f" {label_ratio * len(arms) / run:.1f} |",
                flush=True,
            )
        if arguments.reload:
            reload_seconds = seconds_of_a_reload(checkpoint, arguments.model, arms[0], requests, live, folder)
            print(f"\na rewrite and a load for each set: {reload_seconds:.3f} s a set")
        live.close()


def compiled_collector(base: Path, engine_arguments: dict[str, Any], folder: Path, stack: ExitStack) -> Collector:
    """Asks a compiled engine, started here, with a journal of its own; `stack` ends both."""
    started = time.monotonic()
    render, template = make_render(base)
    compiled = {**engine_arguments, "enforce_eager": False}
    model = load_model(str(base), None, render, template, None, compiled, live_edits=True)
    print(f"load of the compiled engine {time.monotonic() - started:.1f} s")
    responder = LiveResponder({"model": "compiled"}, lambda checkpoint: model)
    stack.callback(responder.close)
    journal = stack.enter_context(Journal(folder / "compiled.jsonl", responder.identity()))
    return Collector(responder, journal)


def arms_like(name: str, pairs: Sequence[Pair], layout: RouterLayout, num_sets: int, seed: int = 0) -> list[Arm]:
    """Random sets of as many experts, as reroutes."""
    sets = random_sets(
        "uniform",
        pairs,
        layers=layout.moe_layers,
        num_experts=layout.num_experts,
        num_sets=num_sets,
        seed=seed,
    )
    return [Arm(f"{name}-{number}", "control", "reroute", tuple(one)) for number, one in enumerate(sets)]


def seconds_of_a_reload(
    checkpoint: Checkpoint, base: Path, arm: Arm, requests: Sequence[Request], live: LiveResponder, folder: str
) -> float:
    """Seconds for a set as a checkpoint of its own: rewritten, loaded, and asked. The running engine ends."""
    live.close()
    started = time.monotonic()
    entries = [ExpertEntry(layer=layer, expert=expert) for layer, expert in arm.suppress]
    expert_set = ExpertSet(layer_index="model", behavior="random", experts=entries)
    variant = Path(folder) / "variant"
    write_variant(make_plan(checkpoint, expert_set, None, EditOptions(semantics="reroute")), base, variant)
    render, template = make_render(base)
    model = load_model(str(variant), None, render, template, None, {"max_model_len": 512}, live_edits=False)
    other = LiveResponder({"model": "reloaded"}, lambda checkpoint: model)
    with Journal(Path(folder) / "reloaded.jsonl", other.identity()) as journal:
        observe(Collector(other, journal), Arm("variant", "base"), requests)
    seconds = time.monotonic() - started
    other.close()
    return seconds


@dataclass
class Measured:
    """Seconds, answer tokens and labels of all sets so far."""

    num_sets: int = 0
    seconds: float = 0.0
    tokens: int = 0
    labels: list[str] = field(default_factory=list)


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
