"""vLLM's own model classes with editable routers, under the architecture names `Mote<Architecture>`, for any family.

A class is made when it is asked for (`module.__getattr__`): it inherits everything and only constructs the model while
routers are editable. Registered by name only (see plugin.py), so that nothing is imported before a model needs it.
"""

from __future__ import annotations

from typing import Any

from ftri.worker import internals
from ftri.worker.dial import Dial, dial_of
from ftri.worker.request import RequestEdit, recording_of
from ftri.worker.routers import attach_edits, attach_rows, editable_routers, reach
from ftri.worker.steps import Requests, editing_state_class, hook_runner_v1, read_live_edit

PREFIX = "Mote"


def __getattr__(name: str) -> Any:
    """The class of an architecture, asked for by the name that `class_name` gives it."""
    ending = version_ending()
    if not (name.startswith(PREFIX) and name.endswith(ending)):
        raise AttributeError(name)
    return editable_model_class(name.removeprefix(PREFIX).removesuffix(ending))


def version_ending() -> str:
    """What ends a class's name: vLLM keeps what it found out about a class by the name, for other releases too."""
    import vllm

    return "_" + "".join(character if character.isalnum() else "_" for character in vllm.__version__)


def class_name(architecture: str) -> str:
    """The name of the editable class of one of vLLM's architectures."""
    return PREFIX + architecture + version_ending()


def editable_model_class(architecture: str) -> type:
    """vLLM's class for an architecture with editable routers.

    Raises:
        AttributeError: when this vLLM has no such architecture.
    """
    registered = internals.load("ModelRegistry").models.get(architecture)
    if registered is None:
        raise AttributeError(architecture)
    base: Any = registered.load_model_cls()

    def construct(self: Any, *, vllm_config: Any, prefix: str = "", **keywords: Any) -> None:
        dial = dial_of(vllm_config.model_config)
        is_static = dial is not None and not dial.record.has_dial
        recording = recording_of(vllm_config.model_config.hf_config)
        if recording is not None:
            refuse_unrecorded(vllm_config)
        if not is_static and (recording is None or recording.has_edits or dial is not None):
            refuse_unsupported(vllm_config)
        with editable_routers():
            base.__init__(self, vllm_config=vllm_config, prefix=prefix, **keywords)
        reach(self)
        if recording is not None:
            self.mote_rows = attach_rows(self, vllm_config, recording.num_choices, recording.keeps_weights)
            if dial is None and not recording.has_edits:
                return
        # One slot for every request that a step can have, and the base's.
        tables = attach_edits(self, vllm_config, 1 if is_static else vllm_config.scheduler_config.max_num_seqs + 1)
        if dial is not None:
            check_layers(dial, tables.layers, vllm_config.parallel_config.pipeline_parallel_size)
            tables.allow(planned_sets(dial))
            if is_static:
                tables.fill(0, *planned_sets(dial))
                return
        self.mote_requests = Requests(tables, read_live_edit if dial is None else dial.read)
        if not vllm_config.use_v2_model_runner:
            hook_runner_v1()
            return

        def model_state_class() -> type:
            # Model runner V2 asks a model for its own kind of state first; with this answer hidden, it finds the base's.
            del self.get_model_state_cls
            try:
                state_class = internals.load("resolve_model_state_cls")(vllm_config, self)
            finally:
                self.get_model_state_cls = model_state_class
            return editing_state_class(state_class)

        self.get_model_state_cls = model_state_class

    return type(
        class_name(architecture), (base,), {"__init__": construct, "__doc__": base.__doc__, "__module__": __name__}
    )


def planned_sets(dial: Dial) -> list[RequestEdit]:
    """The sets of a served variant as the tables take them."""
    planned = [dial.plan((name, 1.0)) for name in dial.record.sets]
    return [one.request for one in planned if one is not None]


def check_layers(dial: Dial, layers: list[int], num_stages: int) -> None:
    """Refuse sets with layers that do not route where edits reach; with several pipeline stages, only stages without any.

    Raises:
        ValueError: with the layers.
    """
    wanted = {layer for one in dial.record.sets.values() for layer, _ in (*one.suppress, *one.stimulate)}
    missing = sorted(wanted - set(layers))
    if missing and (num_stages == 1 or not layers):
        raise ValueError(f"vLLM's model routes in layers {layers}, expected those of the variant's sets too: {missing}")


# KV connectors that find keys and values by vLLM's block hashes, which the cache salt is part of, or by the salt itself.
SALTED_CONNECTORS = frozenset({"OffloadingConnector", "SimpleCPUOffloadConnector", "LMCacheMPConnector"})


def refuse_unsupported(vllm_config: Any) -> None:
    """Refuse settings under which a step's tokens are not where the edit looks for them, or caches would be shared.

    Raises:
        ValueError: with the setting's name.
    """
    parallel, speculative = vllm_config.parallel_config, vllm_config.speculative_config
    for name, value, is_on in (
        ("enable_dbo", parallel.enable_dbo, parallel.enable_dbo),
        ("data_parallel_size", parallel.data_parallel_size, parallel.data_parallel_size > 1),
        (
            "prefill_context_parallel_size",
            parallel.prefill_context_parallel_size,
            parallel.prefill_context_parallel_size > 1,
        ),
        (
            "decode_context_parallel_size",
            parallel.decode_context_parallel_size,
            parallel.decode_context_parallel_size > 1,
        ),
        *(
            (name, True, getattr(config, name, False))
            for config, name in (
                (vllm_config.compilation_config.pass_config, "enable_sp"),
                (speculative, "enable_adaptive_verification"),
            )
        ),
    ):
        if is_on:
            raise ValueError(f"{name} is {value}, but edits per request need it off")
    transfer = vllm_config.kv_transfer_config
    connector = None if transfer is None else transfer.kv_connector
    if connector is not None and connector not in SALTED_CONNECTORS:
        raise ValueError(
            f"kv_connector is {connector}, which may hand one edit's keys and values to another, expected one that goes by the"
            f" cache salt: {', '.join(sorted(SALTED_CONNECTORS))}"
        )


def refuse_unrecorded(vllm_config: Any) -> None:
    """Refuse settings under which a step's tokens are not where the recorder looks for them.

    Raises:
        ValueError: with the setting's name.
    """
    parallel = vllm_config.parallel_config
    for name, is_on in (
        ("enable_dbo", parallel.enable_dbo),
        ("prefill_context_parallel_size", parallel.prefill_context_parallel_size > 1),
        ("decode_context_parallel_size", parallel.decode_context_parallel_size > 1),
    ):
        if is_on:
            raise ValueError(f"{name} is {getattr(parallel, name)}, expected it off while routing is recorded")
