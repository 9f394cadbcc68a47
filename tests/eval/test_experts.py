"""What cannot be done live is refused before an engine loads: gpt-oss, whose router bias is part of the logit."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import save_file

from eval.answers.engine import router_edit
from eval.answers.plan import NamedEdit, plan_live
from eval.experts import check_live_edit, load_others, open_model
from eval.options import RunOptions
from ftri.engine.edits import RouterEdit, ServedChoice, plan_edit
from rewriter.checkpoint.reader import Checkpoint
from rewriter.edit.dial import ServedSet, served_config
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


def serve(folder, base, *, has_dial):
    """A served variant's config.json, which is all that is read of the folder before it is loaded."""
    sets = {
        name: ServedSet(semantics="drop-renorm", suppress=pairs) for name, pairs in (("a", ((0, 3),)), ("b", ((1, 2),)))
    }
    _, config = served_config(Checkpoint.open(base), sets, None if has_dial else "a", has_dial=has_dial)
    folder.mkdir()
    for path in base.iterdir():
        (folder / path.name).hardlink_to(path)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_every_set_of_a_dial_is_a_variant_and_a_static_one_is_one(gpt_oss, tmp_path):
    dial, static = (serve(tmp_path / name, gpt_oss.folder, has_dial=name == "dial") for name in ("dial", "static"))
    others = load_others(gpt_oss, [str(dial), str(static)], layer_index=None, any_model=False)
    arms = plan_live(RunOptions(), NamedEdit("e", ((0, 5),)), others).others
    assert [(arm.name, arm.choice) for arm in arms] == [("dial:a", "a"), ("dial:b", "b"), ("static", None)]
    assert len({json.dumps(arm.identity()) for arm in arms}) == 3
    assert [router_edit(arm) for arm in arms] == [ServedChoice("a"), ServedChoice("b"), None]


def test_a_served_variant_of_another_model_is_refused(gpt_oss, tmp_path):
    dial = serve(tmp_path / "dial", gpt_oss.folder, has_dial=True)
    (gpt_oss.folder / "config.json").unlink()
    (gpt_oss.folder / "config.json").write_text(json.dumps(GPT_OSS | {"hidden_size": 8}))
    with pytest.raises(InputError, match="a served variant of a model with another config.json"):
        load_others(gpt_oss, [str(dial)], layer_index=None, any_model=False)
    (dial / "config.json").write_text((dial / "config.json").read_text().replace("drop-renorm", "dropped"))
    with pytest.raises(InputError, match="mote block"):
        load_others(gpt_oss, [str(dial)], layer_index=None, any_model=False)
