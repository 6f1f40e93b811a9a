"""The time of a step with each estimator, against `iwae`: python tests/benchmarks/estimators.py [--compiled]

A whole training step of the Bernoulli VAE 784-400-20 at batch 128: noise from a key, gradient, Adam, the norm of the
gradient. The estimators take turns of one step. Steps are eager; with --compiled, compiled steps follow. The limit is
1.15 times the time of `iwae` for `dreg`, 1.3 times for others; ratios above it are marked.
"""

import argparse
import os
from collections.abc import Callable

import torch
from systems import SYSTEMS
from timing import interleaved, marked

import funcvae as fv
from funcvae.estimators import EXAMPLES, parse

CONTINUOUS = [spec for spec in EXAMPLES.values() if parse(spec).claims.posterior != "discrete"]
LIMIT, LIMITS = 1.3, {"dreg": 1.15}


def step(estimator: fv.Estimator, x: torch.Tensor, samples: int, compiled: bool) -> Callable[[], object]:
    model, opt = SYSTEMS["bernoulli"].model(), fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    keys = fv.random.split(fv.random.key(1))
    whole = fv.train.make_step(model, estimator, opt.update_, samples=samples)
    whole = torch.no_grad()(fv.compilation.compiled(whole) if compiled else whole)
    return lambda: whole(ts, keys, x)


def main(rounds: int, samples: list[int], names: list[str], compiled: bool, precision: str) -> None:
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.uname().machine}; "
        f"products at {precision} precision; median ms of {rounds}"
    )
    torch.set_float32_matmul_precision(precision)
    fv.compilation.keep_freed()  # as `fit` does
    x = SYSTEMS["bernoulli"].data()
    for how in ("eager", "compiled") if compiled else ("eager",):
        for n in samples:
            sides = {name: step(parse(name), x, n, how == "compiled") for name in dict.fromkeys(["iwae", *names])}
            medians = interleaved(sides, rounds=rounds)
            iwae = medians.pop("iwae")
            for name, ms in medians.items():
                ratio = marked(ms / iwae, LIMITS.get(name, LIMIT))
                print(f"{how:8}  K = {n:2}  {name:18} {ms:6.2f} / {iwae:6.2f} ms = {ratio}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--names", nargs="+", default=CONTINUOUS, help="only these")
    parser.add_argument("--compiled", action="store_true", help="also time compiled steps")
    parser.add_argument("--precision", choices=fv.compilation.PRECISIONS, default="highest")
    main(**vars(parser.parse_args()))
