"""An epoch against the loop it comes from, and the share of it outside the compiled step.

python tests/benchmarks/epoch.py --data-dir data

First mnist_vae on all 60,000 digits at batch 128 with one sample, against what its post writes: a DataLoader with
ToTensor, `nn.Module`s, summed squared error plus KL (the correct one), `torch.optim.Adam(fused=True)`. Then mnist_vae
and burda_vae, with a progress bar and a file of metrics as in `funcvae train`, against as many bare steps: the compiled
step in a loop, on one batch with one pair of keys. In both, epochs of the two sides alternate, and the first, in which
a side compiles, is left out of the medians. Without --data-dir only the second, on images from a key. A share over its
limit is marked.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch
import torchvision
from torch import Tensor
from torch.utils.data import DataLoader

import funcvae as fv
from funcvae import data, tracking
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


def bare_steps(system: str, train: Tensor, compile: bool) -> Callable[[], None]:
    """As many steps as an epoch has, with nothing in between."""
    recipe = fv.models.RECIPES[system]
    steps = -(-len(train) // recipe.batch)
    model, opt = recipe.model(train), recipe.optimizer(steps)
    ts = fv.train.init(model, opt, fv.random.key(1))
    keys, x = fv.random.split(fv.random.key(2)), train[: recipe.batch].clone()
    step = fv.train.make_step(
        model, fv.estimators.parse(recipe.estimator), opt.update_, observe=recipe.observe, scale=recipe.scale,
        offset=recipe.offset,
    )  # fmt: skip
    step = torch.no_grad()(fv.machine.compiled(step) if compile else step)

    def run() -> None:
        nonlocal ts
        for _ in range(steps):
            ts, report = step(ts, keys, x)
        float(report.loss)

    return run


def alternating(
    system: str, train: Tensor, other: Callable[[], None], epochs: int, compile: bool, precision: str, bar: bool
) -> tuple[float, float]:
    """The median seconds of an epoch of `fit` and of the other side, which runs after each at the same precision."""
    recipe = fv.models.RECIPES[system]
    steps = -(-len(train) // recipe.batch)
    model, opt = recipe.model(train), recipe.optimizer(steps)
    ours: list[float] = []
    theirs: list[float] = []

    with ExitStack() as stack:
        tracks: list[tracking.Tracker] = []
        if bar:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            tracks.append(stack.enter_context(tracking.Lines(folder / "metrics.jsonl")))
            tracks.append(stack.enter_context(tracking.progress_bar(epochs * steps)))

        def log(row: fv.train.Row) -> None:
            nonlocal start
            for track in tracks:
                track(row)
            if tracking.is_a_step(row):
                return
            ours.append(time.perf_counter() - start)
            start = time.perf_counter()
            other()
            theirs.append(time.perf_counter() - start)
            start = time.perf_counter()

        ts = fv.train.init(model, opt, fv.random.key(0))
        start = time.perf_counter()
        fv.train.fit(
            ts, model, fv.estimators.parse(recipe.estimator), opt, train, epochs=epochs, batch=recipe.batch,
            observe=recipe.observe, scale=recipe.scale, offset=recipe.offset, compile=compile, precision=precision,
            log=log,
        )  # fmt: skip
    return median(ours[1:]), median(theirs[1:])


def main(data_dir: str | None, systems: list[str], epochs: int, images: int, eager: bool, precision: str) -> None:
    how = "eager" if eager else "compiled"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {how}, {precision}; median seconds an epoch")
    if data_dir is None:
        train = fv.random.uniform(fv.random.key(3), (60_000, 1, 28, 28))
    else:
        train = data.load("mnist", root=data_dir).train
        ours, posts = alternating("mnist_vae", train, posts_epoch(data_dir), epochs, not eager, precision, False)
        print(f"mnist_vae  funcvae {ours:.2f} / the post's loop {posts:.2f} = {ours / posts:.2f}", flush=True)
    train = train[:images]
    for system in systems:
        steps = bare_steps(system, train, not eager)
        epoch, bare = alternating(system, train, steps, epochs, not eager, precision, True)
        share = 1 - bare / epoch
        over = f" (over {OUTSIDE:.0%})" if share > OUTSIDE else ""
        print(f"{system:9}  epoch {epoch:.3f}, its steps alone {bare:.3f}: {share:.1%} outside{over}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", help="where MNIST is")
    parser.add_argument("--systems", nargs="*", default=["mnist_vae", "burda_vae"], choices=["mnist_vae", "burda_vae"])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--images", type=int, default=60_000, help="only so many, for the share")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--precision", choices=fv.machine.PRECISIONS, default="medium")
    main(**vars(parser.parse_args()))
