"""The errors that funcvae raises on purpose. Each message is one line: what is wrong, and what is allowed.

Only the error for a DataLoader also shows the lines of code to write instead. All derive from `FuncvaeError` and from
the built-in error that fits. Every public function raises BadType for an argument of the wrong type, and BadValue for a
number out of range, for shapes, dtypes or devices that do not match, and for a request that exceeds the memory. The
section "Raises" of a function lists its further errors.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BadData", "BadType", "BadValue", "FuncvaeError", "InUse", "Missing", "NonFinite", "NotWritten", "ProcessLost",
    "ReportedElsewhere", "Stopped", "unknown",
]  # fmt: skip


class FuncvaeError(Exception):
    """Base class of all errors that funcvae raises on purpose."""


class BadValue(FuncvaeError, ValueError):
    """An argument has the right type but a wrong value or shape."""


class BadType(FuncvaeError, TypeError):
    """An argument has the wrong type, such as a list where a tensor is needed."""


class BadData(FuncvaeError, ValueError):
    """A file is damaged, or the model cannot take the data."""


class Missing(FuncvaeError, FileNotFoundError):
    """A file, folder, package or device does not exist or is not available."""


class NotWritten(FuncvaeError, OSError):
    """A file could not be written: the disk is full, or permission is denied."""


class NonFinite(FuncvaeError, ArithmeticError):
    """A number is NaN or infinite, such as the loss of a training that diverges."""

    step: int | None = None
    """The training step, counted from 0; None outside training."""


class InUse(FuncvaeError, BlockingIOError):
    """Another process writes in the folder, and only one may at a time."""


class Stopped(FuncvaeError):
    """Training stopped on request, after it saved a checkpoint."""


class ProcessLost(FuncvaeError, ConnectionError):
    """A process of the group exited or does not respond."""


class ReportedElsewhere(FuncvaeError):
    """Another process of the group has already reported this error."""


def unknown(kind: str, name: str, known: Iterable[str]) -> BadValue:
    """The error for an unknown name, with the nearest known name."""
    known, name = sorted(known), name if len(name) <= 60 else f"{name[:58]} …"
    folded = {each.lower(): each for each in known}
    near = get_close_matches(name.lower(), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}?" if near else f"choose from: {', '.join(known)}"
    return BadValue(f"unknown {kind} {name!r}: {hint}")
