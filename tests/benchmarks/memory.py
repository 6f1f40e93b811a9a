"""The memory of a training step against that of a plain PyTorch loop, each side in a separate process.

python tests/benchmarks/memory.py [--systems bernoulli cifar] [--many] [--rounds 3]

"step" is the memory of the model, its optimizer and five steps: the peak of the process in these steps (VmHWM) minus
its memory before the model was made (VmRSS), both without pages of files such as torch's code. A step that compiles
comes before the five. Then free memory is returned to the system and the peak is reset. The compiler's modules are
loaded before the data are made, so a compiled "step" counts what the compiler keeps of this step, but not the compiler
itself. "process" is the peak of the whole process, including libraries, compiler and first step. (Compilers in other
processes are not counted.) A "step" above 1.3 times that of the plain loop is marked. Medians, in MiB; Linux only.

--many adds Bernoulli with 4096 samples, 64 of them decoded at a time, without a plain loop to compare with.
"""

import argparse
import ctypes
import gc
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from systems import SYSTEMS
from timing import marked
from torch_side import functional_step

import funcvae as fv
from funcvae.estimators import parse

LIMIT = 1.3  # relative to the plain loop
SAMPLES = {"bernoulli": (1, 16, 64), "cifar": (1,)}
SIDES = ("module", "eager", "compiled")
MANY, CHUNK = 4096, 64
STEPS = 5


def held(*names: str) -> list[float]:
    """Values of these lines of /proc/self/status, in MiB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    status = {words[0].rstrip(":"): words[1] for words in lines if len(words) == 3}
    return [int(status[name]) / 2**10 for name in names]


def settle() -> None:
    """Returns free memory to the system and resets the peak."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def load_the_compiler() -> None:
    """Loads the compiler's modules, including those for products, gradients and loops."""

    def slope(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda w: (x @ w).relu().sum())(w)

    fv.compilation.compiled(slope)(torch.ones(8, 8), torch.ones(8, 8))


def chunked_step(system: str, samples: int, compiled: bool) -> Callable[[], object]:
    """`functional_step` with CHUNK samples at a time, as `fit` makes it for many samples."""
    about = SYSTEMS[system]
    model, opt = about.model(), fv.optim.adam(1e-3, eps=about.eps)
    wrap = fv.compilation.compiled if compiled else fv.compilation.unchanged
    estimator = fv.estimators.in_chunks(parse(about.estimator), CHUNK, wrap)
    ts, keys, x = fv.train.init(model, opt, fv.random.key(0)), fv.random.split(fv.random.key(1)), about.data()
    step = fv.train.make_step(model, estimator, opt.update_, samples=samples, observe=about.observe)
    fv.compilation.keep_freed()
    return torch.no_grad()(lambda: step(ts, keys, x))


def measure(side: str, system: str, samples: int) -> None:
    """Prints "step" and "process" for this process."""
    about = SYSTEMS[system]
    load_the_compiler()
    x = about.data()
    settle()
    (before,) = held("RssAnon")
    if samples == MANY:
        call = chunked_step(system, samples, side == "compiled")
    elif side == "module":
        call = about.module_step(x, samples)
    else:
        call = functional_step(system, samples, about.estimator, side == "compiled", "cpu", batches=1)
    call()
    (first,) = held("VmHWM")
    settle()
    for _ in range(STEPS):
        call()
    peak, files, shared = held("VmHWM", "RssFile", "RssShmem")
    print(peak - files - shared - before, max(peak, first))


def measured(side: str, system: str, samples: int, rounds: int) -> tuple[float, float]:
    """Medians of "step" and "process"."""
    command = [sys.executable, __file__, "--side", side, "--systems", system, "--samples", str(samples)]
    runs = [
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split() for _ in range(rounds)
    ]
    step, process = (median(map(float, column)) for column in zip(*runs, strict=True))
    return step, process


def compare(system: str, samples: int, rounds: int) -> None:
    sides = [side for side in SIDES if samples != MANY or side != "module"]
    found = {side: measured(side, system, samples, rounds) for side in sides}
    for side, (step, process) in found.items():
        line = f"{system:9} N = {samples:4}  {side:8}  step {step:6.0f}  process {process:6.0f} MiB"
        if side != "module" and "module" in found:
            ratio = step / found["module"][0]
            line += f" | relative to module: step {marked(ratio, LIMIT)}"
            line += f", process {process / found['module'][1]:.2f}"
        print(line, flush=True)


def main(systems: list[str], counts: list[int] | None, rounds: int, many: bool) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; MiB")
    for system in systems:
        for samples in SAMPLES[system]:
            if counts is None or samples in counts:
                compare(system, samples, rounds)
    if many:
        compare("bernoulli", MANY, rounds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--systems", nargs="+", default=list(SAMPLES), choices=SAMPLES)
    parser.add_argument("--samples", type=int, nargs="+", help="only these")
    parser.add_argument("--many", action="store_true", help=f"also {MANY} samples in chunks")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help="measure one side in this process")
    args = parser.parse_args()
    if args.side:
        measure(args.side, args.systems[0], args.samples[0])
    else:
        main(args.systems, args.samples, args.rounds, args.many)
