"""How commands that make steps are stopped."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def stopping(caught: list[int], *, alone: bool) -> Iterator[Callable[[], bool]]:
    """While steps are made, the first Ctrl-C or SIGTERM asks to stop after the step; another leaves at once."""

    def handle(number: int, frame: object) -> None:
        if caught:
            os._exit(128 + number)
        caught.append(number)
        if alone:  # else torchrun may only be ending those that a lost one has left
            os.write(2, b"\nfuncvae: stopping after this step; once more to leave at once\n")  # safe where print is not

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
