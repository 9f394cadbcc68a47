"""Checkpoints that transformers 5 saved again with its own names (`save_original_format=False`): the rows find them too."""

from pathlib import Path

import pytest
from family_models import TINY_MODELS, TinyModel, build_tiny_model

from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.zero import find_weight

QUICK = ("qwen3_moe", "minimax_m2", "hy_v4", "granitemoe")
MODELS = [
    pytest.param(tiny, id=str(tiny), marks=() if str(tiny) in QUICK else pytest.mark.slow)
    for tiny in TINY_MODELS
    if not tiny.renames
]


@pytest.mark.parametrize("tiny", MODELS)
def test_bias_router_and_outputs_are_found(tiny: TinyModel, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(build_tiny_model(tiny, tmp_path / "saved", published_names=False))
    layout = checkpoint.layout
    for layer in layout.moe_layers:
        outputs = layout.expert_output_names(layer, layout.num_experts - 1)
        found = [[find_weight(checkpoint, name) for name in names] for names in outputs]
        assert any(all(weights) for weights in found), (layer, outputs)
        if layout.has_bias and layer not in layout.unbiased_layers:
            assert checkpoint.find(layout.bias_names(layer)) is not None
        if layout.family.router:
            assert any(template.format(layer=layer) in checkpoint.weight_map for template in layout.family.router)
