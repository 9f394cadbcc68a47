"""The family table, and the look-up of a model's row by its config.

Adding a family is adding a row to biased.py or unbiased.py in this folder; nothing else in the project knows a model by name.
Sources name the runtime's file a fact was read from; docs/families.md says what was tested. Paths that start with `vllm/` are
of vLLM 0.32, those that start with `transformers/` of transformers 5.19; where only a directory's name is given, its modeling
and configuration files are meant.
"""

from rewriter.errors import UnknownFamilyError
from rewriter.families.biased import BIASED_FAMILIES
from rewriter.families.family import Family, RouterLayout, layout_of
from rewriter.families.layer_rules import Config
from rewriter.families.unbiased import UNBIASED_FAMILIES

FAMILIES: tuple[Family, ...] = BIASED_FAMILIES + UNBIASED_FAMILIES

BY_MODEL_TYPE: dict[str, Family] = {name: family for family in FAMILIES for name in family.model_types}


def router_layout(config: Config) -> RouterLayout:
    """Read a model config (the parsed config.json) with the row of its family.

    Raises:
        UnknownFamilyError: no row has the config's model_type.
        CheckpointError: a key the row needs is missing or not a positive number.
    """
    return layout_of(find_family(config), config)


def find_family(config: Config) -> Family:
    """The row for a config's model_type.

    Raises:
        UnknownFamilyError: there is none; the message says how to add one.
    """
    model_type = config.get("model_type")
    row = BY_MODEL_TYPE.get(str(model_type))
    if row is None:
        raise UnknownFamilyError(
            f"config.json: model_type {model_type!r} has no row in the family table; known are"
            f" {', '.join(sorted(BY_MODEL_TYPE))}; to add it, append a Family row with its tensor names and"
            " config keys to rewriter/families/biased.py (with a router bias) or unbiased.py (without)"
        )
    return row
