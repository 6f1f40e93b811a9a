"""What a case may take of time and memory."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MEMORY = 1024
"""MiB that a case may take."""


class Hung(BaseException):
    """A case that took too long."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raises Hung in what takes longer."""

    def stop(*_: Any) -> None:
        raise Hung(f"after {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def taking() -> Callable[[], float]:
    """A function that says how many MiB this process took at the most, from here on, of what it had not before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak, VmHWM, is from here on
    before = _memory("VmRSS")
    return lambda: _memory("VmHWM") - before


def _memory(which: str) -> float:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) / 1024
