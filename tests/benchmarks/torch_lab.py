"""Worker of `variance.py`: mean and variance of a gradient over replicates in PyTorch.

python tests/benchmarks/torch_lab.py loop|eager|compiled iwae|dreg REPLICATES CHUNK PRECISION

"loop" is what a PyTorch user would write: `torch.autograd.grad` for each replicate, and running sums of gradients and
of their squares in float32. "eager" and "compiled" are the lab, which keeps sums of four powers in float64, and the
numbers for groups, intervals and flags. "peak" among the facts is the peak memory of the process after one call.
"""

import argparse
import resource
import sys
from functools import partial
from pathlib import Path

import torch
from systems import SYSTEMS, make_decoder, make_encoder
from torch import Tensor
from torch.nn import functional as F
from workers import serve

import funcvae as fv
from funcvae.estimators import parse

BATCH, SAMPLES = 32, 8


def plain_loop(x: Tensor, estimator: str, replicates: int) -> list[Tensor]:
    """The variance of each parameter's gradient, as a PyTorch user would write it."""
    encoder, decoder = make_encoder(), make_decoder()
    params = [*encoder.parameters(), *decoder.parameters()]
    total, square = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for _ in range(replicates):
        mu, logvar = encoder(x).chunk(2, -1)
        if estimator == "dreg":  # only the path through z, with q's parameters held constant
            mu_q, logvar_q = mu.detach(), logvar.detach()
        else:
            mu_q, logvar_q = mu, logvar
        eps = torch.randn(SAMPLES, *mu.shape)
        z = mu + (logvar / 2).exp() * eps
        logits = decoder(z.flatten(0, 1)).unflatten(0, (SAMPLES, -1))
        log_p_x = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_q = -0.5 * (((z - mu_q) ** 2) / logvar_q.exp() + logvar_q).sum(-1)
        log_w = log_p_x - 0.5 * (z**2).sum(-1) - log_q
        if estimator == "dreg":
            v = log_w.detach().softmax(0)
            if z.requires_grad:
                z.register_hook(lambda g, v=v: g * v.unsqueeze(-1))  # v² in the encoder, v in the decoder
            loss = -(v * log_w).sum(0).mean()
        else:
            loss = -log_w.logsumexp(0).mean()
        for t, s, g in zip(total, square, torch.autograd.grad(loss, params), strict=True):
            t += g
            s += g * g
    return [(s - t * t / replicates) / (replicates - 1) for t, s in zip(total, square, strict=True)]


def peak_memory() -> float:
    """Peak memory of this process, in MiB. (On Linux, getrusage includes that of its parent.)"""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def main(side: str, estimator: str, replicates: int, chunk: int, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    x = SYSTEMS["bernoulli"].data()[:BATCH]
    if side == "loop":
        call = partial(plain_loop, x, estimator, replicates)
    else:
        model = SYSTEMS["bernoulli"].model()
        params, state = model.init(fv.random.key(1))
        call = partial(
            fv.variance.moments, parse(estimator), model, params, state, x, fv.random.key(3),
            samples=SAMPLES, replicates=replicates, chunk=chunk, compile=side == "compiled",
        )  # fmt: skip
    call()
    serve({"version": f"torch {torch.__version__}", "peak": peak_memory()}, call)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=["loop", "eager", "compiled"])
    parser.add_argument("estimator", choices=["iwae", "dreg"])
    parser.add_argument("replicates", type=int)
    parser.add_argument("chunk", type=int)
    parser.add_argument("precision", choices=fv.compilation.PRECISIONS)
    main(**vars(parser.parse_args()))
