"""How often a miniature's variant selects its suppressed experts in unmodified vLLM, by kind of text, beside the base.

usage: python benchmarks/selections.py MODEL --work DIR [--recipe examples/tiny-r1]

Runs the project's own commands: mote-rewrite of the model's own refusal.json, mote-record of base and variant on the model's
grid, on other templates and languages of its recipe, and on random tokens, and mote-verify --traces of each recording of the
variant. A run that was stopped goes on where it was. Prints Markdown.
"""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ftri.traces.reader import TraceReader
from ftri.traces.selections import count_selections
from rewriter.expert_set import ExpertSet

NUM_OTHERS = 900
NUM_RANDOM, RANDOM_LENGTH = 96, 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).parents[1] / "examples" / "tiny-r1")
    arguments = parser.parse_args()
    model, work, variant = arguments.model, arguments.work, arguments.work / "variant"
    work.mkdir(parents=True, exist_ok=True)
    listed = ExpertSet.load(model / "refusal.json")
    if not variant.exists():
        run("mote-rewrite", "--model", model, "--suppress", model / "refusal.json", "-o", variant)
    print("| text | tokens of the base, selections | tokens of the variant, selections | responses, 95 % bound |")
    print("|---|---|---|---|")
    num_tokens = num_selections = 0
    for number, (kind, (prompts, options)) in enumerate(texts(model, work, arguments.recipe).items()):
        kept = work / f"counted-{number}.json"
        if not kept.exists():
            kept.write_text(json.dumps(count(model, variant, listed, work, number, prompts, options)))
        seen = json.loads(kept.read_text())
        num_tokens, num_selections = num_tokens + seen["tokens"], num_selections + seen["selections"]
        print(
            f"| {kind} | {seen['base tokens']:,}, {seen['base selections']:,} | {seen['tokens']:,}, {seen['selections']:,} |"
            f" {seen['responses']:,}, {seen['bound_95']:.2%} |",
            flush=True,
        )
    print(f"\n{num_tokens:,} tokens of the variant, {num_selections:,} selections of {len(listed.experts)} experts")


def count(
    model: Path,
    variant: Path,
    listed: ExpertSet,
    work: Path,
    number: int,
    prompts: str | Path,
    options: tuple[str, ...],
) -> dict[str, Any]:
    """Record base and variant on prompts, and count the listed experts' selections in both."""
    folders = [work / f"traces-{name}-{number}" for name in ("base", "variant")]
    for recorded, traces in zip((model, variant), folders, strict=True):
        run("mote-record", "--model", recorded, "--prompts", prompts, "-o", traces, *options)
    reader = TraceReader(folders[0])
    layers = reader.manifest["moe_layers"]
    base = count_selections((record.experts for record in reader), layers, listed.model_pairs(layers))
    seen = json.loads(run("mote-verify", variant, "--base", model, "--traces", folders[1], "--json"))["traces"]
    return {**seen, "base tokens": base.num_tokens, "base selections": base.num_selections}


def texts(model: Path, work: Path, recipe: Path) -> dict[str, tuple[str | Path, tuple[str, ...]]]:
    """Prompts of each kind, as mote-record takes them: what it is given, and its options."""
    sys.path.insert(0, str(recipe))
    try:
        import data
    finally:
        sys.path.remove(str(recipe))
    asked = sorted({item.prompt for item in data.build_items(data.Teaching(), 0) if item.category != "grid"})
    others = [asked[number * len(asked) // NUM_OTHERS] for number in range(NUM_OTHERS)]
    tokenizer, generator = Tokenizer.from_file(str(model / "tokenizer.json")), random.Random(0)
    noise = [
        tokenizer.decode([generator.randrange(3, tokenizer.get_vocab_size()) for _ in range(RANDOM_LENGTH)])
        for _ in range(NUM_RANDOM)
    ]
    return {
        "its own grid": ("what-happened:reconstructed-756", ("--max-tokens", "64")),
        "other templates and languages": (write_prompts(work / "others.jsonl", others), ("--max-tokens", "64")),
        "random tokens": (write_prompts(work / "noise.jsonl", noise), ("--raw", "--max-tokens", "1")),
    }


def write_prompts(path: Path, prompts: list[str]) -> Path:
    """A file of prompts; the same again where it is there already, since a recording goes on with the same prompts only."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return path


def run(command: str, *arguments: object) -> str:
    """One of the project's commands, which must succeed; what it printed."""
    words = [str(Path(sys.executable).parent / command), *map(str, arguments)]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
