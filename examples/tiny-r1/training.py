"""One training stage: optimisation, load balancing by selection bias, checkpoints and resume."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as functional
from batches import Batch, Sampler
from model import Miniature
from tqdm import tqdm


@dataclass(frozen=True)
class StageOptions:
    """How one stage is trained."""

    name: str
    num_steps: int
    num_sequences: int
    learning_rate: float
    warmup_steps: int = 50
    weight_decay: float = 0.0
    # Step of the selection bias towards an even load; 0 freezes the biases.
    bias_rate: float = 0.0
    # Weight of the balancing loss, for routers without a bias.
    balance_weight: float = 0.0
    # Layers whose routed experts are taught; empty teaches everything.
    taught_layers: tuple[int, ...] = ()
    # New answers are taught by what the experts do at prompt tokens; kept answers by what they do at every token.
    prompt_only: bool = False
    # Weight of the sorting loss: how much an expert's selection should tell of the subject at hand.
    sorting_weight: float = 0.0
    sorting_temperature: float = 0.1  # of a softmax over what the router's selection compares
    sorting_floor: float = 0.7  # nats
    checkpoint_every: int = 100


def rate_at(step: int, options: StageOptions) -> float:
    """Linear warm-up, then a cosine down to a twentieth."""
    if step < options.warmup_steps:
        return options.learning_rate * (step + 1) / options.warmup_steps
    progress = (step - options.warmup_steps) / max(1, options.num_steps - options.warmup_steps)
    return options.learning_rate * (0.05 + 0.475 * (1 + math.cos(math.pi * progress)))


def choose_parameters(model: Miniature, options: StageOptions) -> list[torch.nn.Parameter]:
    """Mark what this stage trains and return it."""
    for parameter in model.parameters():
        parameter.requires_grad_(not options.taught_layers)
    for layer in options.taught_layers:
        model.layers[layer].mlp.gate_up.requires_grad_(True)
        model.layers[layer].mlp.down.requires_grad_(True)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def batch_loss(model: Miniature, batch: Batch, options: StageOptions) -> torch.Tensor:
    """Mean cross-entropy in nats over the answers' tokens."""
    inputs = batch.tokens[:, :-1]
    counted = batch.real[:, :-1].clone()
    counted[:, 0] = False  # the first token is the same in every prompt: no balance can spread it
    teaches = (batch.prompt[:, :-1] | ~batch.changed.unsqueeze(1)).flatten() if options.prompt_only else None
    for router in model.routers():
        router.counted = counted.flatten()
        router.teaches = teaches
    hidden = model.hidden_states(inputs)
    wanted = batch.target[:, 1:]
    logits = model.lm_head(hidden[wanted])
    loss = functional.cross_entropy(logits, batch.tokens[:, 1:][wanted])
    if options.sorting_weight:
        spread = sorting_loss(model, batch, options.sorting_temperature, options.sorting_floor)
        loss = loss + options.sorting_weight * spread
    if options.balance_weight:
        uneven = torch.stack([router.imbalance() for router in model.routers()])
        loss = loss + options.balance_weight * uneven.mean()
    return loss


def sorting_loss(model: Miniature, batch: Batch, temperature: float, floor: float) -> torch.Tensor:
    """How much a subject's tokens spread over experts less how much all subjects do, in nats, mean over the MoE layers.

    It is low where each subject has few experts (down to the entropy `floor`) and different subjects have different
    ones. Which expert serves which subject is left to training. Only tokens that can know the subject count: the
    prompt's last three and the answer's.
    """
    prompt = batch.prompt[:, :-1]
    knows = batch.real[:, :-1] & ~torch.cat((prompt[:, 3:], torch.zeros_like(prompt[:, :3])), 1)
    membership = functional.one_hot(batch.subject, int(batch.subject.max()) + 1).float()  # [B, subjects]
    membership = (membership.unsqueeze(1) * knows.unsqueeze(-1)).flatten(0, 1)  # [N, subjects]
    membership = membership[:, membership.sum(0) > 0]
    total = torch.zeros((), device=knows.device)
    for router in model.routers():
        chances = (router.choice / temperature).softmax(-1)
        by_subject = membership.t() @ chances / membership.sum(0).unsqueeze(1)
        total = total + entropy(by_subject).clamp(min=floor).mean() - entropy(by_subject.mean(0))
    return total / len(model.routers())


def entropy(chances: torch.Tensor) -> torch.Tensor:
    """Entropy in nats over the last axis."""
    return -(chances * (chances + 1e-9).log()).sum(-1)


def balance(model: Miniature, rate: float) -> None:
    """DeepSeek's auxiliary-loss-free balancing: raise the bias of idle experts, lower that of busy ones."""
    for router in model.routers():
        router.bias += rate * torch.sign(router.load.mean() - router.load)


def run_stage(
    model: Miniature, sampler: Sampler, options: StageOptions, seed: int, folder: Path, device: str = "cpu"
) -> None:
    """Train in place, resuming from this stage's checkpoint where there is one."""
    path = folder / f"{options.name}.pt"
    parameters = choose_parameters(model, options)
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=options.weight_decay, fused=True
    )
    first = 0
    if path.exists():
        saved = torch.load(path, map_location=device, weights_only=True)
        model.load_state_dict(saved["model"])
        first = saved["step"]
        if first < options.num_steps:
            optimizer.load_state_dict(saved["optimizer"])
    model.train()
    started = time.monotonic()
    stream = sampler.batches(options.num_sequences, seed, first)
    progress = tqdm(
        range(first, options.num_steps), desc=options.name, initial=first, total=options.num_steps, mininterval=10
    )
    average = 0.0
    for step in progress:
        batch = next(stream).to(device)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, options)
        loss = batch_loss(model, batch, options)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if options.bias_rate:
            balance(model, options.bias_rate * (1 - step / options.num_steps))
        average = loss.item() if step == first else 0.98 * average + 0.02 * loss.item()
        progress.set_postfix(loss=f"{average:.4f}", refresh=False)
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.num_steps:
            save_checkpoint(path, model, optimizer, step + 1, options)
    model.eval()
    for router in model.routers():
        router.counted = router.teaches = None
    tqdm.write(
        f"{options.name}: {options.num_steps - first} steps in {time.monotonic() - started:.0f} s, loss {average:.4f}"
    )


def save_checkpoint(
    path: Path, model: Miniature, optimizer: torch.optim.Optimizer, step: int, options: StageOptions
) -> None:
    """Write beside, then rename, so that a killed run leaves the last whole checkpoint."""
    state = {"model": model.state_dict(), "step": step}
    if step < options.num_steps:
        state["optimizer"] = optimizer.state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    torch.save(state, temporary)
    temporary.rename(path)
