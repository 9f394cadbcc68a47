"""The snippets of docs/python.md run in their order, on traces with planted experts and a checkpoint of router biases."""

import inspect
import json
import re
import tomllib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from synthetic import BEHAVIOR_EXPERTS, Plan, manifest, records
from tiny_models import TINY_R1_CONFIG

from ftri.traces.writer import write_traces

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "python.md"
PLAN = Plan(refusal_there=0.5, refusal_elsewhere=0.5)
FIRST_MOE_LAYER = 3
MODEL_MARK = "# on a model"
MINIATURE = DOCUMENT.parent.parent / "examples" / "tiny-r1"


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with `traces` and the `model` that they could be of."""
    write_traces(tmp_path / "traces", manifest(PLAN), records(PLAN))
    model = tmp_path / "model"
    model.mkdir()
    config = TINY_R1_CONFIG | {
        "num_hidden_layers": FIRST_MOE_LAYER + PLAN.num_layers,
        "first_k_dense_replace": FIRST_MOE_LAYER,
        "n_routed_experts": PLAN.num_experts,
    }
    (model / "config.json").write_text(json.dumps(config))
    names = [f"model.layers.{FIRST_MOE_LAYER + row}.mlp.gate.e_score_correction_bias" for row in range(PLAN.num_layers)]
    biases = {name: np.linspace(0, 0.1, PLAN.num_experts, dtype=np.float32) for name in names}
    save_file(biases, model / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_snippets(names, *, on_a_model):
    """Run those of the document's snippets that need a model, or those that need none."""
    snippets = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    chosen = [snippet for snippet in snippets if snippet.startswith(MODEL_MARK) == on_a_model]
    assert len(chosen) >= 3
    for number, snippet in enumerate(chosen):
        exec(compile(snippet, f"snippet {number} of {DOCUMENT.name}", "exec"), names)


def test_the_snippets_run_in_their_order(workplace):
    names: dict[str, object] = {}
    run_snippets(names, on_a_model=False)
    planted = {(FIRST_MOE_LAYER + row, expert) for row, expert in BEHAVIOR_EXPERTS}
    assert set(names["distinctive"]) == planted
    assert {(entry.layer, entry.expert) for entry in names["expert_set"].experts} == planted
    assert (workplace / "variant" / "config.json").is_file() and names["proof"].num_patches == len(planted)


@pytest.mark.slow
@pytest.mark.vllm
def test_the_snippets_on_a_model_run_on_the_miniature(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "model").symlink_to(MINIATURE)
    (tmp_path / "refusal.json").write_text((MINIATURE / "refusal.json").read_text())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"Path": Path}
    run_snippets(names, on_a_model=True)
    assert names["recorded"].responses == names["plan"].num_responses
    assert (tmp_path / "results" / "results.json").is_file() and names["results"].missing == []
    assert [(entry.layer, entry.expert) for entry in names["refined"].expert_set.experts]


NAMED = sorted(set(re.findall(r"`((?:rewriter|ftri|eval)(?:\.\w+)+)`", DOCUMENT.read_text())))


@pytest.mark.parametrize("name", NAMED)
def test_a_name_that_is_called_stable_is_there_and_typed(name):
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute)
    function = found.__init__ if inspect.isclass(found) else found
    if not (inspect.isclass(found) and issubclass(found, Exception)):
        parameters = [one for one in inspect.signature(function).parameters.values() if one.name != "self"]
        assert all(one.annotation is not inspect.Parameter.empty for one in parameters)
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty
    assert found.__doc__ and not attribute.startswith("_")


def test_every_command_has_its_functions_named():
    scripts = tomllib.loads((DOCUMENT.parent.parent / "pyproject.toml").read_text())["project"]["scripts"]
    table = DOCUMENT.read_text().split("## The function behind each command")[1]
    assert {name for name in scripts if f"| `{name}`" in table} == set(scripts)
