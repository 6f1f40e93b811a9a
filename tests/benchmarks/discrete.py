"""The time of a step with each estimator for discrete latents, against `rloo`: python tests/benchmarks/discrete.py

A training step of `sbn_vae` (200 Bernoulli latents) at batch 50: noise from a key, gradient, Adam, the norm of the
gradient. Estimators with two decodes for each noise have half as many noises as `rloo`, so that the number of decodes
is equal. Steps take turns; eager, then with --compiled compiled. The limit for `disarm` is 1.15 times the time of
`rloo`; ratios above it are marked.
"""

import argparse
import os
from collections.abc import Callable

import torch
from timing import interleaved, marked

import funcvae as fv
from funcvae.estimators import parse

LIMITS = {"disarm": 1.15}


def step(spec: str, samples: int, x: torch.Tensor, compiled: bool) -> Callable[[], object]:
    model, opt = fv.models.sbn_vae(), fv.optim.adam(1e-4)
    ts = fv.train.init(model, opt, fv.random.key(0))
    keys = fv.random.split(fv.random.key(1))
    whole = fv.train.make_step(model, parse(spec), opt.update_, samples=samples)
    whole = torch.no_grad()(fv.compilation.compiled(whole) if compiled else whole)
    return lambda: whole(ts, keys, x)


def main(rounds: int, decodes: list[int], compiled: bool) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.uname().machine}; median ms of {rounds}")
    fv.compilation.keep_freed()  # as `fit` does
    x = fv.random.bernoulli(fv.random.key(2), 0.3, (50, 1, 28, 28)).float()
    for how in ("eager", "compiled") if compiled else ("eager",):
        for m in decodes:
            of_two = ("disarm", "arm", "disarm_local", "rebar:0.7:0.6")
            samples = dict.fromkeys(("rloo", "score", "vimco", "straight_through"), m) | dict.fromkeys(of_two, m // 2)
            medians = interleaved(
                {spec: step(spec, n, x, how == "compiled") for spec, n in samples.items()}, rounds=rounds
            )
            rloo = medians.pop("rloo")
            for spec, ms in medians.items():
                ratio = marked(ms / rloo, LIMITS.get(spec))
                print(f"{how:8}  M = {m:2}  {spec:17} {ms:6.2f} / {rloo:6.2f} ms = {ratio}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--decodes", type=int, nargs="+", default=[2, 8], help="even numbers M of decodes of a datum")
    parser.add_argument("--compiled", action="store_true", help="also time compiled steps")
    main(**vars(parser.parse_args()))
