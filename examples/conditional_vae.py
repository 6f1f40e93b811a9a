"""A conditional VAE draws digits by class: python examples/conditional_vae.py"""

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import one_hot

import funcvae as fv


class Encoder(nn.Sequential):
    """q(z|x, y)."""

    def forward(self, data: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return super().forward(torch.cat([data["x"].flatten(1), one_hot(data["y"], 10)], 1)).chunk(2, -1)


class Decoder(nn.Sequential):
    """p(x|z, y)."""

    def forward(self, z: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(torch.cat([z, one_hot(y, 10)], 1)).unflatten(1, (1, 28, 28))


def main(data: str = "mnist", data_dir: str = "data", epochs: int = 20, out: str = "conditional_vae.png") -> str:
    digits = fv.data.load(data, root=data_dir).labelled()  # train and test are {"x": images, "y": labels}
    model = fv.vae(
        encoder=lambda: Encoder(nn.Linear(794, 400), nn.ReLU(), nn.Linear(400, 20)),
        decoder=lambda: Decoder(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784)),
        latent=10, modelled=lambda data: data["x"], condition=lambda data: data["y"],
    )  # fmt: skip
    opt, est, observe = fv.optim.adam(1e-3), fv.estimators.elbo(), fv.model.as_floats
    ts = fv.train.init(model, opt, fv.random.key(0))
    ts, _ = fv.train.fit(ts, model, est, opt, digits.train, test=digits.test, epochs=epochs, observe=observe)
    figure = fv.figures.of_model.image_samples(
        model, ts.params, ts.state, fv.random.key(1), 100, condition=torch.arange(10).repeat_interleave(10),
        rows=[f"class {y}" for y in range(10)], name="conditional VAE",
    )  # fmt: skip
    return str(fv.figures.save(figure, out))


if __name__ == "__main__":
    print(tyro.cli(main))
