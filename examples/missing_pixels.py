"""A likelihood that ignores missing pixels, whose mask is the condition: python examples/missing_pixels.py"""

from typing import NamedTuple

import cyclopts
import numpy as np
import torch
from torch import Tensor, nn

import funcvae as fv
from funcvae.distributions import Bernoulli


class Masked(NamedTuple):
    """Independent Bernoullis of the pixels whose mask is 1."""

    pixels: Bernoulli
    mask: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        return self.mask * self.pixels.log_prob(x)


class Decoder(nn.Sequential):
    """The logits, and the mask for the likelihood."""

    def forward(self, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(z), mask


def main(data: str = "mnist", data_dir: str = "data", epochs: int = 10, missing: float = 0.5) -> np.ndarray:
    x, key = (fv.data.load(data, root=data_dir).train.flatten(1) >= 128).float(), fv.random.key(0)
    mask = fv.random.bernoulli(key, 1 - missing, tuple(x.shape)).float()
    model = fv.vae(
        encoder=lambda: nn.Sequential(nn.Flatten(), nn.Linear(1568, 200), nn.ReLU(), nn.Linear(200, 20)),
        decoder=lambda: Decoder(nn.Linear(10, 200), nn.ReLU(), nn.Linear(200, 784)),
        likelihood=lambda out: Masked(Bernoulli(out[0]), out[1]),  # type: ignore[arg-type, return-value]
        latent=10, modelled=lambda data: data[:, 0], condition=lambda data: data[:, 1],
    )  # fmt: skip
    opt, est, train = fv.optim.adam(1e-3), fv.estimators.elbo(), torch.stack([x * mask, mask], 1)
    _, history = fv.train.fit(fv.train.init(model, opt, key), model, est, opt, train, epochs=epochs, compile=False)
    print(f"ELBO of the observed pixels of a digit: {history.bound[-100:].mean():.2f} nats")
    return history.bound


if __name__ == "__main__":
    cyclopts.run(main, result_action="return_value")
