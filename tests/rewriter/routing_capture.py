"""Runs a tiny transformers model and records what its routers handed to its experts, layer by layer.

Legend: T tokens, K selected experts, D hidden size, E experts.
"""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from family_models import NUM_EXPERTS, VOCABULARY, TinyModel

EXPERTS_MODULE = re.compile(r"layers\.(\d+)\.(.*\.)?experts$")


@dataclass(frozen=True)
class Routing:
    """What reached the experts of one layer."""

    hidden: torch.Tensor  # [T, D]; for Llama 4 the token times its expert's score, which it applies before the expert
    selected: torch.Tensor  # [T, K] int64 expert ids
    weights: torch.Tensor  # [T, K]; for Llama 4 ones
    scaled_inputs: bool = False  # the experts take every expert's own inputs [E * T, D] instead (Llama 4, K = 1)


def load(tiny: TinyModel, folder: Path) -> Any:
    """The model as transformers loads it, in float32, every tensor of the checkpoint used and none made up."""
    transformers.utils.logging.disable_progress_bar()
    model_class = getattr(transformers, tiny.model_class)
    model, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {what: sorted(names) for what, names in info.items() if names}
    assert not problems, f"{tiny}: loading {folder} had problems: {problems}"
    return model.eval()


def experts_modules(model: Any) -> dict[int, Any]:
    """The module that holds the experts, by model layer."""
    modules = {}
    for name, module in model.named_modules():
        found = EXPERTS_MODULE.search(name)
        if found:
            modules[int(found.group(1))] = module
    return modules


def prompt_ids(num_sequences: int = 3, length: int = 60, seed: int = 7) -> torch.Tensor:
    """Random prompts [sequences, length], int64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (num_sequences, length), generator=generator)


def capture(model: Any, input_ids: torch.Tensor) -> tuple[dict[int, Routing], torch.Tensor]:
    """Run the model once.

    Returns: the routing by model layer, and the logits [sequences, length, vocabulary].
    """
    seen: dict[int, Routing] = {}
    with ExitStack() as hooks, torch.no_grad():
        for layer, module in experts_modules(model).items():

            def record(_: Any, inputs: tuple[torch.Tensor, ...], layer: int = layer) -> None:
                seen[layer] = _routing(inputs)

            handle = module.register_forward_pre_hook(record)
            hooks.callback(handle.remove)
        logits = model(input_ids=input_ids).logits
    return seen, logits


def expert_output(module: Any, routing: Routing, expert: int) -> torch.Tensor:
    """What one expert alone makes of every recorded token [T, D], at weight 1."""
    num_tokens = routing.hidden.shape[0]
    # Two slots, the second of no weight: LongCat's experts cannot be called with one.
    selected = torch.full((num_tokens, 2), expert)
    weights = torch.tensor([[1.0, 0.0]]).repeat(num_tokens, 1)
    return experts_output(module, Routing(routing.hidden, selected, weights, routing.scaled_inputs))


def experts_output(module: Any, routing: Routing) -> torch.Tensor:
    """What the experts make of a routing [T, D]."""
    with torch.no_grad():
        if not routing.scaled_inputs:
            return module(routing.hidden, routing.selected, routing.weights)
        shares = torch.stack(
            [(routing.weights * (routing.selected == expert)).sum(1) for expert in range(NUM_EXPERTS)]
        )  # [E, T]
        inputs = shares[..., None] * routing.hidden
        return module(inputs.flatten(0, 1)).view(inputs.shape).sum(0)


def _routing(inputs: tuple[torch.Tensor, ...]) -> Routing:
    """What an experts module was called with."""
    if len(inputs) == 3:
        hidden, selected, weights = inputs
        return Routing(hidden.flatten(0, -2), selected, weights)
    (stacked,) = inputs
    stacked = stacked.view(NUM_EXPERTS, -1, stacked.shape[-1])
    live = stacked.abs().sum(2) > 0  # [E, T]
    assert (live.sum(0) == 1).all(), "expected one expert for each token"
    selected = live.int().argmax(0, keepdim=True).T
    return Routing(stacked.sum(0), selected, torch.ones(selected.shape), scaled_inputs=True)
