"""The family table, and the look-up of a model's row by its config.

Adding a family is adding a row to biased.py or unbiased.py in this folder, or to wrappers.py where a config only wraps that of
a known one; nothing else in the project knows a model by name. Sources name the runtime's file a fact was read from;
docs/families.md says what was tested. Paths that start with `vllm/` are of vLLM 0.32, those that start with `transformers/` of
transformers 5.19; where only a directory's name is given, its modeling and configuration files are meant.
"""

import re
from collections.abc import Iterable, Mapping

from rewriter.errors import UnknownFamilyError, quoted
from rewriter.families.biased import BIASED_FAMILIES
from rewriter.families.family import Family, RouterLayout, layout_of
from rewriter.families.layer_rules import Config
from rewriter.families.unbiased import UNBIASED_FAMILIES
from rewriter.families.wrappers import BY_WRAPPER

FAMILIES: tuple[Family, ...] = BIASED_FAMILIES + UNBIASED_FAMILIES

BY_MODEL_TYPE: dict[str, Family] = {name: family for family in FAMILIES for name in family.model_types}

SERVED_PREFIX = "mote_"
"""What the model_type of a served variant (rewriter.edit.dial) begins with; its base's follows."""

_LAYER = re.compile(r"layers\.\d+\.")
_EXPERT = re.compile(r"((?:experts|down_proj)\.)\d+(\.)")


def router_layout(config: Config) -> RouterLayout:
    """Read a model config (the parsed config.json) with the row of its family.

    Raises:
        UnknownFamilyError: no row has the config's model_type.
        CheckpointError: a key the row needs is missing or not a positive number.
    """
    return layout_of(find_family(config), config)


def find_family(config: Config) -> Family:
    """The row for a config's model_type, or of the model that it wraps.

    Raises:
        UnknownFamilyError: there is none; the message says how to add one, and which row is near.
    """
    model_type = config.get("model_type")
    wrapper = BY_WRAPPER.get(str(model_type))
    if wrapper is not None:
        inner = config.get(wrapper.text_config)
        wrapped = inner.get("model_type") if isinstance(inner, Mapping) else None
        if wrapped not in wrapper.wraps:
            raise UnknownFamilyError(
                f"config.json: model_type {model_type!r} wraps a model whose type ({wrapper.text_config}.model_type) is"
                f" {quoted(wrapped)}, expected {' or '.join(map(repr, wrapper.wraps))}; to add it, see"
                " rewriter/families/wrappers.py"
            )
        return BY_MODEL_TYPE[wrapped]
    row = BY_MODEL_TYPE.get(str(model_type))
    if row is None and str(model_type).startswith(SERVED_PREFIX):
        raise UnknownFamilyError(
            f"config.json: model_type {quoted(model_type)} is a served variant's, whose weights are its base's; give the base"
        )
    if row is None:
        raise UnknownFamilyError(
            f"config.json: model_type {quoted(model_type)} has no row in the table of Mixture-of-Experts"
            f" families{_wrapped_row(config)}; if the model is one, append a Family row with its tensor names and config keys to"
            " rewriter/families/biased.py (with a router bias) or unbiased.py (without)"
        )
    return row


def rows_named_alike(tensors: Iterable[str]) -> tuple[str, ...]:
    """The rows whose router bias, or router and experts, are named as in a checkpoint, by the tensors' names.

    A layer or expert may have any number. Rows with a bias come first.
    """
    found = {_EXPERT.sub(r"\1{expert}\2", _LAYER.sub("layers.{layer}.", name)) for name in tensors}
    biased = [family.name for family in FAMILIES if found & set(family.bias)]
    outputs = [
        family.name
        for family in FAMILIES
        if not family.bias
        and found & set(family.router)
        and any(found.issuperset(names) for names in family.expert_outputs)
    ]
    return tuple(biased or outputs)


def _wrapped_row(config: Config) -> str:
    """The known family that a part of the config is of, as a clause; empty where none is."""
    for key, part in config.items():
        inner = part.get("model_type") if isinstance(part, Mapping) else None
        if isinstance(inner, str) and inner in BY_MODEL_TYPE:
            return (
                f", but its {quoted(key)} has model_type {inner!r}, of row {BY_MODEL_TYPE[inner].name}: a row in"
                " rewriter/families/wrappers.py may be all it takes"
            )
    return ""
