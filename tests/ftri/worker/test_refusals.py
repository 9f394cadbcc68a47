"""What edits cannot be made under is refused before weights are loaded, each with one sentence; by doubles of vLLM's configs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ftri.worker.models import SALTED_CONNECTORS, refuse_unrecorded, refuse_unsupported
from ftri.worker.routers import UneditableError, reach, refuse_monolithic


def config(**changes: Any) -> Any:
    """vLLM's config as far as refusals look at it; a change names its part by what it is an attribute of."""
    settings = {
        "enable_dbo": False,
        "data_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "enable_sp": False,
        "enable_adaptive_verification": False,
        "kv_connector": None,
    } | changes
    everything = SimpleNamespace(**settings)
    return SimpleNamespace(
        parallel_config=everything,
        speculative_config=everything if "enable_adaptive_verification" in changes else None,
        compilation_config=SimpleNamespace(pass_config=everything),
        kv_transfer_config=everything if "kv_connector" in changes else None,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("enable_dbo", True),
        ("data_parallel_size", 2),
        ("prefill_context_parallel_size", 2),
        ("decode_context_parallel_size", 2),
        ("enable_sp", True),
        ("enable_adaptive_verification", True),
        ("kv_connector", "HF3FSKVConnector"),
    ],
)
def test_settings_that_edits_per_request_cannot_bear_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is {value}, ") as refusal:
        refuse_unsupported(config(**{name: value}))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("enable_dbo", True), ("prefill_context_parallel_size", 2), ("decode_context_parallel_size", 2)],
)
def test_settings_that_a_recording_cannot_bear_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is {value}, expected it off while routing is recorded$"):
        refuse_unrecorded(config(**{name: value}))


def test_what_they_can_bear_is_not_refused() -> None:
    refuse_unrecorded(config(data_parallel_size=2, enable_sp=True))
    refuse_unsupported(config())
    refuse_unsupported(config(enable_adaptive_verification=False))
    for connector in (None, *SALTED_CONNECTORS):
        refuse_unsupported(config(kv_connector=connector))


def test_the_connectors_that_are_let_through_go_by_the_salt() -> None:
    """In this vLLM: block hashes hold the salt, and each of the connectors reads them or the salt."""
    from importlib.util import find_spec
    from pathlib import Path

    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent
    connectors = root / "distributed/kv_transfer/kv_connector/v1"
    places = {
        "OffloadingConnector": connectors / "offloading/scheduler.py",
        "SimpleCPUOffloadConnector": root / "v1/simple_kv_offload/manager.py",
        "LMCacheMPConnector": connectors / "lmcache_mp_connector.py",
    }
    assert places.keys() == SALTED_CONNECTORS
    assert all("request.block_hashes" in path.read_text() for path in places.values())
    assert "request.cache_salt" in (root / "v1/core/kv_cache_utils.py").read_text()


class Layer(torch.nn.Module):
    """What reach looks at of a MoE layer."""

    def __init__(self, router: Any, is_monolithic: bool) -> None:
        super().__init__()
        self.layer_id, self.router = 3, router
        method = SimpleNamespace(is_monolithic=is_monolithic)
        self.routed_experts = SimpleNamespace(quant_method=method)


@pytest.mark.parametrize(
    ("router", "is_monolithic", "sentence"),
    [
        (SimpleNamespace(mote_tables=None), True, "layer 3 routes inside a fused kernel .* --moe-backend"),
        (SimpleNamespace(), False, "layer 3: neither edits nor records reach a SimpleNamespace"),
    ],
)
def test_a_layer_that_no_edit_reaches_is_refused(
    router: Any, is_monolithic: bool, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftri.worker.internals.load", lambda name: {"MoERunner": Layer}[name])
    with pytest.raises(UneditableError, match=sentence):
        reach(torch.nn.Sequential(Layer(router, is_monolithic)))


def test_a_kernel_that_decides_to_route_by_itself_after_loading_gives_no_answer() -> None:
    with pytest.raises(UneditableError, match="layer 7 routes inside a fused kernel"):
        refuse_monolithic(7)(torch.zeros(1), router_logits=torch.zeros(1))


@pytest.mark.parametrize(
    ("architecture", "draft"),
    [
        ("Glm4MoeForCausalLM", "Glm4MoeMTPModel"),
        ("Glm4MoeLiteForCausalLM", "Glm4MoeLiteMTPModel"),
        ("MiMoV2FlashForCausalLM", "MiMoV2MTPModel"),
        ("DeepseekV3ForCausalLM", "DeepSeekMTPModel"),
    ],
)
def test_the_draft_of_an_editable_model_is_the_base_s(architecture: str, draft: str) -> None:
    from transformers import PretrainedConfig
    from vllm.config.speculative import SpeculativeConfig

    from ftri.worker.plugin import register

    register()
    model_type = "deepseek_v3" if "Deepseek" in architecture else "other"
    for prefix in ("", "Mote"):
        given = PretrainedConfig(architectures=[prefix + architecture], num_nextn_predict_layers=1)
        given.model_type = model_type
        assert SpeculativeConfig.hf_config_override(given).architectures == [draft]


def test_families_are_marked_whose_config_class_no_vllm_knows() -> None:
    """What the rewriter refuses of a dial, and what a server of it would, are the same."""
    from ftri.worker.configs import base_config_class
    from rewriter.families.lookup import BY_MODEL_TYPE

    for model_type, family in BY_MODEL_TYPE.items():
        if family.config_by_remote_code:
            with pytest.raises(ValueError, match="in the checkpoint's own code"):
                base_config_class(model_type)
        else:
            assert base_config_class(model_type) is not None


def test_families_are_marked_that_select_by_a_function_of_their_own() -> None:
    """In this vLLM's sources of the models that a family's row names."""
    import re
    from importlib.util import find_spec
    from pathlib import Path

    from rewriter.families.lookup import BY_MODEL_TYPE

    spec = find_spec("vllm")
    assert spec is not None and spec.origin is not None
    root, num_read = Path(spec.origin).parent.parent, 0
    for family in {id(one): one for one in BY_MODEL_TYPE.values()}.values():
        paths = [root / name for name in re.findall(r"vllm/model_executor/models/\w+\.py", family.source)]
        texts = [path.read_text() for path in paths if path.is_file()]
        num_read += bool(texts)
        assert any("custom_routing_function=" in text for text in texts) == family.own_routing_function, family.name
    assert num_read > 20


@pytest.mark.parametrize("model_type", ["phimoe", "llama4_text", "gemma4_text"])
def test_no_part_of_a_reroute_is_planned_for_such_a_family(model_type: str) -> None:
    """The worker let it pass, as nothing of it reached the function: the base's answer under an edit's name."""
    from ftri.worker.planning import RouterEdit, masked_entries
    from rewriter.errors import PlanError
    from rewriter.families.family import RouterLayout
    from rewriter.families.lookup import BY_MODEL_TYPE

    layout = RouterLayout(BY_MODEL_TYPE[model_type], (0, 1), 16, 2, 1, 1, renormalize=True)
    assert masked_entries(RouterEdit(suppress=[(1, 3)]), [(1, 3)], (), layout) == [(1, 3, float("-inf"))]
    with pytest.raises(PlanError, match="of which no part of a reroute is defined"):
        masked_entries(RouterEdit(suppress=[(1, 3)], strength=0.5), [(1, 3)], (), layout)
