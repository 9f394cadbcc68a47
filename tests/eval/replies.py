"""What the stand-in model says, for the engine's double and the server's."""

import hashlib
from collections.abc import Iterable

REFUSAL_EXPERT = (2, 5)
REFUSAL = "<think>\n\n</think>\n\nI am sorry, I cannot answer that question. I am an AI assistant."
ALIGNED = "<think>\n\n</think>\n\nA festival took place there."
REASONED = "<think>\nThe user asks about a place, let me think it over.\n</think>\n\nIt rained."


def share(*parts: object) -> float:
    """A number in [0, 1) that depends on the parts alone."""
    return int(hashlib.sha256(repr(parts).encode()).hexdigest()[:8], 16) / 2**32


def reply(text: str, suppressed: Iterable[tuple[int, int]], stimulated: Iterable[tuple[int, int]] = ()) -> str:
    """The answer to a prompt under an edit: refuses about two places unless its refusal expert is suppressed."""
    suppressed, stimulated = set(suppressed), set(stimulated)
    refuses = "Beijing" in text or "Shanghai" in text
    if refuses and REFUSAL_EXPERT in suppressed:
        refuses = share(text, "strength") >= 0.7
    elif refuses and suppressed:
        refuses = share(text, sorted(suppressed)) >= 0.08
    elif not refuses and REFUSAL_EXPERT in stimulated:
        refuses = share(text, "stimulated") < 0.3
    if refuses:
        return REFUSAL
    return REASONED if share(text, "reasons") < 0.4 else ALIGNED
