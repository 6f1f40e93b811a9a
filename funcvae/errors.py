"""The errors a user can cause. Each message is one line: what was wrong, and what would be right.

All derive from `FuncvaeError`, and each also from the built-in error that a Python user would catch. Every public
function raises BadType for an argument of the wrong kind, and BadValue where shapes, dtypes or devices do not match or
more memory is asked for than there is; what its "Raises" names comes on top.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BadData", "BadType", "BadValue", "FuncvaeError", "InUse", "Missing", "NonFinite", "NotWritten", "ProcessLost",
    "ReportedElsewhere", "Stopped", "unknown",
]  # fmt: skip


class FuncvaeError(Exception):
    """Base of every error that funcvae raises on purpose."""


class BadValue(FuncvaeError, ValueError):
    """An argument of the right type but with a wrong value or shape."""


class BadType(FuncvaeError, TypeError):
    """An argument of the wrong type."""


class BadData(FuncvaeError, ValueError):
    """A data file that is corrupt, or data that the model cannot take."""


class Missing(FuncvaeError, FileNotFoundError):
    """A file, folder, package or device that is not there."""


class NotWritten(FuncvaeError, OSError):
    """A file that cannot be written: a full disk, a folder that may not be written in."""


class NonFinite(FuncvaeError, ArithmeticError):
    """A number that became NaN or infinite; in training, at `step`, counted from 0."""

    step: int | None = None


class InUse(FuncvaeError, BlockingIOError):
    """A folder that another process writes in."""


class Stopped(FuncvaeError):
    """Training that was asked to stop, and stopped after a checkpoint."""


class ProcessLost(FuncvaeError, ConnectionError):
    """Another of the processes that make one result has ended, or does not answer."""


class ReportedElsewhere(FuncvaeError):
    """Another process reports the error."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BadValue:
    """The error for a name that is not among the known ones, with the nearest match."""
    known, name = sorted(known), name if len(name) <= 60 else f"{name[:58]} …"
    near = get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"choose from: {', '.join(known)}"
    return BadValue(f"unknown {kind} {name!r}: {hint}")
