"""What can go wrong while measuring, beyond wrong input; each message is one sentence that is shown as it is."""

from rewriter.errors import MoteError


class JudgeError(MoteError):
    """The judge's answers hold no rating, or it was not given what it needs."""


class JournalError(MoteError):
    """The journal of a run is damaged, or belongs to something else."""


class IncompleteError(MoteError):
    """The run ended before everything was measured; what there is was written and names what is missing."""
