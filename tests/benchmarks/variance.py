"""The variance lab against a plain loop of `torch.autograd.grad`: python tests/benchmarks/variance.py

Mean and variance of a gradient over 512 replicates of the noise, of the Bernoulli VAE 784-400-20 with a batch of 32 and
8 samples. The plain loop keeps a running sum and a running sum of squares, in float32; the lab keeps four powers in
float64, and what groups, intervals and flags need. Rounds of both sides in turn; medians. Memory is the greatest that a
process of its own has needed. The lab may take 0.6 of the loop's time and 1.5 times its memory.
"""

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from timing import INPUTS, LATENT, interleaved, make_decoder, make_encoder
from torch import Tensor
from torch.nn import functional as F

import funcvae as fv
from funcvae.estimators import parse

BATCH, SAMPLES, REPLICATES = 32, 8, 512
TIME, MEMORY = 0.6, 1.5  # of the plain loop's


def data() -> Tensor:
    return fv.random.bernoulli(fv.random.key(0), 0.3, (BATCH, INPUTS)).float()


def plain_loop(x: Tensor, spec: str, samples: int, replicates: int) -> list[Tensor]:
    """The variance of each parameter's gradient, as one would write it in PyTorch."""
    encoder, decoder = make_encoder(), make_decoder()
    params = [*encoder.parameters(), *decoder.parameters()]
    total, square = ([torch.zeros_like(p) for p in params] for _ in range(2))
    for _ in range(replicates):
        mu, logvar = encoder(x).chunk(2, -1)
        if spec == "dreg":  # z's path alone, with q's parameters held constant
            mu_q, logvar_q = mu.detach(), logvar.detach()
        else:
            mu_q, logvar_q = mu, logvar
        eps = torch.randn(samples, *mu.shape)
        z = mu + (logvar / 2).exp() * eps
        logits = decoder(z.flatten(0, 1)).unflatten(0, (samples, -1))
        log_p_x = -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)
        log_q = -0.5 * (((z - mu_q) ** 2) / logvar_q.exp() + logvar_q).sum(-1)
        log_w = log_p_x - 0.5 * (z**2).sum(-1) - log_q
        if spec == "dreg":
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


MODEL = fv.vae(encoder=make_encoder, decoder=make_decoder, latent=LATENT)
ESTIMATORS = {spec: parse(spec) for spec in ("iwae", "dreg")}


def lab(x: Tensor, spec: str, samples: int, replicates: int, chunk: int, compile: bool) -> fv.variance.Moments:
    params, state = MODEL.init(fv.random.key(1))
    return fv.variance.moments(
        ESTIMATORS[spec], MODEL, params, state, x, fv.random.key(2),
        samples=samples, replicates=replicates, chunk=chunk, compile=compile,
    )  # fmt: skip


def peak(side: str, compile: bool, chunk: int) -> float:
    """The most memory, in MiB, that one side needs in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--chunk", str(chunk), *["--eager"] * (not compile)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def greatest_memory() -> float:
    """The most memory that this process has held, in MiB. (On Linux getrusage counts what its parent held, too.)"""
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def exponent(ns: list[int], seconds: list[float]) -> float:
    """The power of n that the time grows by."""
    return float(np.polyfit(np.log(ns), np.log(seconds), 1)[0])


def main(rounds: int, chunk: int, precisions: list[str], specs: list[str], eager: bool) -> None:
    x = data()
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.uname().machine}; {REPLICATES} replicates"
    )
    for precision in precisions:
        torch.set_float32_matmul_precision(precision)
        for spec in specs:
            for compile in (False,) if eager else (False, True):
                sides = {
                    "loop": lambda spec=spec: plain_loop(x, spec, SAMPLES, REPLICATES),
                    "lab": lambda spec=spec, c=compile: lab(x, spec, SAMPLES, REPLICATES, chunk, c),
                }
                median = interleaved(sides, rounds=rounds, warmup=1)
                ratio = median["lab"] / median["loop"]
                how = f"{spec:5} {'compiled' if compile else 'eager':8} {precision:8}"
                over = f"  OVER {TIME}" if compile and ratio > TIME else ""
                print(f"{how} lab {median['lab']:6.0f} / loop {median['loop']:6.0f} ms = {ratio:.2f}{over}", flush=True)
    torch.set_float32_matmul_precision("highest")
    memory = {side: peak(side, not eager, chunk) for side in ("lab", "loop")}
    ratio = memory["lab"] / memory["loop"]
    over = f"  OVER {MEMORY}" if ratio > MEMORY else ""
    print(f"peak memory: lab {memory['lab']:.0f} / loop {memory['loop']:.0f} MiB = {ratio:.2f}{over}", flush=True)
    for name, ns in {"replicates": [128, 256, 512, 1024], "samples": [4, 8, 16, 32]}.items():
        seconds = []
        for n in ns:
            sizes = {"replicates": 128, "samples": SAMPLES} | {name: n}
            start = time.perf_counter()
            lab(x, "iwae", sizes["samples"], sizes["replicates"], chunk, False)
            seconds.append(time.perf_counter() - start)
        spent = ", ".join(f"{n}: {s:.2f} s" for n, s in zip(ns, seconds, strict=True))
        print(f"eager, against {name}: {spent}; exponent {exponent(ns, seconds):.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunk", type=int, default=16)
    parser.add_argument("--precisions", nargs="+", default=["highest", "medium"])
    parser.add_argument("--specs", nargs="+", default=["iwae", "dreg"])
    parser.add_argument("--eager", action="store_true", help="leave out the compiled lab")
    parser.add_argument("--side", choices=["lab", "loop"], help="run one side once and print its greatest memory")
    arguments = parser.parse_args()
    if arguments.side is None:
        main(arguments.rounds, arguments.chunk, arguments.precisions, arguments.specs, arguments.eager)
    else:
        if arguments.side == "loop":
            plain_loop(data(), "iwae", SAMPLES, 64)
        else:
            lab(data(), "iwae", SAMPLES, 64, arguments.chunk, not arguments.eager)
        print(greatest_memory())
