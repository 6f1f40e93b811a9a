"""Runs each side of a comparison in a separate process; the sides take turns.

A worker (`torch_side.py`, `jax_side.py`, `torch_lab.py`, `jax_lab.py`) prepares its side and prints a JSON object of
facts. Then, for every number n that it reads, it makes n calls and prints their milliseconds as a JSON list.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple


class Side(NamedTuple):
    """A running worker."""

    facts: dict[str, Any]
    call: Callable[[int], list[float]]


def start(stack: ExitStack, command: list[str], environment: Mapping[str, str] = MappingProxyType({})) -> Side:
    """Starts a worker, which ends with the stack. The command starts with the Python interpreter; `environment` has
    further environment variables."""
    pipe, env = subprocess.PIPE, {**os.environ, **environment}
    process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env))
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
    """Median milliseconds of each side's calls. The sides take turns of `calls` calls, after `warmup` untimed ones."""
    for side in sides.values():
        side.call(first)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        names = list(sides)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:  # in every round another side starts
            times[name] += sides[name].call(warmup + calls)[warmup:]
    return {name: median(values) for name, values in times.items()}


def serve(facts: dict[str, Any], call: Callable[[], object], wait: Callable[[], object] = lambda: None) -> None:
    """Runs a prepared worker: times as many calls as requested; `wait` waits for the device."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        spent = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            wait()
            spent.append(1e3 * (time.perf_counter() - start))
        print(json.dumps(spent), flush=True)
