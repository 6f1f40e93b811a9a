"""The first seconds: imports, help, the time to the first step, and one epoch from the command line.

python tests/benchmarks/startup.py [--jax /path/to/python] [--all] [--rounds 3]

Everything runs in new processes. First, the seconds of `import torch`, and of importing `funcvae` with its first use of
`vae`, `train` and `variance`, which imports torch too; then those of `funcvae --help`. Then, the seconds from the start
of the process to the end of the first step of `train.fit`, on as many random images as in the recipe's data set: eager,
compiled with an empty compiler cache, and compiled with a warm cache. In brackets are its parts: the imports, the data,
the model's initialization, and `fit` up to its first step. JAX's time is that of a step with the same layers (for
`mnist_vae`, of 784-400-20). Last, one epoch of `mnist_vae` from the command line with an empty cache, against the
better one of eager and warm compiled. Medians, except for runs with an empty cache. Values above their limits, which
hold on two cores on which `import torch` takes 1.2 s, are marked.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
from workers import start

IMPORTS, HELP = 1.1, 0.5  # relative to torch's; seconds
LIMITS = {"eager": 2.2, "compiled, cache empty": 14.0, "compiled, cache warm": 4.0}  # seconds
EPOCH = 1.3  # relative to the better one of eager and warm compiled
JAX = {"mnist_vae": "bernoulli", "burda_vae": "burda"}
USED = "funcvae as fv; fv.vae; fv.train; fv.variance"
ITEMS = {"mnist_vae": 60_000, "burda_vae": 60_000, "cifar_resnet_vae": 50_000}
PARTS = ("imports", "data", "init", "fit")


def import_seconds(module: str) -> float:
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


def first_step(system: str, compile: bool) -> None:
    """Prints the clock times at which each of PARTS ends. Called first in a new process."""
    import funcvae as fv
    from funcvae.estimators import parse
    from funcvae.models import SYSTEMS

    times = [time.time()]
    recipe = SYSTEMS[system].recipe
    shape = [32 if n is None else n for n in recipe.shape]
    few = fv.random.uniform(fv.random.key(0), (500, *shape))  # repeated below, because drawing all takes longer
    train = few.repeat(ITEMS[system] // len(few), *[1] * len(shape))
    times.append(time.time())
    model, opt = SYSTEMS[system].build(train), recipe.optimizer(len(train) // recipe.batch)
    ts = fv.train.init(model, opt, fv.random.key(1))
    times.append(time.time())
    fv.train.fit(
        ts, model, parse(recipe.estimator), opt, train, batch=recipe.batch, observe=recipe.observe, scale=recipe.scale,
        compile=compile, offset=SYSTEMS[system].offset(),
        watch=lambda step, ts: times.append(time.time()), stop=lambda: True,
    )  # fmt: skip
    print(*times)


def parts(system: str, compile: bool, cache: str) -> list[float]:
    """Seconds of each of PARTS."""
    command = [sys.executable, __file__, "--first-step", system, *["--compile"] * compile]
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    begin = time.time()
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    times = [begin, *map(float, out.split())]
    return [after - before for before, after in pairwise(times)]


def over(value: float, limit: float) -> str:
    return f"  OVER {limit:g}" if value > limit else ""


def report(system: str, how: str, runs: list[list[float]]) -> None:
    seconds = median(map(sum, runs))
    spent = ", ".join(
        f"{name} {median(column):.1f}" for name, column in zip(PARTS, zip(*runs, strict=True), strict=True)
    )
    print(f"{system:16} {how:21} {seconds:5.1f} s ({spent}){over(seconds, LIMITS[how])}", flush=True)


def seconds_of(command: list[str], **environment: str) -> float:
    start = time.time()
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
    return time.time() - start


def jax_first_step(jax: str, system: str) -> float:
    """The seconds from the start of the process to the end of JAX's first step."""
    start_time = time.time()
    with ExitStack() as stack:
        start(stack, [jax, str(Path(__file__).parent / "jax_side.py"), JAX[system], "1"])
        return time.time() - start_time


def one_epoch(cache: str) -> None:
    """Prints the seconds of an epoch of mnist_vae on the command line."""
    with tempfile.TemporaryDirectory() as folder:
        images = np.random.default_rng(0).integers(0, 256, (70_000, 28, 28), np.uint8)
        np.savez(f"{folder}/images.npz", train=images[:60_000], test=images[60_000:])
        command = [sys.executable, "-m", "funcvae", "train", "mnist_vae", "--data", f"{folder}/images.npz"]
        command += ["--epochs", "1", "--out"]
        by_rule = seconds_of([*command, f"{folder}/auto"], TORCHINDUCTOR_CACHE_DIR=f"{folder}/empty")
        eager = seconds_of([*command, f"{folder}/eager", "--no-compile"])
        seconds_of([*command, f"{folder}/first", "--compile"], TORCHINDUCTOR_CACHE_DIR=cache)
        warm = seconds_of([*command, f"{folder}/warm", "--compile"], TORCHINDUCTOR_CACHE_DIR=cache)
    ratio = by_rule / min(eager, warm)
    print(
        f"an epoch of mnist_vae from the command line: {by_rule:.1f} s; eager {eager:.1f}, warm compiled {warm:.1f} s: "
        f"{ratio:.2f}{over(ratio, EPOCH)}"
    )


def main(systems: list[str], rounds: int, jax: str | None) -> None:
    pairs = [(import_seconds("torch"), import_seconds(USED)) for _ in range(5)]
    torch, funcvae = map(median, zip(*pairs, strict=True))
    ratio = funcvae / torch
    print(f"funcvae / torch: {funcvae:.2f} / {torch:.2f} s = {ratio:.2f}{over(ratio, IMPORTS)}", flush=True)
    shown = median(seconds_of([sys.executable, "-m", "funcvae", "--help"]) for _ in range(5))
    print(f"funcvae --help: {shown:.2f} s{over(shown, HELP)}", flush=True)
    for system in systems:
        if jax and system in JAX:
            first = median(jax_first_step(jax, system) for _ in range(rounds))
            print(f"{system:16} {'JAX':21} {first:5.1f} s", flush=True)
        eager, empty, warm = LIMITS
        with tempfile.TemporaryDirectory() as cache:
            report(system, eager, [parts(system, False, cache) for _ in range(rounds)])
            report(system, empty, [parts(system, True, cache)])
            report(system, warm, [parts(system, True, cache) for _ in range(rounds)])
    with tempfile.TemporaryDirectory() as cache:
        one_epoch(cache)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="also cifar_resnet_vae, which compiles for minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jax", help="a Python with jax and optax")
    parser.add_argument("--first-step", choices=ITEMS, help="make one first step and print when its parts ended")
    parser.add_argument("--compile", action="store_true", help="compile the step of --first-step")
    args = parser.parse_args()
    if args.first_step:
        first_step(args.first_step, args.compile)
    else:
        main([*ITEMS] if args.all else ["mnist_vae", "burda_vae"], args.rounds, args.jax)
