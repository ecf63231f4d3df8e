"""Every error that a user can cause or must act on. None of them is shown with a traceback.

Each message names the site or file, the knob and the value. `exit_code` is what the command line
leaves with.
"""

from __future__ import annotations


class DynormError(Exception):
    """Base of all errors of this package; a sentence for the user."""

    exit_code = 2


class ModelError(DynormError):
    """The model cannot be read, is incomplete, or uses what cannot be handled."""


class NoMemoryError(ModelError):
    """The model needs more memory than there is: with more, or with less to do, the same command may succeed."""


class DataError(DynormError):
    """The calibration data cannot be read or does not fit the model's inputs."""


class UsageError(DynormError):
    """A knob has a value that makes no sense, or a needed extra is not installed."""


class ProviderError(DynormError):
    """The execution provider asked for is not there or did not take the nodes it should."""


class NoSiteError(DynormError):
    """The model holds no norm that could be replaced."""

    exit_code = 3


class BoundError(DynormError):
    """No conversion met the bound that was asked for; nothing was written."""

    exit_code = 4
