"""L_5000 of 1,000 digits: seconds and memory, against their limits: python tests/benchmarks/evaluate.py

The Burda VAE, untrained, on digits drawn from a key: neither matters to the cost.
"""

import argparse
import os
import resource
import sys
import time
import warnings

import torch

import funcvae as fv

SECONDS, GIBIBYTES = 60, 2  # of two cores


def main(digits: int, samples: int, chunk: int) -> None:
    model = fv.models.burda_vae()
    params, state = model.init(fv.random.key(0))
    x = fv.random.bernoulli(fv.random.key(1), 0.3, (digits, 1, 28, 28)).float()
    warnings.simplefilter("ignore", fv.evaluate.Untrusted)
    start = time.perf_counter()
    fv.evaluate.log_likelihood(model, params, state, x, fv.random.key(2), samples=samples, chunk=chunk)
    seconds = time.perf_counter() - start
    unit = 2**30 if sys.platform == "darwin" else 2**20
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.uname().machine}")
    print(f"L_{samples} of {digits:,} digits: {seconds:.1f} s (limit {SECONDS}), {memory:.2f} GiB (limit {GIBIBYTES})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--chunk", type=int, default=100)
    arguments = parser.parse_args()
    main(arguments.digits, arguments.samples, arguments.chunk)
