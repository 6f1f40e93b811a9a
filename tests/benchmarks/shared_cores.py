"""Training steps of programs that share the cores: one alone, two side by side, and one beside a busy loop.

python tests/benchmarks/shared_cores.py [--threads 1 2] [--spins 1000 20000]

torch's threads spin while they wait for each other. On shared cores a thread may spin for the time that another program
uses its core, at every operation. `funcvae.cli` sets the time that they spin (GOMP_SPINCOUNT) before it imports torch,
and `funcvae.runs` trains small steps on one thread. Median milliseconds of a step, with torch's own settings and with
those of funcvae, or with each of the given ones. Values above their limits are marked.
"""

import argparse
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from subprocess import Popen

from timing import marked
from workers import start

from funcvae.threads import SPIN_COUNT

WORKER = str(Path(__file__).parent / "torch_side.py")
SHARED = 2.5  # limit of the time beside another program, relative to that alone
STEPS = {  # (system, N, how): the number of calls; the limit of the time alone, relative to torch's own settings; small
    ("burda", 1, "eager"): (400, 1.2, True),
    ("burda", 1, "compiled"): (1500, 1.2, True),
    ("bernoulli", 16, "eager"): (60, 1.03, False),
    ("bernoulli", 16, "compiled"): (80, 1.03, False),
}
Settings = dict[str, str]  # environment variables


@contextmanager
def busy_loop() -> Iterator[None]:
    process = Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()


def step_ms(step: tuple[str, int, str], settings: Settings, programs: int, busy: bool = False) -> float:
    """The median milliseconds of a step in programs that run at the same time."""
    system, samples, how = step
    command = [sys.executable, WORKER, how, system, str(samples), "highest", "cpu"]
    with ExitStack() as stack:
        sides = [start(stack, command, settings) for _ in range(programs)]
        for side in sides:
            side.call(10)
        if busy:
            stack.enter_context(busy_loop())
        calls = STEPS[step][0] // (1 if programs == 1 and not busy else 4)
        with ThreadPoolExecutor() as threads:
            times = list(threads.map(lambda side: side.call(calls), sides))
    return median(ms for each in times for ms in each)


def report(step: tuple[str, int, str], name: str, settings: Settings, own: float | None) -> float:
    """Prints a line; returns the time alone."""
    alone = step_ms(step, settings, 1)
    two, busy = step_ms(step, settings, 2), step_ms(step, settings, 1, busy=True)
    of_own = f", of torch's own {marked(alone / own, STEPS[step][1])}" if own else ""
    system, samples, how = step
    print(
        f"{system:9} N = {samples:2} {how:8} {name:24} alone {alone:7.2f}{of_own:12}  two {two:7.2f} = "
        f"{marked(two / alone, SHARED)}  beside a busy loop {busy:7.2f} = {marked(busy / alone, SHARED)}",
        flush=True,
    )
    return alone


def main(threads: list[int], spins: list[int]) -> None:
    print(f"{os.cpu_count()} processors; median milliseconds of a step")
    for step, (_, _, is_small) in STEPS.items():
        own = report(step, "torch's own", {}, None)
        if not spins:
            ours = {"GOMP_SPINCOUNT": str(SPIN_COUNT)} | ({"OMP_NUM_THREADS": "1"} if is_small else {})
            report(step, "funcvae's", ours, own)
        for spin in spins:
            for n in threads:
                report(step, f"{n} threads, spin {spin}", {"GOMP_SPINCOUNT": str(spin), "OMP_NUM_THREADS": str(n)}, own)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--spins", type=int, nargs="*", default=[], help="values of GOMP_SPINCOUNT to try")
    main(**vars(parser.parse_args()))
