"""The time until the end of a run's first step, measured in a new process every time.

python tests/benchmarks/startup.py [--all] [--rounds 3]

First, the seconds of `import torch` and of importing `funcvae.train`, which imports torch too; the limit is 1.3 times
the former. Then, the seconds from the start of the process to the end of the first step of `train.fit`, on as many
random images as in the recipe's data set: eager, compiled with an empty compiler cache, and compiled with a warm cache.
In brackets are its parts: the imports, the data, the model's initialization, and `fit` up to its first step. Medians,
except for one run with an empty cache. Values above their limits are marked.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from statistics import median

IMPORTS = 1.3  # relative to torch's
LIMITS = {"eager": 5.0, "compiled, cache empty": 25.0, "compiled, cache warm": 8.0}  # seconds
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
    start = time.time()
    out = subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout
    times = [start, *map(float, out.split())]
    return [after - before for before, after in pairwise(times)]


def over(value: float, limit: float) -> str:
    return f"  OVER {limit:g}" if value > limit else ""


def report(system: str, how: str, runs: list[list[float]]) -> None:
    seconds = median(map(sum, runs))
    spent = ", ".join(
        f"{name} {median(column):.1f}" for name, column in zip(PARTS, zip(*runs, strict=True), strict=True)
    )
    print(f"{system:16} {how:21} {seconds:5.1f} s ({spent}){over(seconds, LIMITS[how])}", flush=True)


def main(systems: list[str], rounds: int) -> None:
    pairs = [(import_seconds("torch"), import_seconds("funcvae.train")) for _ in range(5)]
    torch, funcvae = map(median, zip(*pairs, strict=True))
    ratio = funcvae / torch
    print(f"funcvae.train / torch: {funcvae:.2f} / {torch:.2f} s = {ratio:.2f}{over(ratio, IMPORTS)}", flush=True)
    for system in systems:
        eager, empty, warm = LIMITS
        with tempfile.TemporaryDirectory() as cache:
            report(system, eager, [parts(system, False, cache) for _ in range(rounds)])
            report(system, empty, [parts(system, True, cache)])
            report(system, warm, [parts(system, True, cache) for _ in range(rounds)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="also cifar_resnet_vae, which compiles for minutes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--first-step", choices=ITEMS, help="make one first step and print when its parts ended")
    parser.add_argument("--compile", action="store_true", help="compile the step of --first-step")
    args = parser.parse_args()
    if args.first_step:
        first_step(args.first_step, args.compile)
    else:
        main([*ITEMS] if args.all else ["mnist_vae", "burda_vae"], args.rounds)
