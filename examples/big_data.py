"""Trains on an array that stays on disk: python examples/big_data.py FILE.npy

FILE.npy holds images [n, C, H, W], as bytes or as floats in [0, 1]. It may be larger than the memory.
"""

import math

import cyclopts
from torch import nn

import funcvae as fv


def main(file: str, epochs: int = 1, latent: int = 16, batch: int = 128) -> float:
    images = fv.data.stream(file)  # reads the header; a tenth of the rows is the test set
    shape = images.train.shape[1:]
    pixels = math.prod(shape)
    model = fv.vae(
        encoder=lambda: nn.Sequential(nn.Flatten(), nn.Linear(pixels, 400), nn.ReLU(), nn.Linear(400, 2 * latent)),
        decoder=lambda: nn.Sequential(
            nn.Linear(latent, 400), nn.ReLU(), nn.Linear(400, pixels), nn.Unflatten(1, shape)
        ),
        posterior=lambda out: fv.heads.normal_logvar(out.chunk(2, -1)),
        latent=latent,
    )
    opt = fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    ts, history = fv.train.fit(
        ts, model, fv.estimators.elbo(), opt, images.train, test=images.test,
        epochs=epochs, batch=batch, observe=fv.model.as_floats, compile=False, progress=fv.tracking.bar,
    )  # fmt: skip
    print(f"ELBO on the test set: {history.test_bound[-1]:.1f} nats")
    return float(history.test_bound[-1])


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
