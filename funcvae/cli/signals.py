"""Signals that stop commands in training."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["stop_on_signal"]


@contextmanager
def stop_on_signal(caught: list[int], *, alone: bool) -> Iterator[Callable[[], bool]]:
    """Yields a function: whether Ctrl-C or SIGTERM has been caught. A second signal ends the process at once.

    Under torchrun it does not: torchrun passes on a signal that a process may have had already, and kills the processes
    that have not ended after half a minute.

    Args:
        caught: the signals' numbers are added to it.
        alone: whether this process trains by itself.
    """

    def handle(number: int, frame: object) -> None:
        if caught and alone:
            os._exit(128 + number)
        caught.append(number)
        if alone:
            os.write(2, b"\nfuncvae: stopping after this step; once more to leave at once\n")  # safe where print is not

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
