"""What the front end of vLLM does with a request: refuses a choice that cannot be, and keeps caches apart."""

from __future__ import annotations

import functools
import sys
from typing import Any

from ftri.worker import internals
from ftri.worker.dial import Choice, Dial, check_unserved, dial_of, salt


def hook_input_processor() -> None:
    """Have vLLM's input processor check every request; one that chooses nothing passes as before."""
    processor_class = internals.load("InputProcessor")
    if hasattr(processor_class, "mote_dial"):
        return
    processor_class.mote_dial = None
    construct, process = processor_class.__init__, processor_class.process_inputs

    @functools.wraps(construct)
    def initialise(self: Any, *arguments: Any, **keywords: Any) -> None:
        construct(self, *arguments, **keywords)
        # Here and not with the first request, so that a damaged record keeps a server from starting.
        self.mote_dial = dial_of(self.model_config)
        hook_async_engine()

    @functools.wraps(process)
    def process_inputs(self: Any, request_id: str, prompt: Any, params: Any, *arguments: Any, **keywords: Any) -> Any:
        choice = choice_of(self, params)
        request = process(self, request_id, prompt, params, *arguments, **keywords)
        if self.mote_dial is not None:
            request.cache_salt = salt(choice, request.cache_salt)
        return request

    processor_class.__init__, processor_class.process_inputs = initialise, process_inputs


def choice_of(processor: Any, params: Any) -> Choice | None:
    """What a request chooses of the dial that an input processor has; None for the base, and where there is no dial.

    Raises:
        vllm.exceptions.VLLMValidationError: for what cannot be chosen; a server answers it with HTTP 400 and its sentence.
    """
    arguments = getattr(params, "extra_args", None) or {}
    dial: Dial | None = processor.mote_dial
    try:
        if dial is None:
            check_unserved(arguments)
            return None
        return dial.choose(arguments)
    except ValueError as error:
        raise internals.load("VLLMValidationError")(str(error)) from error


def hook_async_engine() -> None:
    """Have the servers' engine check a request when it is asked to generate, before the first piece of a stream is sent with
    HTTP 200."""
    if internals.INTERNALS["AsyncLLM"].module not in sys.modules:
        return  # offline: requests are added at once
    engine_class = internals.load("AsyncLLM")
    original = engine_class.generate
    if hasattr(original, "mote_original"):
        return

    @functools.wraps(original)
    def generate(self: Any, prompt: Any, sampling_params: Any, *arguments: Any, **keywords: Any) -> Any:
        choice_of(self.input_processor, sampling_params)
        return original(self, prompt, sampling_params, *arguments, **keywords)

    generate.mote_original = original  # type: ignore[attr-defined]
    engine_class.generate = generate
