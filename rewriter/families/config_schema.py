"""What is read of a model's config.json, typed: every key that a row or a layer rule of the family table names.

Adding a key is adding a field here; a row with a key that is not a field fails a test.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rewriter.errors import CheckpointError, quoted
from rewriter.families.layer_rules import Config

MAX_LAYERS = 10_000  # far above every model; a typing error must not cost gigabytes
MAX_EXPERTS = 100_000

POSITIVE = "a positive whole number"
Layers = Annotated[int, Field(ge=1, le=MAX_LAYERS, description=f"{POSITIVE} up to {MAX_LAYERS}")]
Layer = Annotated[int, Field(ge=0, le=MAX_LAYERS, description=f"a whole number from 0 to {MAX_LAYERS}")]
LastLayer = Annotated[int, Field(ge=-1, le=MAX_LAYERS, description=f"a whole number from -1 to {MAX_LAYERS}")]
Experts = Annotated[int, Field(ge=1, le=MAX_EXPERTS, description=f"{POSITIVE} up to {MAX_EXPERTS}")]
Choices = Annotated[int, Field(ge=0, le=MAX_EXPERTS, description=f"a whole number from 0 to {MAX_EXPERTS}")]
LayerList = Annotated[list[Layer], Field(max_length=MAX_LAYERS, description="a list of layer numbers")]
TypeList = Annotated[list[str], Field(max_length=MAX_LAYERS, description="a list with a type for each layer")]
FlagList = Annotated[
    list[Annotated[int, Field(ge=0, le=1)] | bool],
    Field(max_length=MAX_LAYERS, description="a list with true or false for each layer"),
]
Flag = Annotated[bool, Field(description="true or false")]
LayerText = Annotated[
    str, Field(max_length=100 * MAX_LAYERS, pattern=r"^[\d,\s]*$", description="a list of layer numbers")
]
Pattern = Annotated[str, Field(max_length=MAX_LAYERS, description="a letter for each layer")]


class RouterKeys(BaseModel):
    """The keys of a language model's config that tell its layers and routers; None as if absent, other keys as they are."""

    model_config = ConfigDict(strict=True, extra="ignore")

    num_hidden_layers: Layers | None = None
    num_layers: Layers | None = None
    first_k_dense_replace: Layer | None = None
    num_dense_layers: Layer | None = None
    moe_layer_freq: Annotated[Layer | FlagList, Field(description="a whole number or a list of flags")] | None = None
    mlp_layer_types: TypeList | None = None
    layer_types: TypeList | None = None
    layers_block_type: TypeList | None = None
    is_moe_layer: FlagList | None = None
    moe_layers: Annotated[LayerList | LayerText, Field(description="a list of layer numbers")] | None = None
    moe_layers_enum: Annotated[LayerList | LayerText, Field(description="a list of layer numbers")] | None = None
    interleave_moe_layer_step: Layer | None = None
    decoder_sparse_step: Layer | None = None
    mlp_only_layers: LayerList | None = None
    moe_layer_start_index: Layer | None = None
    moe_layer_end_index: LastLayer | None = None
    moe_layer_interval: Layer | None = None
    hybrid_override_pattern: Pattern | None = None
    num_hash_layers: Layer | None = None

    n_routed_experts: Experts | None = None
    num_experts: Experts | None = None
    num_local_experts: Experts | None = None
    num_routed_experts: Experts | None = None
    moe_num_experts: Experts | None = None
    num_experts_per_tok: Experts | None = None
    num_experts_per_token: Experts | None = None
    experts_per_token: Experts | None = None
    moe_top_k: Experts | None = None
    moe_topk: Experts | None = None
    moe_k: Experts | None = None
    top_k_experts: Experts | None = None
    zero_expert_num: Choices | None = None
    n_group: Experts | None = None
    num_expert_group: Experts | None = None
    topk_group: Experts | None = None

    norm_topk_prob: Flag | None = None
    norm_expert_weight: Flag | None = None
    moe_renormalize: Flag | None = None
    route_norm: Flag | None = None
    use_expert_bias: Flag | None = None
    moe_router_enable_expert_bias: Flag | None = None
    router_enable_expert_bias: Flag | None = None
    enable_moe_block: Flag | None = None


class CheckedConfig(Mapping[str, Any]):
    """A config whose keys are looked at when they are read, so that what no row asks for may be anything.

    Reading a key raises CheckpointError where its value is not of the type that RouterKeys gives it.
    """

    def __init__(self, config: Config, where: str) -> None:
        """where: how messages call the config."""
        self._config, self._where = config, where

    def __getitem__(self, key: str) -> Any:
        value = self._config[key]
        if key in RouterKeys.model_fields:
            try:
                RouterKeys.model_validate({key: value})
            except ValidationError:
                raise CheckpointError(f"{self._where}: {key} is {quoted(value)}, expected {_expected(key)}") from None
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._config)

    def __len__(self) -> int:
        return len(self._config)


def _expected(key: str) -> str:
    """What a field must hold, in words: its own description or that of its type."""
    field = RouterKeys.model_fields[key]
    if field.description:
        return field.description
    for inner in getattr(field.annotation, "__args__", ()):
        for mark in getattr(inner, "__metadata__", ()):
            if getattr(mark, "description", None):
                return str(mark.description)
    raise AssertionError(f"{key} has no description")
