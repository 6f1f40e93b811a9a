"""Trains your own system into a run folder: python examples/own_system.py FOLDER

FOLDER holds colour images of one size. The command line does the same, and has the same options:

    funcvae train examples/own_system.py:bird_vae --data FOLDER --model.latent 10
    funcvae evaluate RUN --system examples/own_system.py:bird_vae
"""

import math
from pathlib import Path

import cyclopts
from torch import Tensor, nn

import funcvae as fv


def bird_vae(train: Tensor | None = None, latent: int = 10, hidden: int = 128) -> fv.VAE:
    """`latent` and `hidden` are options; `train` is the training data, floats or bytes [n, 3, H, W]."""
    shape = (3, 32, 32) if train is None else train.shape[1:]
    size = math.prod(shape)
    return fv.vae(
        encoder=lambda: nn.Sequential(nn.Flatten(), nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)),
        decoder=lambda: nn.Sequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, size), nn.Sigmoid(), nn.Unflatten(1, shape)
        ),
        posterior=fv.heads.normal_logvar, likelihood=fv.heads.normal_fixed(0.1), latent=latent,
    )  # fmt: skip


bird = fv.System("bird_vae", "VAE of small images", bird_vae, fv.models.Recipe(shape=(3, None, None), epochs=20))


def main(folder: str, epochs: int = 20, out: str | None = None) -> Path:
    return fv.runs.train(bird, data=folder, epochs=epochs, out=out)


if __name__ == "__main__":
    print(cyclopts.run(main, result_action="return_value"))
