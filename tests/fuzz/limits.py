"""What a case may take of time and memory."""

import ctypes
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
    if _trim is not None:
        _trim(0)  # what is free, but kept (`compilation.keep_freed`), would count as had before
    before, peak = _memory()
    if peak > before + _NEAR:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    return lambda: _memory()[1] - before


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_NEAR = 16  # MiB by which a peak may be an earlier one: setting it back takes a millisecond


def _memory() -> tuple[float, float]:
    """What this process has, and the most that it had, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
