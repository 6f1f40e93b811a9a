"""The noise's share of a training step's time: python tests/benchmarks/noise.py

The model is the Bernoulli VAE 784-400-20 at batch 128. The noise's time is the time of a step that draws it minus that
of a step with given noise, plus one step's share of deriving an epoch's keys.
"""

import argparse
from functools import partial

import torch
from systems import BATCH, LATENT, SYSTEMS
from timing import interleaved

import funcvae as fv

STEPS = 469  # in an epoch of 60,000 items


def main(rounds: int) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median ms of {rounds}")
    fv.compilation.keep_freed()  # as `fit` does
    x, model = SYSTEMS["bernoulli"].data(), SYSTEMS["bernoulli"].model()
    opt = fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    keys = fv.random.split(fv.random.key(1))
    for samples in (1, 16):
        eps = fv.noise.iid(keys[0], samples, (BATCH, LATENT))

        def given(*_: object, eps: torch.Tensor = eps, **__: object) -> torch.Tensor:
            return eps

        make = partial(fv.train.make_step, model, fv.estimators.elbo(), opt.update_, samples=samples)
        compiled = fv.compilation.compiled
        steps = {
            "eager": (make(), make(noise=given)),
            "compiled": (compiled(make()), compiled(make(noise=given))),
        }
        for how, (drawn, without) in steps.items():
            sides = {"drawn": partial(drawn, ts, keys, x), "given": partial(without, ts, keys, x)}
            sides["keys"] = lambda: fv.train.step_keys(keys[1], torch.arange(STEPS))
            ms = interleaved({name: torch.no_grad()(side) for name, side in sides.items()}, rounds=rounds)
            noise = ms["drawn"] - ms["given"] + ms["keys"] / STEPS
            share = noise / ms["drawn"]
            print(f"N = {samples:2}  {how:8}  noise {noise:6.3f} ms of a step's {ms['drawn']:6.2f}: {share:5.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    main(parser.parse_args().rounds)
