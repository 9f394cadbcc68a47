"""What cannot be done live is refused before an engine loads: gpt-oss, whose router bias is part of the logit."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from eval.answers.plan import NamedEdit
from eval.experts import check_live_edit, load_others, open_model
from ftri.engine.edits import RouterEdit, plan_edit
from rewriter.checkpoint.reader import Checkpoint
from rewriter.errors import InputError, PlanError

GPT_OSS = {
    "model_type": "gpt_oss",
    "architectures": ["GptOssForCausalLM"],
    "num_hidden_layers": 2,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "hidden_size": 4,
}


@pytest.fixture
def gpt_oss(tmp_path):
    folder = tmp_path / "gpt-oss"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GPT_OSS))
    tensors = {f"model.layers.{layer}.mlp.router.bias": np.ones(8, np.float32) for layer in (0, 1)}
    save_file(tensors, folder / "model.safetensors")
    return open_model(str(folder), None, lambda message: None)


def test_gpt_oss_is_rerouted_live_by_minus_infinity(gpt_oss):
    check_live_edit(gpt_oss, NamedEdit("set", suppress=((0, 3), (1, 5))), ("reroute", "drop", "drop-renorm"))
    planned = plan_edit(RouterEdit("reroute", [(0, 3)]), Checkpoint.open(gpt_oss.folder), gpt_oss.layout)
    assert planned is not None
    assert list(planned.request.bias) == [(0, 3, -math.inf)]


def test_gpt_oss_is_not_stimulated_by_its_bias(gpt_oss):
    with pytest.raises(PlanError, match="gpt_oss"):
        check_live_edit(gpt_oss, NamedEdit("set", stimulate=((0, 3),)), ("reroute",))


@pytest.mark.parametrize("content", ["", "[1]", "{", "[" * 100_000])
def test_a_variant_folder_with_a_broken_config_is_one_sentence(gpt_oss, tmp_path, content):
    folder = tmp_path / "variant"
    folder.mkdir()
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match="expected a checkpoint folder that mote-rewrite wrote, or an expert-set file"):
        load_others(gpt_oss, [str(folder)], layer_index=None, any_model=False)
