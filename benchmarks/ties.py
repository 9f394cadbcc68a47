"""Why a reroute (centroid) is not quite the true reroute in vLLM in bfloat16: equal router logits, and who wins them.

usage: python benchmarks/ties.py MODEL [EXPERT_SET] [--dtype bfloat16]

The base answers mote-eval's neutral prompts. Its answers are run again under both edits, as mote-eval runs them, a sequence at a
time, first with vLLM as it is and then with equal logits given to the expert of the lowest number in both. For each: choices that
differ, how many sequences first differ at equal logits, and the KL from the true reroute. Prints Markdown.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from ftri.engine.edits import RouterEdit
from ftri.engine.engine import Engine, Sampling
from ftri.prompts.sets import PromptRecord
from ftri.worker import routers, selection
from ftri.worker.selection import RoutingRule
from rewriter.expert_set import ExpertSet
from rewriter.semantics import CENTROID, REROUTE

MAX_TOKENS = 64
Choose = Callable[[torch.Tensor, torch.Tensor, RoutingRule], tuple[torch.Tensor, torch.Tensor]]


def lowest_first(logits: torch.Tensor, bias: torch.Tensor, rule: RoutingRule) -> tuple[torch.Tensor, torch.Tensor]:
    """`ftri.worker.selection.select` of a router without groups, where the lowest number wins among equal logits."""
    assert rule.num_groups == 1, "routers with groups are not compared here"
    scores = selection.score(logits, rule.scoring)
    # By the logits: softmax could make two of them equal that are not.
    ids = (logits.float() + bias).argsort(dim=-1, descending=True, stable=True)[:, : rule.top_k]
    weights = scores.gather(1, ids)
    if rule.renormalize:
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights * rule.scale, ids


@dataclass
class Seen:
    """Whether the last expert chosen and the first left out had equal logits, for each layer of a step in order: bool [T]."""

    is_tied: list[np.ndarray] = field(default_factory=list)


@contextmanager
def choosing(choose: Choose, seen: Seen) -> Iterator[None]:
    """Within, edited routers choose by `choose`, and where logits are equal is written down."""

    def watched(logits: torch.Tensor, bias: torch.Tensor, rule: RoutingRule) -> tuple[torch.Tensor, torch.Tensor]:
        best = (logits.float() + bias).topk(rule.top_k + 1, dim=-1).values
        seen.is_tied.append((best[:, -1] == best[:, -2]).numpy().copy())
        return choose(logits, bias, rule)

    original = routers.select
    routers.select = watched
    try:
        yield
    finally:
        routers.select = original


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("expert_set", type=Path, nargs="?", help="MODEL's refusal.json by default")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    listed = ExpertSet.load(arguments.expert_set or arguments.model / "refusal.json")
    engine_arguments = {"max_model_len": 512, "dtype": arguments.dtype}
    with Engine(str(arguments.model), live_edits=True, engine_arguments=engine_arguments) as engine:
        pairs = listed.model_pairs(list(engine.layout.moe_layers))
        text = (resources.files("eval.measures") / "neutral.jsonl").read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()]
        prompts = [engine.render(PromptRecord(row["prompt_id"], row["prompt"], {})) for row in rows]
        answers = sorted(engine.generate(prompts, Sampling(max_tokens=MAX_TOKENS)), key=lambda one: one.index)
        sequences = [[*one.prompt.token_ids, *one.token_ids] for one in answers]
        starts = [len(one.prompt.token_ids) for one in answers]
        print(
            "| ties | tokens | of equal logits | select a suppressed | other choice | sequences, first at equal logits",
            end="",
        )
        print(" | likeliest differs | KL to the true reroute |\n|---|---|---|---|---|---|---|---|")
        for name, choose in (("vLLM's and ours as they are", selection.select), ("the lowest number", lowest_first)):
            print(compare(name, engine, pairs, sequences, starts, choose), flush=True)


def compare(
    name: str,
    engine: Engine,
    pairs: Sequence[tuple[int, int]],
    sequences: Sequence[list[int]],
    starts: Sequence[int],
    choose: Choose,
) -> str:
    """A row of the table; starts: where each sequence's answer begins."""
    layers = list(engine.layout.moe_layers)
    num_tokens = num_tied = num_selecting = num_other = num_sequences = num_first_tied = num_likeliest = 0
    divergences = []
    for sequence, start in zip(sequences, starts, strict=True):
        seen = Seen()
        with choosing(choose, seen):
            (true,) = engine.score([sequence], edit=RouterEdit(REROUTE, suppress=pairs))
            (mean,) = engine.score([sequence], edit=RouterEdit(CENTROID, suppress=pairs))
        assert true.experts is not None and mean.experts is not None
        length = min(len(true.experts), len(mean.experts))
        differs = (np.sort(true.experts[:length], -1) != np.sort(mean.experts[:length], -1)).any(-1)  # [T, L]
        # Prefill runs the whole sequence at once, layer after layer; the one token that is generated behind it follows.
        tied = np.stack([one[:length] for one in seen.is_tied if len(one) >= length][: len(layers)], -1)
        num_tokens += length
        num_tied += int(tied.any(-1).sum())
        num_other += int(differs.any(-1).sum())
        for row, layer in enumerate(layers):
            chosen = [expert for at, expert in pairs if at == layer]
            num_selecting += int(np.isin(mean.experts[:length, row], chosen).any(-1).sum())
        if differs.any():
            first = int(differs.any(-1).argmax())
            num_sequences += 1
            num_first_tied += bool(tied[first, int(differs[first].argmax())])
        answered = slice(start - 1, None)
        own, other = true.logprobs[answered].astype(np.float64), mean.logprobs[answered].astype(np.float64)
        divergences.append((np.exp(own) * (own - other)).sum(-1))
        num_likeliest += int((own.argmax(-1) != other.argmax(-1)).sum())
    kl = np.concatenate(divergences)
    return (
        f"| {name} | {num_tokens:,} | {num_tied:,} | {num_selecting:,} | {num_other:,} | {num_sequences}, {num_first_tied} |"
        f" {num_likeliest:,} of {len(kl):,} | {kl.mean():.1e} |"
    )


if __name__ == "__main__":
    main()
