"""A conditional VAE draws digits by class: python examples/conditional_vae.py"""

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import one_hot

import funcvae as fv
from funcvae.models.recipe import binarize


class Encoder(nn.Sequential):  # q(z|x, y)
    def forward(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        h = super().forward(torch.cat([data["x"].flatten(1), one_hot(data["y"], 10)], 1))
        return h.chunk(2, -1)


class Decoder(nn.Sequential):  # p(x|z, y)
    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        return super().forward(torch.cat([z, one_hot(y, 10)], 1)).unflatten(1, (1, 28, 28))


def observe(key: fv.random.Key, data: dict[str, Tensor], rows: Tensor | None = None) -> dict[str, Tensor]:
    return {"x": binarize(key, data["x"], rows), "y": data["y"]}


def main(data: str = "mnist", data_dir: str = "data", epochs: int = 20, out: str = "figures/conditional.png") -> str:
    digits = fv.data.load(data, root=data_dir)
    train, test = {"x": digits.train, "y": digits.train_labels}, {"x": digits.test, "y": digits.test_labels}
    model = fv.vae(
        encoder=lambda: Encoder(nn.Linear(794, 400), nn.ReLU(), nn.Linear(400, 20)),
        decoder=lambda: Decoder(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784)),
        latent=10, modelled=lambda data: data["x"], condition=lambda data: data["y"],
    )  # fmt: skip
    opt, est = fv.optim.adam(1e-3), fv.estimators.elbo()
    ts, history = fv.train.fit(
        fv.train.init(model, opt, fv.random.key(0)), model, est, opt, train, test=test, epochs=epochs, observe=observe
    )
    print(f"test bound {history.test_bound[-1]:.2f} nats per digit, given its class")
    classes = torch.arange(10).repeat_interleave(10)  # a row for each class
    key, trained = fv.random.key(1), fv.Trained(model, ts.params, ts.state)
    figure = fv.figures.of_model.image_samples(*trained, key, 100, condition=classes, columns=10, name="conditional")
    return str(fv.figures.save(figure, out))


if __name__ == "__main__":
    print(tyro.cli(main))
