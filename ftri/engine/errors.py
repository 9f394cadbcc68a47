"""The error of an engine."""

from rewriter.errors import MoteError


class EngineError(MoteError):
    """vLLM cannot load the model, cannot run a request, or is not what the recorder was built for."""
