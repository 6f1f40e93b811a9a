"""Growth of time with the sizes of a step, of the variance lab and of the data; memory and hashing at the start.

python tests/benchmarks/growth.py [--quick] [--precision medium] [--device cpu] [--out examples/figures/growth.png]
                                   [--mib 64 256 1024]

The compiled training step of a Bernoulli VAE 784-width-Z is timed against the samples N, the batch B, the latents Z
and the width, each with the others at N = 8, B = 128, Z = 20, width = 400. Eager `variance.moments` of a small VAE
(B = 8, N = 4, width = 50) is timed against its replicates R. In theory all are linear: inputs and outputs stay 784, so
products grow with the width, not with its square. An epoch of `fit` (eager; N = 1, width = 100) is timed against the
number of data n.

Times are medians over rounds; in each round, every size of an axis is timed once. The exponent is the slope of a line
through (log size, log time). It is fitted where the growing part dominates the rest (calls, noise, other products): to
the points with more than twice the smallest time, or to the last three if these are fewer. An exponent above 1.05 is
marked. Four axes share one step. If its times differ by more than half, other programs disturbed the measurement; the
program reports this and draws no figure.

Then `mnist_vae` is trained for one eager step on files of --mib MiB of bytes, in memory and as a stream, each in a
separate process. "memory" is the peak of the process minus that for a file of 16 MiB, divided by the difference of the
sizes. It is marked above 1.1 for data in memory and above 0.1 for a stream. "reads" is the same for the bytes that are
read from files, and is marked above 1.1. More than one hash is marked. Linux only.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, StrMethodFormatter
from memory import held
from streaming import write
from timing import interleaved, marked
from torch import nn

import funcvae as fv

LIMIT = 1.05
BUSY = 1.5
LEAST = 16  # MiB of the file to which starts are compared: more than the blocks that are read at a time
INPUTS = 784
HELD = {"N": 8, "B": 128, "Z": 20, "width": 400}
SMALL = {"N": 4, "B": 8, "Z": 20, "width": 50}  # for the lab
NAMES = {
    "N": "samples N",
    "B": "batch B",
    "Z": "latents Z",
    "width": "hidden width",
    "R": "replicates R of the lab",
    "n": "data n",
}
SIZES = {
    "N": [1, 2, 8, 32, 64, 128],
    "B": [32, 128, 512, 1024, 2048],
    "Z": [20, 80, 320, 640, 1280],
    "width": [100, 400, 800, 1600, 3200],
    "R": [128, 256, 512, 1024, 2048],
    "n": [4096, 8192, 16384, 32768, 65536],
}
QUICK = {
    "N": [1, 8, 16], "B": [32, 128, 256], "Z": [20, 80, 320], "width": [100, 400, 800], "R": [128, 256, 512],
    "n": [1024, 2048, 4096],
}  # fmt: skip
TIMED = {"R": "variance.moments", "n": "epoch of fit"}  # instead of a training step


class Growth(NamedTuple):
    """The times along one axis, and the line that is fitted to some of them."""

    sizes: list[int]
    ms: np.ndarray
    fitted: np.ndarray  # mask of the fitted points
    exponent: float
    intercept: float


def bernoulli_vae(latent: int, width: int) -> fv.VAE:
    return fv.vae(
        encoder=lambda: nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, 2 * latent)),
        decoder=lambda: nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, INPUTS)),
        latent=latent,
    )


def data(batch: int, device: str) -> torch.Tensor:
    return fv.random.bernoulli(fv.random.key(2, device=device), 0.3, (batch, INPUTS)).float()


def training_step(sizes: dict[str, int], device: str) -> Callable[[], object]:
    """A compiled training step with these sizes."""
    model, opt = bernoulli_vae(sizes["Z"], sizes["width"]), fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0, device=device))
    keys, x = fv.random.split(fv.random.key(1, device=device)), data(sizes["B"], device)
    step = fv.train.make_step(model, fv.estimators.elbo(), opt.update_, samples=sizes["N"])
    step = torch.no_grad()(fv.compilation.compiled(step, device=device))
    return lambda: step(ts, keys, x)


def lab(replicates: int, device: str) -> Callable[[], object]:
    """The moments of a small model's gradient."""
    model = bernoulli_vae(SMALL["Z"], SMALL["width"])
    params, state = model.init(fv.random.key(0, device=device))
    x, key = data(SMALL["B"], device), fv.random.key(1, device=device)
    return lambda: fv.variance.moments(
        fv.estimators.elbo(), model, params, state, x, key, samples=SMALL["N"], replicates=replicates
    )


def epoch(n: int, device: str) -> Callable[[], object]:
    """An epoch of `fit` on n data."""
    model, opt, elbo = bernoulli_vae(HELD["Z"], 100), fv.optim.adam(1e-3), fv.estimators.elbo()
    ts, x = fv.train.init(model, opt, fv.random.key(0, device=device)), data(n, device)
    return lambda: fv.train.fit(ts, model, elbo, opt, x, batch=HELD["B"], epochs=1, compile=False)


def waiting(call: Callable[[], object], device: str) -> Callable[[], object]:
    """The call, changed to return only when the device is done."""

    def done() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return done


def measure(axis: str, sizes: list[int], rounds: int, device: str) -> Growth:
    def side(size: int) -> Callable[[], object]:
        if axis in TIMED:
            return {"R": lab, "n": epoch}[axis](size, device)
        return training_step(HELD | {axis: size}, device)

    sides = {str(size): waiting(side(size), device) for size in sizes}
    ms = np.array(list(interleaved(sides, rounds=rounds, warmup=1 if axis in TIMED else 3).values()))
    fitted = ms > 2 * ms.min()
    if fitted.sum() < 3:
        fitted = np.arange(len(ms)) >= len(ms) - 3
    exponent, intercept = np.polyfit(np.log(sizes)[fitted], np.log(ms[fitted]), 1)
    return Growth(sizes, ms, fitted, float(exponent), float(intercept))


def panel(ax: Axes, axis: str, found: Growth) -> None:
    sizes, blue, orange = np.array(found.sizes), fv.figures.PALETTE[0], fv.figures.PALETTE[1]
    line = np.exp(found.intercept) * sizes[found.fitted] ** found.exponent
    reference = sizes[[0, -1]] * line[-1] / sizes[-1]
    ax.plot(sizes[[0, -1]], reference, "--", color="0.35", linewidth=1.2, label="proportional: slope 1")
    ax.plot(sizes[found.fitted], line, color=orange, linewidth=4, alpha=0.6, label="fit")
    ax.plot(sizes[found.fitted], found.ms[found.fitted], "o", color=blue, label="measured")
    rest = ~found.fitted
    ax.plot(sizes[rest], found.ms[rest], "o", mfc="white", color=blue, label="measured, not in the fit")
    ax.set(xscale="log", yscale="log", xlabel=NAMES[axis], ylabel=f"{TIMED.get(axis, 'training step')} [ms]")
    ax.set_ylim(0.6 * found.ms.min(), 1.7 * found.ms.max())
    ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.minorticks_off()
    ax.set_title(f"{NAMES[axis]}: exponent {found.exponent:.2f}", size="medium")
    ax.grid(alpha=0.25)


def draw(growths: dict[str, Growth], device: str) -> Figure:
    figure = Figure(figsize=(14.5, 6.6), layout="constrained")
    title = "Time grows at most in proportion to the work" if within(growths) else "Growth of time with the work"
    figure.suptitle(f"{title} (both axes logarithmic; an exponent of 1 is proportional)")
    axes = list(figure.subplots(2, 4).flat)
    for ax, (axis, found) in zip(axes, growths.items(), strict=False):
        panel(ax, axis, found)
    for ax in axes[len(growths) :]:
        ax.axis("off")
    handles = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    axes[-1].legend(handles.values(), handles, loc="upper left", frameon=False)
    held, small = (", ".join(f"{axis} = {size}" for axis, size in of.items()) for of in (HELD, SMALL))
    text = f"Training step: compiled, of a Bernoulli VAE\n784-width-Z ({device}). Unless varied,\n{held}."
    text += f"\n\nvariance.moments: eager, with\n{small}.\n\nfit: eager, N = 1, width = 100."
    axes[-1].text(0.03, 0.05, text, va="bottom")
    return figure


def within(growths: dict[str, Growth]) -> bool:
    return all(found.exponent <= LIMIT for found in growths.values())


def start(path: str, side: str) -> None:
    """Makes the first step of a run. Prints peak MiB, MiB that were read, number of hashes, and seconds of hashing."""
    seconds, sha256 = list[float](), fv.data.Dataset.sha256

    def timed(dataset: fv.data.Dataset) -> str:
        before = time.perf_counter()
        digest = sha256(dataset)
        seconds.append(time.perf_counter() - before)
        return digest

    def read() -> float:
        return int(Path("/proc/self/io").read_text().split()[1]) / 2**20  # rchar

    setattr(fv.data.Dataset, "sha256", timed)  # noqa: B010
    before = read()
    with tempfile.TemporaryDirectory() as folder, suppress(fv.errors.Stopped):
        fv.runs.train(
            "mnist_vae", data=path, stream=side == "stream", epochs=1, compile=False, out=f"{folder}/run",
            stop_context=lambda: nullcontext(lambda: True),
        )  # fmt: skip
    print(held("VmHWM")[0], read() - before, len(seconds), sum(seconds))


def started(path: Path, side: str) -> np.ndarray:
    command = [sys.executable, __file__, "--start", str(path), side]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return np.array(done.stdout.split(), float)


def starts(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        write(path, LEAST / 1024, "uint8")
        least = {side: started(path, side) for side in ("memory", "stream")}
        for mib in sizes:
            write(path, mib / 1024, "uint8")
            for side, limit in (("memory", 1.1), ("stream", 0.1)):
                peak, read, hashes, seconds = started(path, side)
                grown, reads = (np.array([peak, read]) - least[side][:2]) / (mib - LEAST)
                print(
                    f"start on {mib:5} MiB, {side}: memory {marked(grown, limit)} of the added data, reads "
                    f"{marked(reads, 1.1)}, hashed {marked(hashes, 1, '.0f')} time in {seconds:.1f} s",
                    flush=True,
                )


def main(args: argparse.Namespace) -> None:
    fv.compilation.keep_freed()
    growths: dict[str, Growth] = {}
    table = QUICK if args.quick else SIZES
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {args.device}, {args.precision}; median ms")
    with fv.compilation.precision(args.precision):
        for axis in args.axes:
            found = growths[axis] = measure(axis, table[axis], args.rounds, args.device)
            pairs = zip(found.sizes, found.ms, found.fitted, strict=True)
            spent = ", ".join(f"{size}: {ms:.3g}" if used else f"({size}: {ms:.3g})" for size, ms, used in pairs)
            over = f"  OVER {LIMIT}" if found.exponent > LIMIT else ""
            print(f"{NAMES[axis]:12} {spent}; exponent {found.exponent:.2f}{over}", flush=True)
    shared = [growths[axis].ms[growths[axis].sizes.index(HELD[axis])] for axis in growths if axis in HELD]
    if shared and max(shared) > BUSY * min(shared):
        print(f"DISTURBED: the step that the axes share takes {min(shared):.3g} to {max(shared):.3g} ms; no figure")
    elif not args.no_figure:
        print(fv.figures.save(draw(growths, args.device), args.out))
    starts(args.mib)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, too small to estimate the exponents")
    parser.add_argument("--axes", nargs="*", default=list(SIZES), choices=SIZES)
    parser.add_argument("--mib", type=int, nargs="*", default=[64, 256, 1024], help="sizes of files, for the start")
    parser.add_argument("--start", nargs=2, metavar=("PATH", "SIDE"), help="measure one start in this process")
    parser.add_argument("--precision", default="medium", choices=fv.compilation.PRECISIONS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-figure", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("examples/figures/growth.png"))
    args = parser.parse_args()
    if args.start:
        start(*args.start)
    else:
        main(args)
