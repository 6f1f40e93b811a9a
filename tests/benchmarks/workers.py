"""Sides of a comparison in processes of their own, which take turns.

A worker's program (`torch_side.py`, `jax_side.py`, `torch_lab.py`, `jax_lab.py`) gets ready, prints a JSON object of
facts, and then for every number n that it reads makes n calls and prints their milliseconds as a JSON list. It waits in
between.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from statistics import median
from typing import Any, NamedTuple


class Side(NamedTuple):
    """A running worker."""

    facts: dict[str, Any]
    call: Callable[[int], list[float]]


def start(stack: ExitStack, command: list[str]) -> Side:
    """Starts a worker, which ends with the stack; its command begins with the interpreter."""
    pipe = subprocess.PIPE
    process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True))
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    stack.callback(process.kill)
    line = stdout.readline()
    if not line:
        sys.exit(f"this side failed: {' '.join(command)}")

    def call(n: int) -> list[float]:
        print(n, file=stdin, flush=True)
        return json.loads(stdout.readline())

    return Side(json.loads(line), call)


def alternating(
    sides: dict[str, Side], *, rounds: int, calls: int, warmup: int = 2, first: int = 10
) -> dict[str, float]:
    """The median milliseconds of each side's calls: `calls` in a row by each in turn, after some that warm up."""
    for side in sides.values():
        side.call(first)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        names = list(sides)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # each comes first in its turn
            times[name] += sides[name].call(warmup + calls)[warmup:]
    return {name: median(values) for name, values in times.items()}


def serve(facts: dict[str, Any], call: Callable[[], object], wait: Callable[[], object] = lambda: None) -> None:
    """What a worker's program does once it is ready; `wait` waits for the device."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        spent = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            wait()
            spent.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(spent), flush=True)
