"""The snippets of docs/python.md run in their order, on traces with planted experts and a checkpoint of router biases."""

import json
import re
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


def test_the_snippets_run_in_their_order(workplace):
    names: dict[str, object] = {}
    snippets = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert len(snippets) >= 5
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"snippet {number} of {DOCUMENT.name}", "exec"), names)
    planted = {(FIRST_MOE_LAYER + row, expert) for row, expert in BEHAVIOR_EXPERTS}
    assert set(names["distinctive"]) == planted
    assert {(entry.layer, entry.expert) for entry in names["expert_set"].experts} == planted
    assert (workplace / "variant" / "config.json").is_file() and names["proof"].num_patches == len(planted)
