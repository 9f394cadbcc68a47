"""Every key of config.json that the family table reads has a type and a range; what it does not read may be anything."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

import pytest

from rewriter.errors import CheckpointError
from rewriter.families.config_schema import RouterKeys
from rewriter.families.family import Family
from rewriter.families.lookup import FAMILIES, router_layout

QWEN = {"model_type": "qwen3_moe", "num_hidden_layers": 4, "num_experts": 8, "num_experts_per_tok": 2}
# One value of each kind that a broken or hostile config has in place of a number, a list or a flag.
HOSTILE = (-1, 1e13, 10**30, float("nan"), float("inf"), "4", "\ud800", [], [None], {"a": 1}, True, -(10**4))


class Recorder(Mapping[str, Any]):
    """A config that remembers which keys were asked for."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.asked = config, set[str]()

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return self.config[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.config)

    def __len__(self) -> int:
        return len(self.config)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_all_keys_of_a_row_are_typed(family: Family) -> None:
    recorder = Recorder(
        {"num_hidden_layers": 4, "num_layers": 4, "hybrid_override_pattern": "MEME", "enable_moe_block": True}
    )
    family.layers(recorder)
    if family.unbiased_layers:
        family.unbiased_layers(recorder)
    keys = {family.bias_flag, family.renormalize, family.num_other_choices, None}
    for named in (family.num_experts, family.top_k, family.num_groups, family.groups_kept):
        keys |= {named} if isinstance(named, str) or named is None else set(named)
    assert (keys - {None}) | recorder.asked <= RouterKeys.model_fields.keys()


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_value_of_a_key_ends_in_anything_but_a_layout_or_a_sentence(family: Family) -> None:
    for key, value in product(RouterKeys.model_fields, HOSTILE):
        config = QWEN | {
            "model_type": family.model_types[0],
            "n_routed_experts": 8,
            "num_local_experts": 8,
            "moe_num_experts": 8,
            "num_experts_per_token": 2,
            "moe_topk": 2,
            "moe_k": 2,
            "moe_top_k": 2,
            "top_k_experts": 2,
            "num_layers": 4,
            "enable_moe_block": True,
            "hybrid_override_pattern": "MEME",
            key: value,
        }
        try:
            assert router_layout(config).moe_layers
        except CheckpointError as error:
            assert len(str(error)) <= 400 and str(error).isprintable()


def test_the_sentence_names_key_value_and_range() -> None:
    with pytest.raises(CheckpointError) as caught:
        router_layout(QWEN | {"num_hidden_layers": 10**13})
    assert str(caught.value) == (
        "config.json: num_hidden_layers is 10000000000000, expected a positive whole number up to 10000"
    )


def test_a_key_that_the_row_does_not_read_may_be_anything() -> None:
    assert router_layout(QWEN | {"n_group": "none", "hybrid_override_pattern": 7}).moe_layers == (0, 1, 2, 3)
