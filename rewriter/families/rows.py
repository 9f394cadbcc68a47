"""The family table. Sources name the runtime's file a fact was read from; see docs/families.md for what was tested.

Paths that start with `vllm/` are of vLLM 0.32, those that start with `transformers/` of transformers 5.19; where only a
directory's name is given, its modeling and configuration files are meant.
"""

from rewriter.families.biased import BIASED_FAMILIES
from rewriter.families.family import Family
from rewriter.families.unbiased import UNBIASED_FAMILIES

FAMILIES: tuple[Family, ...] = BIASED_FAMILIES + UNBIASED_FAMILIES

BY_MODEL_TYPE: dict[str, Family] = {name: family for family in FAMILIES for name in family.model_types}
