"""What a step costs with each estimator, against `iwae`: python tests/benchmarks/estimators.py

A whole training step of the Bernoulli VAE 784-400-20 at batch 128: noise from a key, gradient, Adam, the norm of the
gradient. One step of each estimator in turn, so that all meet the same machine. `dreg` may take 1.15 times as long as
`iwae`, the others 1.3 times; what takes longer is marked.
"""

import argparse
import os
from collections.abc import Callable

import torch
from timing import BATCH, INPUTS, LATENT, interleaved, make_decoder, make_encoder

import funcvae as fv
from funcvae.estimators import EXAMPLES, parse


def step(estimator: fv.Estimator, x: torch.Tensor, samples: int, compiled: bool) -> Callable[[], object]:
    model = fv.vae(encoder=make_encoder, decoder=make_decoder, latent=LATENT)
    opt = fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    keys = fv.random.split(fv.random.key(1))
    whole = torch.no_grad()(fv.train.make_step(model, estimator, opt.update_, samples=samples))
    if compiled:
        whole = torch.compile(whole, fullgraph=True, dynamic=False)
    return lambda: whole(ts, keys, x)


def main(rounds: int, samples: list[int], compiled: bool) -> None:
    how = "compiled" if compiled else "eager"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.uname().machine}; {how}; ", end="")
    print(f"median ms of {rounds}")
    x = fv.random.bernoulli(fv.random.key(2), 0.3, (BATCH, INPUTS)).float()
    others = [name for name in EXAMPLES.values() if name != "iwae"]
    # Compiled steps share their code and so a list of guards, which is searched at every call: two at a time.
    rounds_of = [[name] for name in others] if compiled else [others]
    for n in samples:
        for names in rounds_of:
            torch._dynamo.reset()
            sides = {name: step(parse(name), x, n, compiled) for name in ("iwae", *names)}
            medians = interleaved(sides, rounds=rounds)
            for name in names:
                ratio, limit = medians[name] / medians["iwae"], 1.15 if name == "dreg" else 1.3
                over = f"  OVER {limit}" if ratio > limit else ""
                print(
                    f"K = {n:2}  {name:18} {medians[name]:6.2f} / {medians['iwae']:6.2f} ms = {ratio:4.2f}{over}",
                    flush=True,
                )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--samples", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--compiled", action="store_true")
    arguments = parser.parse_args()
    main(arguments.rounds, arguments.samples, arguments.compiled)
