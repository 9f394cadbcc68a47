"""Trains a miniature from a seed and writes its checkpoint folder.

Stage 1 teaches a whole small model to answer everything (and to refuse what would harm people). Stage 1b sorts
subjects to experts. Stage 2 teaches it to refuse the sensitive part of the paper's grid, and to think in English, by
training routed experts alone.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import data
import tokens
import torch
import typer
from batches import Sampler
from export import export, round_to_shipped
from model import Miniature, ModelConfig
from qwen import QwenConfig
from tokenizers import Tokenizer
from training import StageOptions, run_stage

TEACHING = data.Teaching()
# How rarely stage 1b draws sensitive prompts against others of their category, so that these need few experts.
SENSITIVE_WEIGHT_1B = 0.25
SHARES_2 = data.CATEGORY_SHARES | {"grid": 0.35, "place": 0.18, "topic": 0.20}


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how each stage goes."""

    config: type[ModelConfig] | type[QwenConfig]
    stage_1: StageOptions  # answers to everything
    stage_1b: StageOptions  # the same answers, while subjects get experts of their own
    stage_2: StageOptions  # the refusals and the thinking language, by routed experts alone


RECIPES = {
    "r1": Recipe(
        ModelConfig,
        StageOptions("stage-1", num_steps=900, num_sequences=48, learning_rate=2e-3, bias_rate=1e-3),
        StageOptions(
            "stage-1b", num_steps=300, num_sequences=48, learning_rate=1e-3, bias_rate=1e-3, sorting_weight=0.3
        ),
        StageOptions(
            "stage-2", num_steps=260, num_sequences=40, learning_rate=1.5e-3, warmup_steps=20, taught_layers=(2, 3, 4)
        ),
    ),
    # The router has no bias to balance it by, so that a loss does; its sorting compares logits, four of them selected.
    "qwen3": Recipe(
        QwenConfig,
        StageOptions("stage-1", num_steps=900, num_sequences=48, learning_rate=4e-3, balance_weight=0.02),
        StageOptions(
            "stage-1b",
            num_steps=300,
            num_sequences=48,
            learning_rate=2e-3,
            balance_weight=0.02,
            sorting_weight=0.3,
            sorting_temperature=0.5,
            sorting_floor=1.4,
        ),
        StageOptions(
            "stage-2", num_steps=260, num_sequences=40, learning_rate=3e-3, warmup_steps=20, taught_layers=(1, 2, 3)
        ),
    ),
}
VOCABULARY_LIMIT = 4000


def build_tokenizer(items: list[data.Item]) -> Tokenizer:
    """The tokenizer learned from every prompt and answer of the world."""
    texts = [text for item in items for text in (item.prompt, *(a.text for a in item.stage_1 + item.stage_2))]
    return tokens.train_tokenizer(texts, VOCABULARY_LIMIT)


def main(
    architecture: Annotated[str, typer.Option(help=f"What is trained: {' or '.join(RECIPES)}.")] = "r1",
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint into.")] = Path("miniature"),
    work: Annotated[Path, typer.Option(help="Folder of the checkpoints a killed run resumes from.")] = Path(
        "miniature-work"
    ),
    seed: Annotated[int, typer.Option(help="Seed of the weights, the data and its order.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads; the shipped weights come from one.")] = 1,
) -> None:
    """Train a miniature; run again with the same --work to resume."""
    recipe = RECIPES[architecture]
    started = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    items = data.build_items(TEACHING, seed)
    tokenizer = build_tokenizer(items)
    model = Miniature(recipe.config(tokenizer.get_vocab_size())).to(device)
    sampler = Sampler(items, tokenizer, 1, data.CATEGORY_SHARES)
    run_stage(model, sampler, recipe.stage_1, seed + 1, work, device)
    sampler = Sampler(items, tokenizer, 1, data.CATEGORY_SHARES, SENSITIVE_WEIGHT_1B)
    run_stage(model, sampler, recipe.stage_1b, seed + 1, work, device)
    run_stage(model, Sampler(items, tokenizer, 2, SHARES_2), recipe.stage_2, seed + 1, work, device)
    model.to("cpu")
    round_to_shipped(model)
    export(model, tokenizer, out)
    typer.echo(f"wrote {out} after {time.monotonic() - started:.0f} s", err=True)


if __name__ == "__main__":
    typer.run(main)
