"""Random controls in one engine load against an engine load for each: seconds per expert set, and their ratio.

usage: python benchmarks/eval_controls.py MODEL [--controls 30] [--prompts 60] [--max-tokens 64]

Both sides answer the same prompts under the same random sets; the second rewrites and loads a checkpoint for each set,
which is what there is without live edits, and is measured on one set only.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

from eval.answers.arms import Arm, Sampling
from eval.answers.engine import load_model
from eval.measures.random_sets import random_sets
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
    parser.add_argument("--experts", type=int, default=10)
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
    render, template = make_render(arguments.model)
    listed = load_prompts("what-happened:listed")
    chosen = [listed[number * len(listed) // arguments.prompts] for number in range(arguments.prompts)]
    prompts = [render((("user", prompt.text),)) for prompt in chosen]
    sampling = [Sampling(arguments.max_tokens)] * len(prompts)
    engine_arguments = {"max_model_len": 512, "max_num_seqs": 64}

    started = time.monotonic()
    model = load_model(str(arguments.model), None, render, template, engine_arguments, live_edits=True)
    load_seconds = time.monotonic() - started
    list(model.generate(prompts, sampling))  # warm up: kernels are compiled at first use
    started = time.monotonic()
    for pairs in sets:
        model.edit(Arm("random", "control", "reroute", tuple(pairs)))
        list(model.generate(prompts, sampling))
    live_seconds = time.monotonic() - started
    model.close()

    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        entries = [ExpertEntry(layer=layer, expert=expert) for layer, expert in sets[0]]
        expert_set = ExpertSet(layer_index="model", behavior="random", experts=entries)
        variant = Path(folder) / "variant"
        write_variant(
            make_plan(checkpoint, expert_set, None, EditOptions(semantics="reroute")), arguments.model, variant
        )
        rewritten = load_model(str(variant), None, render, template, engine_arguments, live_edits=False)
        list(rewritten.generate(prompts, sampling))
        reload_seconds = time.monotonic() - started
        rewritten.close()

    per_set = live_seconds / len(sets)
    print(f"engine load                       {load_seconds:8.1f} s")
    print(f"one engine, {len(sets):3d} sets             {per_set:8.2f} s per set ({len(prompts)} prompts)")
    print(f"rewrite and load for each set     {reload_seconds:8.2f} s per set")
    print(f"ratio                             {reload_seconds / per_set:8.1f}")


if __name__ == "__main__":
    main()
