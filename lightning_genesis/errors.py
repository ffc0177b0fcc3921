"""Errors that a user can mend: the message is one line, and the command shows that line alone."""


class UserError(Exception):
    """Something the user gave does not fit; the message names it, what was found and what to do."""

    exit_code = 2
    """What the command returns."""


class ConfigurationError(UserError, ValueError):
    """An option or a combination of options."""


class CheckpointError(UserError, ValueError):
    """A checkpoint file."""


class NonFiniteError(UserError, RuntimeError):
    """A loss or gradient was not finite; the step that it belonged to changed no weight."""


class Stopped(UserError, RuntimeError):
    """A signal has stopped the run, which is saved and can be resumed."""

    exit_code = 75
    """EX_TEMPFAIL: run the same command again."""


class Incomplete(UserError, RuntimeError):
    """The command did what it could, and something is missing; each such thing has been named before."""

    exit_code = 1
