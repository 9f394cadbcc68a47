"""Model types that wrap a language model of another type, whose row counts: multimodal models, mostly.

Adding one is adding a row here; the row of the wrapped family must know the prefix that the wrapper puts before its tensors.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wrapper:
    """A model type whose config holds another model's under a key."""

    model_type: str
    text_config: str  # the key
    wraps: tuple[str, ...]  # the model types inside whose rows know the wrapper's tensor names
    source: str


WRAPPERS: tuple[Wrapper, ...] = (
    Wrapper(
        model_type="kimi_k3",
        text_config="text_config",
        wraps=("kimi_linear",),
        source="vllm/models/kimi_k3/nvidia/model.py; vllm/transformers_utils/configs/kimi_k3.py",
    ),
    Wrapper(
        model_type="kimi_vl",
        text_config="text_config",
        wraps=("deepseek_v3",),
        source="vllm/model_executor/models/kimi_vl.py; vllm/transformers_utils/configs/kimi_vl.py",
    ),
    Wrapper(
        model_type="mistral3",
        text_config="text_config",
        wraps=("mistral4",),
        source="transformers/models/mistral3, mistral4; vllm/model_executor/models/mistral3.py",
    ),
)

BY_WRAPPER: dict[str, Wrapper] = {wrapper.model_type: wrapper for wrapper in WRAPPERS}
