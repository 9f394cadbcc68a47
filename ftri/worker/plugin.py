"""What this package adds to every process of a vLLM beside which it is installed (entry point `vllm.general_plugins`).

For each architecture that vLLM knows, `Mote<Architecture>` is the same with editable routers. A model of any
other architecture runs as if this package were not there. For served variants (rewriter.edit.dial) it adds their config classes
and has the front end check what requests choose.
"""

from __future__ import annotations

import functools
from typing import Any

from ftri.worker import internals
from ftri.worker.configs import register_configs
from ftri.worker.frontend import hook_input_processor
from ftri.worker.models import PREFIX, class_name


def register() -> None:
    """Register the architectures; calling it again changes nothing."""
    registry = internals.load("ModelRegistry")
    for architecture in [name for name in registry.get_supported_archs() if not name.startswith(PREFIX)]:
        if PREFIX + architecture not in registry.models:
            registry.register_model(PREFIX + architecture, f"ftri.worker.models:{class_name(architecture)}")
    # What vLLM presets for some architectures goes by their names too.
    presets = internals.load("MODELS_CONFIG_MAP")
    presets.update({PREFIX + name: preset for name, preset in presets.items() if not name.startswith(PREFIX)})
    register_configs()
    hook_input_processor()
    draft_as_the_base()


def draft_as_the_base() -> None:
    """Have vLLM choose the draft of multi-token prediction for an editable architecture as for the one it is of; for some
    families (GLM-4.5, MiMo) it goes by the architecture's name. Drafts are not edited: what they propose is verified."""
    config_class = internals.load("SpeculativeConfig")
    original = config_class.hf_config_override
    if hasattr(original, "mote_original"):
        return

    @functools.wraps(original)
    def hf_config_override(hf_config: Any) -> Any:
        names = getattr(hf_config, "architectures", None) or ()
        if any(name.startswith(PREFIX) for name in names):
            hf_config.architectures = [name.removeprefix(PREFIX) for name in names]
        return original(hf_config)

    hf_config_override.mote_original = original  # type: ignore[attr-defined]
    config_class.hf_config_override = staticmethod(hf_config_override)
