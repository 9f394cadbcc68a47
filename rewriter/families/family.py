"""What a row of the family table says: how a config describes the router, and what its tensors are called.

Legend: L MoE layers, E routed experts, K selected experts (top-k), G expert groups.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from rewriter.errors import CheckpointError, PlanError, quoted
from rewriter.families.config_schema import MAX_EXPERTS, CheckedConfig
from rewriter.families.layer_rules import Config, LayerRule

Keys = str | tuple[str, ...]  # a config key, or alternatives of which the first that is present counts
Score = Literal["sigmoid", "softmax", "sqrtsoftplus", "logit"]

# The width of the interval a router score lies in, where it has one; None: no finite margin can be computed.
SCORE_RANGE: dict[str, float | None] = {"sigmoid": 1.0, "softmax": 1.0, "sqrtsoftplus": None, "logit": None}


@dataclass(frozen=True)
class Family:
    """What one family calls things, and which edits of it are known to be safe.

    Tensor names are templates with {layer} and, where experts are separate tensors, {expert}; a template without
    {expert} in `expert_outputs` is one stacked tensor [E, ...]. Several templates of `bias` are alternatives;
    of `expert_outputs`, each alternative is a tuple of weights that all belong to the expert's output, named as they are
    unquantised and without biases: rewriter/edit/formats.py knows what else a weight is stored as, and finds its bias.
    `router` names the weight [E, D] of a router without a bias, a row an expert (so far in every family, stacked experts or
    not); a row of D numbers whose product with the hidden state is the expert's logit.
    """

    name: str
    model_types: tuple[str, ...]
    source: str  # where the row's facts were read
    layers: LayerRule  # config -> the model layers that have routed experts
    num_experts: Keys
    top_k: Keys
    bias: tuple[str, ...] = ()  # selection-bias tensor; () where the router has none
    bias_flag: str | None = None  # config key that says whether this model has the bias at all
    bias_flag_default: bool = True  # what a config without that key means
    unbiased_layers: LayerRule | None = None  # MoE layers that route by a token table, where no bias is read
    router: tuple[str, ...] = ()  # weight of a router without a bias, alternatives
    router_norm: tuple[
        str, ...
    ] = ()  # `.weight` and `.bias` of the LayerNorm before such a router, where it has a bias
    expert_outputs: tuple[tuple[str, ...], ...] = ()
    score: Score | None = None  # what the bias is added to
    num_groups: Keys | None = None
    groups_kept: Keys | None = None
    renormalize: str | None = None  # config key of the renormalisation flag
    renormalize_default: bool = False  # what a config without the key means; what the router does where there is no key
    minus_inf_safe: bool = True  # runtimes of docs/families.md accept -inf in this bias
    minus_inf_warning: str = ""  # where -inf is written only when it is insisted on: what goes wrong with it
    can_stimulate: bool = True  # the bias selects without entering the weight
    num_other_choices: str | None = None  # config key: further choices behind the E experts ("zero experts")
    text_config: str | None = None  # key of the nested language-model config, where there is one
    vllm_keys: tuple[tuple[str, Any], ...] = ()  # what vLLM must find in config.json to read the bias; None: any value
    vllm_cpu_fault: str = ""  # what keeps vLLM's CPU build from honouring an edited bias, base and variant alike
    own_routing_function: bool = (
        False  # vLLM selects by a function of the model's own, which a part of a reroute cannot reach
    )
    config_by_remote_code: bool = False  # neither transformers nor vLLM knows the config class: it comes with the model
    untestable: str = ""  # why no test could prove the row on a running model; empty where one does
    notes: str = ""  # shown to the user with the plan

    @property
    def takes_minus_inf(self) -> bool:
        """Whether -inf is written where nothing else is asked for."""
        return self.minus_inf_safe and not self.minus_inf_warning


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
    bias_enabled: bool = True  # the config does not switch the family's bias off
    unbiased_layers: tuple[int, ...] = ()  # of moe_layers, those that route by a token table
    missing_vllm_keys: tuple[str, ...] = ()  # "key: value" lines that vLLM needs and config.json lacks

    @property
    def has_bias(self) -> bool:
        """Whether the model's checkpoint carries a selection bias."""
        return bool(self.family.bias) and self.bias_enabled

    @cached_property
    def score_range(self) -> float | None:
        """Width of the interval the score lies in; None when it has no bound."""
        return SCORE_RANGE[self.family.score] if self.family.score else None

    @property
    def vllm_remark(self) -> str:
        """What keeps vLLM from reading this model's bias, the base's as much as a variant's; empty where nothing does."""
        if not self.missing_vllm_keys or not self.has_bias:
            return ""
        return (
            f"vLLM reads this family's router bias only where config.json has {' and '.join(self.missing_vllm_keys)}, which"
            " this model's lacks (saving a model again with transformers loses such keys)."
        )

    def bias_names(self, layer: int) -> tuple[str, ...]:
        """The names the selection bias of a model layer may have in the checkpoint.

        Raises: PlanError when the layer routes by a token table, so that no bias could change its selection.
        """
        if layer in self.unbiased_layers:
            raise PlanError(
                f"layer {layer}: family {self.family.name} routes the layers {_span(self.unbiased_layers)} by a table of"
                " tokens, where no bias is read; --semantics drop (the experts' output zeroed, their share kept)"
                " suppresses experts there"
            )
        return tuple(template.format(layer=layer) for template in self.family.bias) if self.bias_enabled else ()

    @property
    def num_candidates(self) -> int:
        """How many experts a token's top-k is chosen among: those of the groups that are kept."""
        return self.num_experts * self.groups_kept // self.num_groups

    @property
    def reroutes_by_default(self) -> bool:
        """Whether a router without a bias has so many experts that a centroid row is hardly ever selected: k <= E/8.

        Measured in docs/bias-free.md.
        """
        return bool(self.family.router) and not self.has_bias and 8 * self.top_k <= self.num_candidates

    def router_names(self, layer: int) -> tuple[str, ...]:
        """The names the weight of a router without a bias may have in the checkpoint."""
        return tuple(template.format(layer=layer) for template in self.family.router)

    def expert_output_names(self, layer: int, expert: int) -> tuple[tuple[str, ...], ...]:
        """The alternatives for the tensors that make an expert's output, see Family."""
        return tuple(
            tuple(template.format(layer=layer, expert=expert) for template in alternative)
            for alternative in self.family.expert_outputs
        )


def layout_of(family: Family, config: Config, where: str = "config.json") -> RouterLayout:
    """Read a model config with the row of its family; `where` is how messages call the config.

    Raises: CheckpointError when a key the row needs is missing or not a positive number.
    """
    text = CheckedConfig(language_config(config, family), where)
    layers = family.layers(text)
    if not layers:
        raise CheckpointError(
            f"{where}: {family.name} is a Mixture-of-Experts family, but by its keys no layer has routed experts: a dense"
            " model, which has nothing to edit"
        )
    num_experts = _positive(text, family.num_experts, family, where)
    num_groups = _positive(text, family.num_groups, family, where, default=1)
    renormalize = text.get(family.renormalize) if family.renormalize else None
    bias_enabled = text.get(family.bias_flag) if family.bias_flag else None
    unbiased = family.unbiased_layers(text) if family.unbiased_layers else ()
    return RouterLayout(
        family=family,
        moe_layers=layers,
        num_experts=num_experts,
        top_k=_positive(text, family.top_k, family, where),
        num_groups=num_groups,
        groups_kept=_positive(text, family.groups_kept, family, where, default=num_groups),
        renormalize=family.renormalize_default if renormalize is None else bool(renormalize),
        num_other_choices=int(text.get(family.num_other_choices) or 0) if family.num_other_choices else 0,
        bias_enabled=family.bias_flag_default if bias_enabled is None else bool(bias_enabled),
        unbiased_layers=tuple(layer for layer in unbiased if layer in layers),
        missing_vllm_keys=tuple(
            f"{key}: {'...' if value is None else value}"
            for key, value in family.vllm_keys
            if (text.get(key) is None if value is None else text.get(key) != value)
        ),
    )


def language_config(config: Config, family: Family) -> Config:
    """The part of a config that describes the language model: nested in multimodal families, else all of it."""
    if family.text_config and isinstance(config.get(family.text_config), Mapping):
        nested: Config = config[family.text_config]
        return nested
    return config


def _positive(config: Config, keys: Keys | None, family: Family, where: str, default: int | None = None) -> int:
    """A config value that must be a positive whole number, under the first of its keys that is present."""
    names = (keys,) if isinstance(keys, str) else keys or ()
    value = next((config[name] for name in names if config.get(name) is not None), None)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 1 <= value <= MAX_EXPERTS:
        raise CheckpointError(
            f"{where}: {' or '.join(names)} is {quoted(value)}, expected a positive whole number (family {family.name})"
        )
    return value


def _span(layers: tuple[int, ...]) -> str:
    """Layers in few words: `0..2` where they follow one another."""
    if len(layers) > 1 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}..{layers[-1]}"
    return ", ".join(map(str, layers))
