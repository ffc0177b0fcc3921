"""Errors that a user can mend: the message is one line, and the command shows that line alone."""


class UserError(Exception):
    """Something the user gave does not fit; the message names it, what was found and what to do."""

    exit_code = 2
    """What the command returns."""


class ConfigurationError(UserError, ValueError):
    """An option or a combination of options."""


class ImageError(UserError, ValueError):
    """Images of a kind, size or range that a model does not take."""


class CheckpointError(UserError, ValueError):
    """A checkpoint file."""


class NonFiniteError(UserError, RuntimeError):
    """Something about a step was not finite: the step changed no weight, or what came of it was not saved.

    Args:
        message: one line.
        cause: what was not finite, for what tries to go on.
    """

    def __init__(self, message: str, cause: str = "") -> None:
        super().__init__(message)
        self.cause = cause


class Stopped(UserError, RuntimeError):
    """A signal has stopped the run, which is saved and can be resumed."""

    exit_code = 75
    """EX_TEMPFAIL: run the same command again."""


class Incomplete(UserError, RuntimeError):
    """The command did what it could, and something is missing; each such thing has been named before."""

    exit_code = 1
