"""A conditional VAE draws digits by class: python examples/conditional_vae.py"""

from typing import Any

import cyclopts
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

import funcvae as fv


class Conditional(nn.Sequential):
    """A network of a datum {"x": image, "y": class}, or of (z, y)."""

    def forward(self, x: Any, y: Tensor | None = None) -> Tensor:
        x, y = (x["x"], x["y"]) if y is None else (x, y)
        return super().forward(torch.cat([x.flatten(1), one_hot(y, 10)], 1))


def main(data: str = "mnist", data_dir: str = "data", epochs: int = 20, out: str = "conditional_vae.png") -> str:
    digits = fv.data.load(data, root=data_dir).labelled()  # train and test are {"x": images, "y": labels}
    image = nn.Unflatten(1, (1, 28, 28))
    model = fv.vae(
        encoder=lambda: Conditional(nn.Linear(794, 400), nn.ReLU(), nn.Linear(400, 20)),
        decoder=lambda: Conditional(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), image),
        latent=10, modelled=lambda data: data["x"], condition=lambda data: data["y"],
    )  # fmt: skip
    opt, est, observe = fv.optim.adam(1e-3), fv.estimators.elbo(), fv.model.as_floats
    ts = fv.train.init(model, opt, fv.random.key(0))
    ts, _ = fv.train.fit(
        ts, model, est, opt, digits.train, test=digits.test, epochs=epochs, observe=observe, compile=False
    )
    drawn: Any = {"condition": torch.arange(10).repeat_interleave(10), "rows": [f"class {y}" for y in range(10)]}
    figure = fv.figures.of_model.image_samples(
        model, ts.params, ts.state, fv.random.key(1), 100, name="conditional VAE", **drawn
    )
    return str(fv.figures.save(figure, out))


if __name__ == "__main__":
    print(cyclopts.run(main, result_action="return_value"))
