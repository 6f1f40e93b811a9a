"""An eager functional step against `nn.Module` + `torch.optim.Adam(foreach=True)`: python tests/benchmarks/step.py

The Bernoulli VAE 784-400-20 at batch 128. "gradient and update" starts from given noise, "whole step" is
`train.make_step`'s, which also derives its noise from a key and reports the gradient's norm.
"""

import argparse
import os
from collections.abc import Callable

import torch
from timing import BATCH, INPUTS, LATENT, interleaved, make_decoder, make_encoder, module_step

import funcvae as fv


def functional_steps(x: torch.Tensor, samples: int, estimator: fv.Estimator) -> dict[str, Callable[[], object]]:
    model = fv.vae(encoder=make_encoder, decoder=make_decoder, latent=LATENT)
    opt = fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    keys = fv.random.split(fv.random.key(1))
    eps = fv.noise.iid(keys[0], samples, (len(x), LATENT))
    whole = fv.train.make_step(model, estimator, opt.update_, samples=samples)

    def gradient_and_update() -> None:
        out = estimator(model, ts.params, ts.state, x, eps, train=True)
        opt.update_(out.grads, ts.opt_state, ts.params)

    return {"gradient and update": gradient_and_update, "whole step": lambda: whole(ts, keys, x)}


def main(rounds: int) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.uname().machine}; median ms of {rounds}")
    x = fv.random.bernoulli(fv.random.key(2), 0.3, (BATCH, INPUTS)).float()
    for samples in (1, 16):
        sides = functional_steps(x, samples, fv.estimators.elbo())
        sides = {name: torch.no_grad()(side) for name, side in sides.items()}
        medians = interleaved({"module": module_step(x, samples), **sides}, rounds=rounds)
        for name, ms in medians.items():
            print(f"N = {samples:2}  {name:20} {ms:7.2f} ms  {ms / medians['module']:5.2f} of module")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    main(parser.parse_args().rounds)
