"""The progress of long computations: the type of the functions that show it, and the default, which shows nothing."""

from collections.abc import Callable

__all__ = ["Progress", "silent"]

Progress = Callable[[int, int], object]
"""Called with (done, total) at the start of a long computation and after each part of it."""


def silent(done: int, total: int) -> None:
    """Shows nothing."""
