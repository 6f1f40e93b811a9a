"""Limits of time and memory for a case."""

import ctypes
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MEMORY = 1024
"""The most memory that a case may use, in MiB."""


class Hung(BaseException):
    """A case exceeded its time limit."""


@contextmanager
def in_time(seconds: float) -> Iterator[None]:
    """Raises Hung inside the context after the given time."""

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
    """A function that returns by how many MiB the memory of this process has grown at most since this call."""
    if _trim is not None:
        _trim(0)  # otherwise free memory that the process keeps (`compilation.keep_freed`) would hide growth
    before, peak = _memory()
    if peak > before + _NEAR:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the current memory
    return lambda: _memory()[1] - before


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
_NEAR = 16  # MiB by which an earlier peak may be higher: to reset it takes a millisecond


def _memory() -> tuple[float, float]:
    """Current and peak memory of this process, in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))
