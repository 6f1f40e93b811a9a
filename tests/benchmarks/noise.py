"""The share of a training step that its noise takes: python tests/benchmarks/noise.py

The Bernoulli VAE 784-400-20 at batch 128. Noise is what a step draws from its key; the keys themselves are derived for
a whole epoch at once, and their share of one step is counted in.
"""

import argparse

import torch
from timing import BATCH, INPUTS, LATENT, interleaved, make_decoder, make_encoder

import funcvae as fv

STEPS = 469  # of an epoch of 60,000


def main(rounds: int) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; median ms of {rounds}")
    x = fv.random.bernoulli(fv.random.key(2), 0.3, (BATCH, INPUTS)).float()
    model = fv.vae(encoder=make_encoder, decoder=make_decoder, latent=LATENT)
    opt = fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    keys = fv.random.split(fv.random.key(1))
    for samples in (1, 16):
        shape = (samples, (BATCH, LATENT))
        fixed = fv.noise.iid(keys[0], *shape)
        step = fv.train.make_step(model, fv.estimators.elbo(), opt.update_, samples=samples)
        quiet = fv.train.make_step(
            model, fv.estimators.elbo(), opt.update_, samples=samples, noise=lambda *_, eps=fixed, **__: eps
        )
        compiled = torch.compile(step, fullgraph=True, dynamic=False)
        compiled_quiet = torch.compile(quiet, fullgraph=True, dynamic=False)
        sides = {
            "keys of an epoch": lambda: fv.train.step_keys(keys[1], torch.arange(STEPS)),
            "noise, eager": lambda shape=shape: fv.noise.iid(keys[0], *shape),
            "step, eager": lambda step=step: step(ts, keys, x),
            "step, compiled": lambda step=compiled: step(ts, keys, x),
            "step, compiled, noise given": lambda step=compiled_quiet: step(ts, keys, x),
        }
        ms = interleaved({name: torch.no_grad()(side) for name, side in sides.items()}, rounds=rounds)
        derive = ms.pop("keys of an epoch") / STEPS
        eager = (ms["noise, eager"] + derive) / ms["step, eager"]
        compiled_share = (ms["step, compiled"] - ms["step, compiled, noise given"] + derive) / ms["step, compiled"]
        for name, value in ms.items():
            print(f"N = {samples:2}  {name:28} {value:7.3f} ms")
        print(f"N = {samples:2}  share of noise: eager {eager:.1%}, compiled {compiled_share:.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    main(parser.parse_args().rounds)
