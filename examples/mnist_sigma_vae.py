"""A mean squared error, and a sigma of any sign: python examples/mnist_sigma_vae.py --root DATA

Writes test digits beside their reconstructions, as the post shows them in two windows, and how often the network's
last ReLU leaves sigma at exactly zero: there z is a point, and no density.
"""

from pathlib import Path

import tyro

import funcvae as fv
from funcvae import data, pictures, plots, tracking


def main(steps: int = 9375, source: str = "mnist", root: str = "data", out: str = "examples/figures") -> list[Path]:
    digits = data.load(source, root=root)
    recipe, model, opt = fv.models.RECIPES["mnist_sigma_vae"], fv.models.mnist_sigma_vae(), fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    train, epochs = digits.train[: 32 * steps], -(-steps // 1875)
    with tracking.progress_bar(steps) as bar:
        ts, history = fv.train.fit(
            ts, model, fv.estimators.elbo(), opt, train, epochs=epochs, batch=32, log=bar,
            scale=recipe.scale, offset=recipe.offset,  # so that the loss is the post's
        )  # fmt: skip

    q, _ = model.encode(ts.params, ts.state, digits.test)
    assert isinstance(q, fv.distributions.SignedNormal)
    points = (q.sigma == 0).float().mean()
    print(f"loss {history.loss[-100:].mean():.4f}; sigma is exactly zero in {points:.0%} of the latents")
    figure = pictures.reconstructions(model, ts.params, ts.state, digits.test[:20], name="mnist_sigma_vae")
    return [plots.save(figure, f"{out}/mnist_sigma_vae_reconstructions.png")]


if __name__ == "__main__":
    print(*tyro.cli(main), sep="\n")
