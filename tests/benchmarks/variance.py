"""Time and memory of the variance lab, against a plain PyTorch loop and against JAX.

python tests/benchmarks/variance.py --jax /path/to/python

Each side computes mean and variance of a gradient over 512 replicates of the noise, for the Bernoulli VAE 784-400-20
with a batch of 32 and 8 samples. Each side runs in a separate process, and the sides take turns; times are medians. The
plain loop runs at torch's default precision of products ("highest") and at "medium", like the lab. `--jax` names a
Python with `jax` and `optax`; without it there is no JAX side. JAX computes as many replicates at once as were fastest
in a trial. Memory is the peak of the process after one call, compiler included. Values above their limits are marked.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from timing import marked
from workers import Side, alternating, start

HERE = Path(__file__).parent
REPLICATES, TRIAL, CHUNKS = 512, 64, (2, 4, 8, 16)  # JAX's chunks
OF_LOOP, OF_JAX, OF_MEMORY, FLAT = 0.35, 0.6, 1.5, 1.05  # limits for the compiled lab at "medium"


def torch_lab(
    stack: ExitStack, side: str, estimator: str, chunk: int, precision: str, replicates: int = REPLICATES
) -> Side:
    program = str(HERE / "torch_lab.py")
    return start(stack, [sys.executable, program, side, estimator, str(replicates), str(chunk), precision])


def jax_lab(stack: ExitStack, jax: str, estimator: str, chunk: int, replicates: int = REPLICATES) -> Side:
    return start(stack, [jax, str(HERE / "jax_lab.py"), estimator, str(replicates), str(chunk)])


def best_chunk(jax: str, estimator: str) -> int:
    ms = {}
    for chunk in CHUNKS:
        with ExitStack() as stack:
            ms[chunk] = min(jax_lab(stack, jax, estimator, chunk, TRIAL).call(4)[1:])  # the first compiles
    return min(ms, key=ms.__getitem__)


def compare(estimator: str, chunk: int, jax: str | None, rounds: int) -> float:
    """Prints the times; returns the peak memory of the loop."""
    with ExitStack() as stack:
        sides = {
            f"{side} {precision}": torch_lab(stack, side, estimator, chunk, precision)
            for side in ("loop", "eager", "compiled")
            for precision in ("highest", "medium")
            if (side, precision) != ("eager", "highest")
        }
        if jax:
            best = best_chunk(jax, estimator)
            sides["JAX"] = jax_lab(stack, jax, estimator, best)
        ms = alternating(sides, rounds=rounds, calls=1, warmup=0, first=1)
        peak = sides["loop highest"].facts["peak"]
    times = ", ".join(f"{name} {value:.0f}" for name, value in ms.items())
    lab = ms["compiled medium"]
    ratios = [
        f"compiled medium/loop highest {marked(lab / ms['loop highest'], OF_LOOP)}",
        f"compiled medium/loop medium {lab / ms['loop medium']:.2f}",
        f"compiled highest/loop highest {ms['compiled highest'] / ms['loop highest']:.2f}",
        f"eager medium/loop medium {ms['eager medium'] / ms['loop medium']:.2f}",
    ]
    if jax:
        ratios.append(f"compiled medium/JAX (chunk {best}) {marked(lab / ms['JAX'], OF_JAX)}")
    print(f"{estimator:4}  {times} ms | {', '.join(ratios)}", flush=True)
    return peak


def memory(estimator: str, chunk: int, loop: float) -> None:
    peaks = []
    for replicates in (128, 2048):
        with ExitStack() as stack:
            peaks.append(torch_lab(stack, "compiled", estimator, chunk, "medium", replicates).facts["peak"])
    small, large = peaks
    print(
        f"{estimator:4}  peak memory {small:.0f} MiB for 128 replicates, {large:.0f} for 2048: "
        f"{marked(large / small, FLAT)}; the loop's {loop:.0f}: {marked(large / loop, OF_MEMORY)}",
        flush=True,
    )


def main(rounds: int, chunk: int, jax: str | None, estimators: list[str]) -> None:
    print(f"{os.cpu_count()} processors, {os.uname().machine}; median milliseconds of {REPLICATES} replicates")
    for estimator in estimators:
        memory(estimator, chunk, compare(estimator, chunk, jax, rounds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunk", type=int, default=16, help="replicates at a time in the lab")
    parser.add_argument("--jax", help="a Python with jax and optax")
    parser.add_argument("--estimators", nargs="+", default=["iwae", "dreg"], choices=["iwae", "dreg"])
    main(**vars(parser.parse_args()))
