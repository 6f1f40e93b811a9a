"""Time and memory of L_5000 of 1,000 digits, against the time of its products: python tests/benchmarks/evaluate.py

The Burda VAE is untrained and the digits come from a key; neither changes the cost. The floor is the time of the
decoder's products at the rate of a product 2048×2048×2048 in the same run.
"""

import argparse
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import nn

import funcvae as fv

SECONDS, GIBIBYTES, SHARE = 60, 2, 0.7  # limits: time on two cores, memory, least floor/time
PRODUCT = 2048


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def operations_of_a_decode() -> int:
    """Floating-point operations of the matrix products for one latent."""
    decoder = fv.models.burda.BurdaDecoder(50, torch.full((784,), 0.5))
    return sum(2 * layer.weight.numel() for layer in decoder.modules() if isinstance(layer, nn.Linear))


def main(digits: int, samples: int, chunk: int, eager: bool, precisions: list[str]) -> None:
    model = fv.models.burda_vae()
    params, state = model.init(fv.random.key(0))
    x = fv.random.bernoulli(fv.random.key(1), 0.3, (digits, 1, 28, 28)).float()
    warnings.simplefilter("ignore", fv.evaluate.Untrusted)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.uname().machine}")
    a, out = torch.randn(PRODUCT, PRODUCT), torch.empty(PRODUCT, PRODUCT)

    def run(samples: int) -> object:
        return fv.evaluate.log_likelihood(
            model, params, state, x, fv.random.key(2), samples=samples, chunk=chunk, compile=not eager
        )

    for precision in precisions:
        with fv.compilation.precision(precision):
            first = seconds(lambda: run(chunk))
            products = [seconds(lambda: torch.mm(a, a, out=out)) for _ in range(15)]
            spent = seconds(lambda: run(samples))
            products = sorted(products + [seconds(lambda: torch.mm(a, a, out=out)) for _ in range(15)])
        floor = samples * digits * operations_of_a_decode() / (2 * PRODUCT**3) * products[len(products) // 2]
        share = f"{floor / spent:.2f}" + (f" (below {SHARE})" if floor / spent < SHARE else "")
        print(
            f"L_{samples} of {digits:,} digits, {precision}: {spent:.1f} s (limit {SECONDS}) after {first:.1f} s for "
            f"the first chunk; floor {floor:.1f} s = {share} of the time",
            flush=True,
        )
    unit = 2**30 if sys.platform == "darwin" else 2**20
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(f"peak memory {memory:.2f} GiB (limit {GIBIBYTES})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--chunk", type=int, default=100)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--precisions", nargs="+", default=["highest", "medium"])
    main(**vars(parser.parse_args()))
