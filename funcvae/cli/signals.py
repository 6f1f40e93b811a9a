"""How commands that make steps are stopped."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stopping(caught: list[int], *, alone: bool) -> Iterator[Callable[[], bool]]:
    """While steps are made, the first Ctrl-C or SIGTERM asks to stop after the step; another leaves at once.

    Not so where torchrun started several: it passes on a signal that a process may have had already, and kills those
    that have not ended after half a minute.
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
