"""How a config says which layers have routed experts: one small rule for each way in which model families put it.

A rule takes the language model's config (the parsed config.json or its nested part) and gives the model layers, ascending.
Multi-token-prediction modules behind the last layer are never among them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rewriter.errors import CheckpointError, quoted

Config = Mapping[str, Any]

# A layer's letter in the pattern of a hybrid model (Nemotron-H): E has routed experts, M is Mamba, * attention, - an MLP.
EXPERTS_LETTER = "E"


@dataclass(frozen=True)
class LayerRule:
    """A rule, and how docs/families.md puts it."""

    text: str
    find: Callable[[Config], tuple[int, ...]]

    def __call__(self, config: Config) -> tuple[int, ...]:
        """The model layers that the rule names for this config."""
        return self.find(config)


def num_layers(config: Config) -> int:
    """Number of layers of the language model, without multi-token-prediction modules.

    Raises: CheckpointError when the config does not say.
    """
    return _positive(config, "num_hidden_layers")


# All layers have routed experts.
every_layer = LayerRule("all", lambda config: tuple(range(num_layers(config))))


def every_layer_of(key: str) -> LayerRule:
    """All layers have routed experts, and config[key] counts the layers (LongCat: each holds two attention blocks)."""

    def rule(config: Config) -> tuple[int, ...]:
        return tuple(range(_positive(config, key)))

    return LayerRule(f"all, counted by `{key}`", rule)


def no_layer_unless(key: str, rule_if_set: LayerRule) -> LayerRule:
    """Another rule where config[key] is true, else no layer has routed experts."""

    def rule(config: Config) -> tuple[int, ...]:
        return rule_if_set(config) if config.get(key) else ()

    return LayerRule(f"{rule_if_set.text}, if `{key}`", rule)


def after_dense(*keys: str, default: int = 0) -> LayerRule:
    """The first layers are dense, then every `moe_layer_freq`-th one (1 unless given) has experts.

    keys: where the number of dense layers stands, the first that is present counts; default: the number when none is.
    """

    def rule(config: Config) -> tuple[int, ...]:
        first = next((config[key] for key in keys if config.get(key) is not None), default)
        step = config.get("moe_layer_freq")
        if isinstance(step, list):  # a flag per layer
            return _where(step, config, bool)
        return tuple(layer for layer in range(int(first), num_layers(config)) if layer % int(step or 1) == 0)

    return LayerRule(f"from {_code(keys)} on (default {default}), by `moe_layer_freq`", rule)


def by_types(key: str, *values: str, otherwise: LayerRule) -> LayerRule:
    """config[key] lists a type per layer, `values` mark those with experts; where the key is absent, another rule."""

    def rule(config: Config) -> tuple[int, ...]:
        types = config.get(key)
        return _where(types, config, lambda kind: kind in values) if isinstance(types, list) else otherwise(config)

    return LayerRule(f"{_code(values)} in `{key}`; else {otherwise.text}", rule)


def by_flags(key: str, otherwise: LayerRule) -> LayerRule:
    """config[key] lists a true or false per layer; where the key is absent, another rule."""

    def rule(config: Config) -> tuple[int, ...]:
        flags = config.get(key)
        return _where(flags, config, bool) if isinstance(flags, list) else otherwise(config)

    return LayerRule(f"true in `{key}`; else {otherwise.text}", rule)


def by_list(key: str, otherwise: LayerRule) -> LayerRule:
    """config[key] lists the layers with experts, as numbers or as text with commas; where absent, another rule."""

    def rule(config: Config) -> tuple[int, ...]:
        listed = config.get(key)
        if listed is None:
            return otherwise(config)
        items = listed.split(",") if isinstance(listed, str) else listed
        try:
            layers = {int(item) for item in items if str(item).strip()}
        except (TypeError, ValueError):
            raise CheckpointError(f"config.json: {key} is {quoted(listed)}, expected a list of layer numbers") from None
        return tuple(sorted(layer for layer in layers if layer < num_layers(config)))

    return LayerRule(f"listed in `{key}`; else {otherwise.text}", rule)


def by_step(step_key: str, dense_key: str | None = None) -> LayerRule:
    """Every config[step_key]-th layer has experts, except those listed in config[dense_key] (Qwen, Llama 4)."""

    def rule(config: Config) -> tuple[int, ...]:
        step = int(config.get(step_key) or 1)
        dense = set(config.get(dense_key) or ()) if dense_key else set()
        return tuple(layer for layer in range(num_layers(config)) if layer not in dense and (layer + 1) % step == 0)

    return LayerRule(f"every `{step_key}`-th" + (f", none of `{dense_key}`" if dense_key else ""), rule)


def between(first_key: str, last_key: str, interval_key: str) -> LayerRule:
    """Layers from config[first_key] to config[last_key] (-1: the last), every config[interval_key]-th one (ERNIE)."""

    def rule(config: Config) -> tuple[int, ...]:
        first, last = int(config.get(first_key) or 0), config.get(last_key)
        last = num_layers(config) - 1 if last is None or last == -1 else int(last)
        interval = int(config.get(interval_key) or 1)
        return tuple(
            layer for layer in range(num_layers(config)) if first <= layer <= last and (layer + 1) % interval == 0
        )

    return LayerRule(f"`{first_key}` to `{last_key}`, every `{interval_key}`-th", rule)


def by_pattern(key: str) -> LayerRule:
    """config[key] is a text with a letter per layer, of which EXPERTS_LETTER marks those with experts (Nemotron-H)."""

    def rule(config: Config) -> tuple[int, ...]:
        pattern = config.get(key)
        if not isinstance(pattern, str) or not pattern:
            raise CheckpointError(f"config.json: {key} is {quoted(pattern)}, expected a letter for each layer")
        return tuple(layer for layer, letter in enumerate(pattern) if letter == EXPERTS_LETTER)

    return LayerRule(f"`{EXPERTS_LETTER}` in `{key}`", rule)


def first_layers(key: str) -> LayerRule:
    """The first config[key] layers (none where the key is absent)."""

    def rule(config: Config) -> tuple[int, ...]:
        return tuple(range(min(int(config.get(key) or 0), num_layers(config))))

    return LayerRule(f"the first `{key}`", rule)


def _where(marks: list[Any], config: Config, has_experts: Callable[[Any], bool]) -> tuple[int, ...]:
    """The layers whose mark says so; marks of prediction modules behind the last layer are left out."""
    if config.get("num_hidden_layers") is not None:
        marks = marks[: num_layers(config)]
    return tuple(layer for layer, mark in enumerate(marks) if has_experts(mark))


def _positive(config: Config, key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise CheckpointError(f"config.json: {key} is {quoted(value)}, expected a positive whole number")
    return value


def _code(keys: tuple[str, ...]) -> str:
    return " or ".join(f"`{key}`" for key in keys)
