"""Greedy answers and recorded routing of the miniature in PyTorch, with experts suppressed (reroute).

Letters: P prompts, L MoE layers, E experts, K selected.
"""

from collections.abc import Iterable, Sequence
from contextlib import contextmanager

import numpy as np
import tokens
import torch
from model import Miniature
from tokenizers import Tokenizer


@contextmanager
def suppressed(model: Miniature, pairs: Iterable[tuple[int, int]]):
    """Within the block, the (model layer, expert) pairs count as -inf in the selection: the next-best expert takes the slot."""
    by_layer: dict[int, list[int]] = {}
    for layer, expert in pairs:
        by_layer.setdefault(layer, []).append(expert)
    for layer, experts in by_layer.items():
        router = model.layers[layer].mlp
        router.suppressed = torch.zeros(model.config.num_experts)
        router.suppressed[experts] = -torch.inf
    try:
        yield
    finally:
        for router in model.routers():
            router.suppressed = None


def _by_length(encoded: Sequence[list[int]], at_most: int = 512) -> Iterable[list[int]]:
    groups: dict[int, list[int]] = {}
    for index, ids in enumerate(encoded):
        groups.setdefault(len(ids), []).append(index)
    for indexes in groups.values():
        for start in range(0, len(indexes), at_most):
            yield indexes[start : start + at_most]


@torch.inference_mode()
def generate(model: Miniature, tokenizer: Tokenizer, prompts: Sequence[str], max_new_tokens: int = 48) -> list[str]:
    """Greedy answers to user prompts, without the end token."""
    encoded = [tokenizer.encode(tokens.render(prompt), add_special_tokens=False).ids for prompt in prompts]
    end = tokenizer.token_to_id(tokens.EOS)
    texts = [""] * len(prompts)
    for indexes in _by_length(encoded):
        ids = torch.tensor([encoded[index] for index in indexes])
        caches: list[dict] = [{} for _ in model.layers]
        logits = model.lm_head(model.hidden_states(ids, caches=caches)[:, -1])
        position, written = ids.shape[1], []
        ended = torch.zeros(len(indexes), dtype=torch.bool)
        for _ in range(max_new_tokens):
            new = logits.argmax(-1)
            written.append(torch.where(ended, end, new))
            ended |= new == end
            if ended.all():
                break
            mask = torch.ones(1, 1, 1, position + 1, dtype=torch.bool)
            logits = model.lm_head(model.hidden_states(new.unsqueeze(1), position, mask, caches)[:, -1])
            position += 1
        for index, row in zip(indexes, torch.stack(written, 1).tolist(), strict=True):
            row = row[: row.index(end)] if end in row else row
            texts[index] = tokenizer.decode(row, skip_special_tokens=False)
    return texts


@torch.inference_mode()
def kl_from_base(
    model: Miniature,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    answers: Sequence[str],
    pairs: Iterable[tuple[int, int]],
) -> float:
    """Nats a token from the model to itself with the pairs suppressed, over its own answers and the tokens that end them."""
    pairs = list(pairs)
    starts = [len(tokenizer.encode(tokens.render(prompt), add_special_tokens=False).ids) for prompt in prompts]
    encoded = [
        tokenizer.encode(tokens.render(prompt) + answer + tokens.EOS, add_special_tokens=False).ids
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    total, count = 0.0, 0
    for indexes in _by_length(encoded, 64):
        ids = torch.tensor([encoded[index] for index in indexes])
        base = model.lm_head(model.hidden_states(ids)).double().log_softmax(-1)
        with suppressed(model, pairs):
            edited = model.lm_head(model.hidden_states(ids)).double().log_softmax(-1)
        divergence = (base.exp() * (base - edited)).sum(-1)
        for row, index in zip(divergence, indexes, strict=True):
            # The token at a place predicts the next one.
            answered = row[starts[index] - 1 : -1]
            total += float(answered.sum())
            count += len(answered)
    return total / count


@torch.inference_mode()
def prompt_maps(model: Miniature, tokenizer: Tokenizer, prompts: Sequence[str]) -> np.ndarray:
    """Prompt activation maps float32 [P, L, E]: prompt tokens that selected each expert (the paper's section on fTRI)."""
    encoded = [tokenizer.encode(tokens.render(prompt), add_special_tokens=False).ids for prompt in prompts]
    config = model.config
    maps = np.zeros((len(prompts), len(config.moe_layers), config.num_experts), np.float32)
    for indexes in _by_length(encoded):
        model.hidden_states(torch.tensor([encoded[index] for index in indexes]))
        for row, router in enumerate(model.routers()):
            chosen = router.selected.view(len(indexes), -1).numpy()
            for prompt, experts in zip(indexes, chosen, strict=True):
                maps[prompt, row] = np.bincount(experts, minlength=config.num_experts)
    return maps


def resonance(maps: np.ndarray, of_class: np.ndarray) -> np.ndarray:
    """The fTRI map [L, E]: mean map of the class minus mean map of all other prompts (pooled)."""
    return maps[of_class].mean(0) - maps[~of_class].mean(0)


def top_experts(scores: np.ndarray, moe_layers: Sequence[int], count: int) -> list[tuple[int, int]]:
    """The (model layer, expert) pairs of the highest resonance."""
    best = np.argsort(-scores, axis=None, kind="stable")[:count]
    return [(moe_layers[row], int(expert)) for row, expert in zip(*np.unravel_index(best, scores.shape), strict=True)]


def random_sets(
    maps: np.ndarray,
    chosen: Sequence[tuple[int, int]],
    moe_layers: Sequence[int],
    number: int,
    matched: bool,
    seed: int,
) -> list[list[tuple[int, int]]]:
    """Random sets without the chosen experts: uniform, or each matched in layer and in activation frequency.

    Matched: a stand-in is drawn among the ten experts of the same layer whose frequency is nearest.
    """
    generator = np.random.default_rng(seed)
    frequency = maps.mean(0)
    everything = [(layer, expert) for layer in moe_layers for expert in range(maps.shape[2])]
    free = [pair for pair in everything if pair not in set(chosen)]
    sets = []
    for _ in range(number):
        if not matched:
            sets.append([free[index] for index in generator.choice(len(free), len(chosen), replace=False)])
            continue
        taken: list[tuple[int, int]] = []
        for layer, expert in chosen:
            row = moe_layers.index(layer)
            open_ = [pair for pair in free if pair[0] == layer and pair not in taken]
            distance = [abs(frequency[row, pair[1]] - frequency[row, expert]) for pair in open_]
            taken.append(open_[generator.choice(np.argsort(distance, kind="stable")[:10])])
        sets.append(taken)
    return sets
