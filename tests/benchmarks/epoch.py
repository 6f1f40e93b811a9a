"""The time of an epoch against the loop of the original post, and the share of it outside the compiled step.

python tests/benchmarks/epoch.py --data-dir data

First, mnist_vae on all 60,000 digits at batch 128 with one sample, against the loop of its post: a DataLoader with
ToTensor, `nn.Module`s, summed squared error plus the correct KL, `torch.optim.Adam(fused=True)`. Epochs of the two
alternate. Then, for mnist_vae and burda_vae with a progress bar and a file of metrics as in `funcvae train`, the share
of an epoch's time that is not spent in the compiled step. Without --data-dir, only this share is measured, on images
from a key. The first epoch, which compiles, is excluded from all medians. A share above its limit is marked.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torchvision
from timing import marked
from torch import Tensor
from torch.utils.data import DataLoader

import funcvae as fv
from funcvae.models.mnist import Decoder, VariationalEncoder

OUTSIDE = 0.05  # limit of the share


def posts_epoch(root: str) -> Callable[[], None]:
    digits = torchvision.datasets.MNIST(root, transform=torchvision.transforms.ToTensor())
    loader = DataLoader(digits, batch_size=128, shuffle=True)
    encoder, decoder = VariationalEncoder(2), Decoder(2)
    opt = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], fused=True)

    def epoch() -> None:
        for x, _ in loader:
            opt.zero_grad()
            mu, log_sigma = encoder(x)
            sigma = log_sigma.exp()
            x_hat = decoder(mu + sigma * torch.randn_like(mu))
            kl = (0.5 * (sigma**2 + mu**2 - 1) - log_sigma).sum()
            (((x - x_hat) ** 2).sum() + kl).backward()
            opt.step()

    return epoch


def fit(system: str, train: Tensor, epochs: int, log: fv.train.Log, **options: Any) -> None:
    """Trains by the system's recipe, from a key."""
    recipe = fv.models.SYSTEMS[system].recipe
    model, opt = fv.models.SYSTEMS[system].build(train), recipe.optimizer(-(-len(train) // recipe.batch))
    fv.train.fit(
        fv.train.init(model, opt, fv.random.key(0)), model, fv.estimators.parse(recipe.estimator), opt, train,
        epochs=epochs, batch=recipe.batch, observe=recipe.observe, scale=recipe.scale, log=log,
        offset=fv.models.SYSTEMS[system].offset(), **options,
    )  # fmt: skip


def against_the_post(data_dir: str, train: Tensor, epochs: int, **options: Any) -> tuple[float, float]:
    """Median seconds of an epoch of `fit` and of the post's loop. The two alternate and have the same precision."""
    ours: list[float] = []
    theirs: list[float] = []
    posts = posts_epoch(data_dir)

    def log(row: fv.train.Row) -> None:
        nonlocal start
        if row["kind"] == "step":
            return
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        posts()
        theirs.append(time.perf_counter() - start)
        start = time.perf_counter()

    start = time.perf_counter()
    fit("mnist_vae", train, epochs, log, **options)
    return median(ours[1:]), median(theirs[1:])


def outside_the_step(system: str, train: Tensor, epochs: int, **options: Any) -> tuple[float, float]:
    """Median seconds of an epoch, and of its part outside the calls of the compiled step."""
    epoch: list[float] = []
    outside: list[float] = []
    inside = 0.0
    compiled = fv.compilation.compiled

    def timed(f: Callable[..., Any], **how: Any) -> Callable[..., Any]:
        fast = compiled(f, **how)

        def call(*args: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            out = fast(*args)
            inside += time.perf_counter() - start
            return out

        return call

    steps = epochs * -(-len(train) // fv.models.SYSTEMS[system].recipe.batch)
    with (
        tempfile.TemporaryDirectory() as folder,
        fv.tracking.MetricsWriter(Path(folder, "metrics.jsonl")) as lines,
        fv.tracking.TrainingProgress(system, steps, epochs) as progress,
    ):

        def log(row: fv.train.Row) -> None:
            nonlocal start, inside
            lines.log(row)
            progress.log(row)
            if row["kind"] == "epoch":
                epoch.append(time.perf_counter() - start)
                outside.append(epoch[-1] - inside)
                start, inside = time.perf_counter(), 0.0

        fv.compilation.compiled = timed  # `fit` calls what this returns
        try:
            start = time.perf_counter()
            fit(system, train, epochs, log, **options)
        finally:
            fv.compilation.compiled = compiled
    return median(epoch[1:]), median(outside[1:])


def main(data_dir: str | None, systems: list[str], epochs: int, images: int, precision: str) -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {precision}; median seconds an epoch")
    if data_dir is None:
        train = fv.random.uniform(fv.random.key(3), (60_000, 1, 28, 28))
    else:
        digits = fv.data.load("mnist", root=data_dir)
        train = digits.decode(digits.train)
        for how, compile in {"compiled": True, "eager": False}.items():
            ours, posts = against_the_post(data_dir, train, epochs, compile=compile, precision=precision)
            print(f"mnist_vae  {how} {ours:.2f} / the post's loop {posts:.2f} = {ours / posts:.2f}", flush=True)
    for system in systems:
        epoch, outside = outside_the_step(system, train[:images], epochs, precision=precision)
        share = marked(outside / epoch, OUTSIDE, ".1%")
        print(f"{system:9}  epoch {epoch:.3f}, outside its steps {outside:.3f}: {share}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="the folder of MNIST")
    parser.add_argument("--systems", nargs="*", default=["mnist_vae", "burda_vae"], choices=["mnist_vae", "burda_vae"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=60_000, help="number of images for the share outside the step")
    parser.add_argument("--precision", choices=fv.compilation.PRECISIONS, default="medium")
    main(**vars(parser.parse_args()))
