"""The model families: how a config describes the router, and what its tensors are called. One row a family.

Adding a family is adding a row to rewriter/family_rows.py; nothing else in the project knows a model by name.
Legend: L MoE layers, E routed experts, K selected experts (top-k), G expert groups.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from rewriter.errors import CheckpointError, UnknownFamilyError

Config = Mapping[str, Any]
LayerRule = Callable[[Config], tuple[int, ...]]
Score = Literal["sigmoid", "softmax", "sqrtsoftplus", "logit"]

# The width of the interval a router score lies in, where it has one; None: no finite margin can be computed.
SCORE_RANGE: dict[str, float | None] = {"sigmoid": 1.0, "softmax": 1.0, "sqrtsoftplus": None, "logit": None}


@dataclass(frozen=True)
class Family:
    """What one family calls things, and which edits of it are known to be safe.

    Tensor names are templates with {layer} and, where experts are separate tensors, {expert}; a template without
    {expert} in `expert_outputs` is one stacked tensor [E, ...]. Several templates of `bias` are alternatives;
    of `expert_outputs`, each alternative is a tuple of tensors that all belong to the expert's output.
    """

    name: str
    model_types: tuple[str, ...]
    source: str  # where the row's facts were read
    layers: LayerRule  # config -> the model layers that have routed experts
    num_experts: str  # config keys
    top_k: str
    bias: tuple[str, ...] = ()  # selection-bias tensor; () where the router has none
    expert_outputs: tuple[tuple[str, ...], ...] = ()
    score: Score | None = None  # what the bias is added to
    num_groups: str | None = None
    groups_kept: str | None = None
    renormalize: str | None = None  # config key of the renormalisation flag
    renormalize_default: bool = False  # what a config without the key means
    minus_inf_safe: bool = True  # runtimes of runtimes.md accept -inf in this bias
    can_stimulate: bool = True  # the bias selects without entering the weight
    num_other_choices: str | None = None  # config key: further choices behind the E experts ("zero experts")
    text_config: str | None = None  # key of the nested language-model config, where there is one
    notes: str = ""  # shown to the user with the plan


@dataclass(frozen=True)
class RouterLayout:
    """The routers of one model, as its config describes them."""

    family: Family
    moe_layers: tuple[int, ...]  # model layers with routed experts, ascending
    num_experts: int
    top_k: int
    num_groups: int
    groups_kept: int
    renormalize: bool
    num_other_choices: int = 0

    @property
    def has_bias(self) -> bool:
        """Whether the family's checkpoints carry a selection bias."""
        return bool(self.family.bias)

    @cached_property
    def score_range(self) -> float | None:
        """Width of the interval the score lies in; None when it has no bound."""
        return SCORE_RANGE[self.family.score] if self.family.score else None

    def bias_names(self, layer: int) -> tuple[str, ...]:
        """The names the selection bias of a model layer may have in the checkpoint."""
        return tuple(template.format(layer=layer) for template in self.family.bias)

    def expert_output_names(self, layer: int, expert: int) -> tuple[tuple[str, ...], ...]:
        """The alternatives for the tensors that make an expert's output, see Family."""
        return tuple(
            tuple(template.format(layer=layer, expert=expert) for template in alternative)
            for alternative in self.family.expert_outputs
        )


def router_layout(config: Config) -> RouterLayout:
    """Read a model config (the parsed config.json) with the row of its family.

    Raises: UnknownFamilyError when no row has the config's model_type; CheckpointError when a key the row needs is
    missing or not a positive number.
    """
    family = find_family(config)
    text = language_config(config, family)
    num_experts = _positive(text, family.num_experts, family)
    num_groups = _positive(text, family.num_groups, family, default=1)
    layers = family.layers(text)
    if not layers:
        raise CheckpointError(
            f"config.json: model_type {config.get('model_type')!r} is a Mixture-of-Experts family, but by its keys"
            " no layer has routed experts"
        )
    renormalize = text.get(family.renormalize) if family.renormalize else None
    return RouterLayout(
        family=family,
        moe_layers=layers,
        num_experts=num_experts,
        top_k=_positive(text, family.top_k, family),
        num_groups=num_groups,
        groups_kept=_positive(text, family.groups_kept, family, default=num_groups),
        renormalize=family.renormalize_default if renormalize is None else bool(renormalize),
        num_other_choices=int(text.get(family.num_other_choices) or 0) if family.num_other_choices else 0,
    )


def find_family(config: Config) -> Family:
    """The row for a config's model_type.

    Raises: UnknownFamilyError, which says how to add a row.
    """
    model_type = config.get("model_type")
    row = _rows_by_model_type().get(str(model_type))
    if row is None:
        raise UnknownFamilyError(
            f"config.json: model_type {model_type!r} has no row in the family table; known are"
            f" {', '.join(sorted(_rows_by_model_type()))}; to add it, append a Family row with its tensor names and"
            " config keys to rewriter/family_rows.py"
        )
    return row


def language_config(config: Config, family: Family) -> Config:
    """The part of a config that describes the language model: nested in multimodal families, else all of it."""
    if family.text_config and isinstance(config.get(family.text_config), Mapping):
        nested: Config = config[family.text_config]
        return nested
    return config


def _rows_by_model_type() -> dict[str, Family]:
    """The table as a mapping; imported here because the rows import this module's types."""
    from rewriter.family_rows import BY_MODEL_TYPE

    return BY_MODEL_TYPE


def _positive(config: Config, key: str | None, family: Family, default: int | None = None) -> int:
    """A config value that must be a positive whole number."""
    value = config.get(key) if key else None
    if value is None and default is not None:
        return default
    if type(value) is not int or value < 1:
        raise CheckpointError(
            f"config.json: {key} is {value!r}, expected a positive whole number (family {family.name})"
        )
    return value


def every_layer(config: Config) -> tuple[int, ...]:
    """All layers have routed experts."""
    return tuple(range(_num_layers(config)))


def after_dense(key: str) -> LayerRule:
    """The first config[key] layers are dense; then every `moe_layer_freq`-th layer (1 unless given) has experts."""

    def rule(config: Config) -> tuple[int, ...]:
        first, step = int(config.get(key) or 0), config.get("moe_layer_freq")
        if isinstance(step, list):  # a flag per layer
            return tuple(layer for layer, flag in enumerate(step) if flag)
        return tuple(layer for layer in range(first, _num_layers(config)) if layer % int(step or 1) == 0)

    return rule


def by_types(key: str, value: str, otherwise: LayerRule) -> LayerRule:
    """config[key] lists a type per layer, `value` marks those with experts; where the key is absent, another rule."""

    def rule(config: Config) -> tuple[int, ...]:
        types = config.get(key)
        if not isinstance(types, list):
            return otherwise(config)
        return tuple(layer for layer, kind in enumerate(types[: _num_layers(config)]) if kind == value)

    return rule


def by_step(step_key: str, dense_key: str) -> LayerRule:
    """Every config[step_key]-th layer has experts, except those listed in config[dense_key] (Qwen style)."""

    def rule(config: Config) -> tuple[int, ...]:
        step, dense = int(config.get(step_key) or 1), set(config.get(dense_key) or ())
        return tuple(
            layer for layer in range(_num_layers(config)) if layer not in dense and (layer + 1) % step == 0
        )

    return rule


def _num_layers(config: Config) -> int:
    """Number of layers of the language model, without multi-token-prediction modules."""
    value = config.get("num_hidden_layers", config.get("num_layers"))
    if type(value) is not int or value < 1:
        raise CheckpointError(f"config.json: num_hidden_layers is {value!r}, expected a positive whole number")
    return value
