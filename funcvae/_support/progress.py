"""Progress of long computations, and notices on stderr."""

import sys
from collections.abc import Callable

from tqdm import tqdm

__all__ = ["Progress", "notice", "silent"]

Progress = Callable[[int, int], object]
"""Called with (done, total) at the start of a long computation and after each part of it."""


def silent(done: int, total: int) -> None:
    """Shows nothing."""


def notice(line: str) -> None:
    """Prints a line on stderr, above a progress bar if there is one."""
    tqdm.write(f"funcvae: {line}", file=sys.stderr)
