"""A run whose data stay on disk against the same run with its data in memory, each side in a separate process.

python tests/benchmarks/streaming.py [--gib 4] [--dtype float32] [--steps 400] [--rounds 3]

Writes a temporary `.npy` of pictures, and trains `mnist_vae` on them (batch 128, compiled). "process" is the peak
memory of the whole process (VmHWM), including libraries, compiler and pages of mapped files. "data" is the part of it
that came after a first compiled step: the peak from then on (VmHWM is reset) minus the memory at that time (VmRSS).
"steps/s" is measured after that step. The system's cache holds the file if there is room. Values of the stream above
a quarter of the data, and a loss of speed above 10%, are marked. Medians; Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from memory import held, settle
from timing import marked

import funcvae as fv

SIDES = ("memory", "stream")
BATCH, PIXELS = 128, (1, 28, 28)


def write(path: Path, gib: float, dtype: str) -> int:
    """Writes pictures in blocks; returns their number of bytes."""
    n = int(gib * 2**30) // (784 * np.dtype(dtype).itemsize)
    file = np.lib.format.open_memmap(path, "w+", dtype, (n, *PIXELS))
    rng = np.random.default_rng(0)
    for i in range(0, n, 10_000):
        block = rng.integers(0, 256, file[i : i + 10_000].shape, dtype=np.uint8)
        file[i : i + 10_000] = block if dtype == "uint8" else block / 255
    return int(file.nbytes)


def measure(side: str, path: str, steps: int) -> None:
    """Prints "process" and "data" in MiB, and the seconds of a step."""
    model, opt, elbo = fv.models.mnist_vae(), fv.optim.adam(1e-3), fv.estimators.elbo()
    ts = fv.train.init(model, opt, fv.random.key(0))
    ends = [0.0, 0.0]

    def watch(step: int, _: fv.train.TrainState) -> None:
        if step in (10, 10 + steps):
            ends[step > 10] = time.perf_counter()

    def stop() -> bool:
        return ends[1] > ends[0]

    def fit(x: torch.Tensor, **options: object) -> None:
        fv.train.fit(ts, model, elbo, opt, x, batch=BATCH, observe=fv.model.as_floats, epochs=100, **options)

    small = torch.from_numpy(np.load(path, mmap_mode="r")[:BATCH].copy())
    fit(small, stop=lambda: True)
    (first,) = held("VmHWM")
    settle()
    (before,) = held("VmRSS")
    x = np.load(path, mmap_mode="r" if side == "stream" else None)
    fit(torch.from_numpy(x) if side == "memory" else x, watch=watch, stop=stop)
    (peak,) = held("VmHWM")
    print(max(first, peak), peak - before, (ends[1] - ends[0]) / steps)


def measured(side: str, path: Path, steps: int) -> list[float]:
    command = [sys.executable, __file__, "--side", side, "--path", str(path), "--steps", str(steps)]
    return [
        float(word) for word in subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    ]


def main(gib: float, dtype: str, steps: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        size = write(path, gib, dtype) / 2**20
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {size:,.0f} MiB of {dtype}")
        runs = [{side: measured(side, path, steps) for side in SIDES} for _ in range(rounds)]
    found = {side: [median(values) for values in zip(*(run[side] for run in runs), strict=True)] for side in SIDES}
    for side, (process, data, seconds) in found.items():
        print(f"{side:7} process {process:6.0f} MiB, data {data:6.0f} MiB, {1 / seconds:6.0f} steps/s")
    process, data, _ = found["stream"]
    slower = median(run["stream"][2] / run["memory"][2] for run in runs)
    print(f"stream: process {marked(process / size, 0.25)} of the data, data {marked(data / size, 0.25)} of the data,")
    print(f"        time of a step {marked(slower, 1.1)} of that in memory")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=4)
    parser.add_argument("--dtype", choices=("uint8", "float32"), default="float32")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process")
    parser.add_argument("--path")
    args = parser.parse_args()
    if args.side:
        measure(args.side, args.path, args.steps)
    else:
        main(args.gib, args.dtype, args.steps, args.rounds)
