"""Errors that users see: what happened, where, why, and the command that mends it.

Every mistake of a user's raises a subclass of :class:`HpdlfError` with one ready-made message. The command line prints that
message and exits with the class's ``exit_code``; a notebook shows it as any exception. An exception takes exactly one argument
because SimPy rebuilds exceptions as ``type(e)(*e.args)`` and MPI and multiprocessing pickle them.
"""

__all__ = ["ApprovalError", "DataError", "HpdlfError", "ModelError", "PlanError", "ProfileError", "RunError"]


class HpdlfError(ValueError):
    """Something the user gave cannot be used; the message says why and how to mend it."""

    exit_code = 2


class ModelError(HpdlfError):
    """An ONNX file that cannot be imported."""


class ProfileError(HpdlfError):
    """A hardware profile that cannot be read."""


class PlanError(HpdlfError):
    """A plan that cannot exist on this cluster, or a plan file that cannot be read."""


class ApprovalError(HpdlfError):
    """A plan that nobody approved, or that changed since somebody did."""


class DataError(HpdlfError):
    """Training data, a trace or a database that does not fit what is asked of it."""


class RunError(HpdlfError):
    """A run that failed while it was running."""

    exit_code = 1
