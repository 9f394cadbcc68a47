"""The errors a user can cause or meet; each message is one sentence that names the file, what was found and what was expected."""


class MoteError(Exception):
    """Something the user asked for or supplied cannot be used; the message is shown as it is."""


class InputError(MoteError):
    """An argument or an input file other than the checkpoint is wrong."""


class ExpertSetError(InputError):
    """An expert set is malformed, or does not fit the model."""


class CheckpointError(MoteError):
    """A checkpoint folder or one of its files is damaged, incomplete or not what its config says."""


class UnknownFamilyError(MoteError):
    """The model's architecture has no row in the family table."""


class PlanError(MoteError):
    """The requested edit cannot be done on this model, for example because a layer would run out of experts."""


class OutputError(MoteError):
    """The output folder cannot be written: it exists, is in use, lies in the source, or the disk refused."""


class VerificationError(MoteError):
    """A variant differs from what its plan says."""


class HubError(MoteError):
    """The Hub refused, could not be reached, or does not hold what was asked for."""
