"""An epoch of mnist_vae against the loop it comes from: python tests/benchmarks/epoch.py --data-dir data

Both train 784-512-2 on all 60,000 digits at batch 128 with one sample. The other side is what its post writes: a
DataLoader with ToTensor, `nn.Module`s, summed squared error plus KL (the correct one), `torch.optim.Adam`. Epochs of
the two sides alternate. The first, in which the compiled side compiles, is left out of the medians.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
import torchvision
from torch.utils.data import DataLoader

import funcvae as fv
from funcvae import data
from funcvae.models.mnist import Decoder, VariationalEncoder


def posts_epoch(root: str) -> Callable[[], None]:
    digits = torchvision.datasets.MNIST(root, transform=torchvision.transforms.ToTensor())
    loader = DataLoader(digits, batch_size=128, shuffle=True)
    encoder, decoder = VariationalEncoder(2), Decoder(2)
    opt = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()])

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


def main(root: str, epochs: int, compile: bool) -> None:
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {'compiled' if compile else 'eager'}; seconds an epoch")
    train = data.load("mnist", root=root).train
    recipe = fv.models.RECIPES["mnist_vae"]
    model, opt = recipe.model(train), recipe.optimizer(469)
    other = posts_epoch(root)
    ours: list[float] = []
    theirs: list[float] = []
    start = time.perf_counter()

    def log(row: fv.train.Row) -> None:
        nonlocal start
        if "loss" in row:  # a step's row, not an epoch's
            return
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        other()
        theirs.append(time.perf_counter() - start)
        print(f"epoch {row['epoch']}:  funcvae {ours[-1]:6.2f}  post's loop {theirs[-1]:6.2f}", flush=True)
        start = time.perf_counter()

    ts = fv.train.init(model, opt, fv.random.key(0))
    fv.train.fit(ts, model, fv.estimators.elbo(), opt, train, epochs=epochs, compile=compile, log=log)
    ratio = median(ours[1:]) / median(theirs[1:])
    print(f"median after the first: funcvae {median(ours[1:]):.2f}, post's loop {median(theirs[1:]):.2f}: {ratio:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    main(args.data_dir, args.epochs, not args.eager)
