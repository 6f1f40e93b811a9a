"""A mean squared error, and a sigma of any sign: python examples/mnist_sigma_vae.py --root DATA

Writes test digits beside their reconstructions, as the post shows them in two windows. The last ReLU leaves most of mu
at exactly zero, and z at the mean of q is then far from any z that was drawn in training: see what is printed.
"""

from pathlib import Path

import tyro

import funcvae as fv
from funcvae import data, figures, tracking
from funcvae.figures import decoding, of_model


def main(steps: int = 9375, source: str = "mnist", root: str = "data", out: str = "figures") -> list[Path]:
    digits = data.load(source, root=root)
    recipe, model, opt = fv.models.RECIPES["mnist_sigma_vae"], fv.models.mnist_sigma_vae(), fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    train = digits.train[: 32 * steps]
    per_epoch = -(-len(train) // 32)
    epochs = -(-steps // per_epoch)
    with tracking.progress_bar(epochs * per_epoch) as bar:
        ts, history = fv.train.fit(
            ts, model, fv.estimators.elbo(), opt, train, epochs=epochs, batch=32, log=bar,
            scale=recipe.scale, offset=recipe.offset,  # so that the loss is the post's
        )  # fmt: skip

    trained, key = (model, ts.params, ts.state), fv.random.key(1)
    loc, x_hat = decoding.latents(*trained, digits.test), decoding.reconstructed(*trained, digits.test, key)
    drawn, central = ((x - digits.test).square().mean() for x in (x_hat, decoding.decoded(*trained, loc)))
    print(f"loss {history.loss[-100:].mean():.4f}; mu is zero in {(loc == 0).float().mean():.0%} of the latents")
    print(f"mean squared error {drawn:.4f} by way of draws of z, {central:.4f} by way of mu")
    figure = of_model.reconstructions(*trained, digits.test[:20], key, name="mnist_sigma_vae")
    return [figures.save(figure, f"{out}/mnist_sigma_vae_reconstructions.png")]


if __name__ == "__main__":
    print(*tyro.cli(main), sep="\n")
