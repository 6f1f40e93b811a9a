"""Signals that stop training."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["stop_on_signal"]


@contextmanager
def stop_on_signal(caught: list[int], *, alone: bool) -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether Ctrl-C or SIGTERM was caught.

    A second signal ends a single process at once. Under torchrun it does not: torchrun forwards signals that a process
    may have received already, and kills processes that run for another half minute.

    A terminal and some schedulers signal the whole process group. Programs that this process starts in the context,
    such as the compiler of a step, run in sessions of their own and finish.

    `caught` collects the numbers of the signals; `alone` is whether this process trains alone.
    """

    def handle(number: int, frame: object) -> None:
        if caught and alone:
            os._exit(128 + number)
        caught.append(number)
        if alone:
            os.write(2, b"\nfuncvae: stopping after this step; a second signal stops at once\n")  # print is unsafe

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    plain, subprocess.Popen = subprocess.Popen, _InOwnSession  # type: ignore[misc]
    try:
        yield lambda: bool(caught)
    finally:
        subprocess.Popen = plain  # type: ignore[misc]
        for number, handler in before.items():
            signal.signal(number, handler)


class _InOwnSession(subprocess.Popen[Any]):
    """A program that signals to this process group do not reach."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"start_new_session": True, **kwargs})
