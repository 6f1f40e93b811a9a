"""A likelihood that ignores missing pixels, whose mask is the condition: python examples/missing_pixels.py"""

from typing import NamedTuple

import torch
import tyro
from torch import Tensor, nn

import funcvae as fv
from funcvae.distributions import Bernoulli


class Masked(NamedTuple):  # independent Bernoullis of the pixels whose mask is 1
    pixels: Bernoulli
    mask: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        return self.mask * self.pixels.log_prob(x)


class Encoder(nn.Sequential):
    def forward(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return super().forward(torch.cat([data["x"] * data["mask"], data["mask"]], 1)).chunk(2, -1)


class Decoder(nn.Sequential):
    def forward(self, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(z), mask


def main(data: str = "mnist", data_dir: str = "data", epochs: int = 10, missing: float = 0.5) -> fv.evaluate.Likelihood:
    digits, key = fv.data.load(data, root=data_dir), fv.random.key(0)
    x = (digits.train.flatten(1) >= 128).float()
    mask = fv.random.bernoulli(key, 1 - missing, tuple(x.shape)).float()
    train = {"x": x * mask, "mask": mask}  # the model never sees a missing pixel
    model = fv.vae(
        encoder=lambda: Encoder(nn.Linear(1568, 200), nn.ReLU(), nn.Linear(200, 20)),
        decoder=lambda: Decoder(nn.Linear(10, 200), nn.ReLU(), nn.Linear(200, 784)),
        likelihood=lambda out: Masked(Bernoulli(out[0]), out[1]),
        latent=10, modelled=lambda data: data["x"], condition=lambda data: data["mask"],
    )  # fmt: skip
    opt, est = fv.optim.adam(1e-3), fv.estimators.elbo()
    ts, _ = fv.train.fit(fv.train.init(model, opt, key), model, est, opt, train, epochs=epochs)
    few = {name: part[:100] for name, part in train.items()}
    found = fv.evaluate.log_likelihood(model, ts.params, ts.state, few, fv.random.key(1), samples=1000)
    print(f"log p of the observed pixels of a digit: {found.log_p.mean:.2f} ± {found.log_p.mean_se:.2f} nats")
    return found


if __name__ == "__main__":
    tyro.cli(main)
