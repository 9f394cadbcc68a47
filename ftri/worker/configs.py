"""Config classes for the model types `mote_<type>` of served variants, which vLLM looks up by their model_type.

Such a config is read as the base's own class, with the base's model_type, since much of vLLM asks for it; the architecture stays
`Mote<Architecture>`, by which the editable model is found.
"""

from __future__ import annotations

from typing import Any

from ftri.worker import internals
from rewriter.edit.dial import MODEL_TYPE_PREFIX
from rewriter.families.lookup import BY_MODEL_TYPE
from rewriter.families.wrappers import BY_WRAPPER


def config_class(model_type: str) -> type:
    """The class for `mote_<model_type>`."""
    from transformers import PretrainedConfig

    def from_dict(cls: type, config_dict: dict[str, Any], **keywords: Any) -> Any:
        base_class = base_config_class(model_type)
        made = base_class.from_dict({**config_dict, "model_type": model_type}, **keywords)
        config = made[0] if isinstance(made, tuple) else made
        config.mote_is_served = True
        return made

    members = {"model_type": MODEL_TYPE_PREFIX + model_type, "from_dict": classmethod(from_dict)}
    return type(f"Mote_{model_type}_Config", (PretrainedConfig,), members)


def base_config_class(model_type: str) -> Any:
    """The config class that vLLM would take for a model type, its own or transformers'.

    Raises:
        ValueError: where it comes with the checkpoint, as remote code.
    """
    from transformers import CONFIG_MAPPING

    registry = internals.load("_CONFIG_REGISTRY")
    if model_type in registry:
        return registry[model_type]
    if model_type in CONFIG_MAPPING:
        return CONFIG_MAPPING[model_type]
    raise ValueError(
        f"model_type {model_type!r} has its config class in the checkpoint's own code, expected one of vLLM or transformers"
    )


def register_configs() -> None:
    """Make the classes of all families known."""
    registry = internals.load("_CONFIG_REGISTRY")
    for model_type in [*BY_MODEL_TYPE, *BY_WRAPPER]:
        if MODEL_TYPE_PREFIX + model_type not in registry:
            registry[MODEL_TYPE_PREFIX + model_type] = config_class(model_type)
