"""A VAE with a mean squared error and a sigma of any sign: python examples/mnist_sigma_vae.py --root DATA

Draws test digits next to their reconstructions, as in the post. The last ReLU sets most of mu to exactly zero, so z at
the mean of q is far from all z that were drawn in training. The printed errors show this.
"""

from pathlib import Path

import cyclopts

import funcvae as fv
from funcvae.figures import decoding


def main(steps: int = 9375, source: str = "mnist", root: str = "data", out: str = "figures") -> list[Path]:
    digits = fv.data.load(source, root=root)
    system, model, opt = fv.models.SYSTEMS["mnist_sigma_vae"], fv.models.mnist_sigma_vae(), fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    train, test = digits.train[: 32 * steps], digits.decode(digits.test)
    per_epoch = -(-len(train) // 32)
    epochs = -(-steps // per_epoch)
    ts, history = fv.train.fit(
        ts, model, fv.estimators.elbo(), opt, train, epochs=epochs, batch=32, observe=fv.model.as_floats,
        scale=system.recipe.scale, offset=system.offset(),  # the loss of the post
        compile=fv.compilation.pays(steps, ts.params, train[:32].numel()), progress=fv.tracking.bar,
    )  # fmt: skip

    trained, key = fv.Trained(model, ts.params, ts.state), fv.random.key(1)
    loc = decoding.latents(*trained, test)
    x_hat, x_hat_of_loc = decoding.reconstructed(*trained, test, key), decoding.decoded(*trained, loc)
    drawn, central = ((x - test).square().mean() for x in (x_hat, x_hat_of_loc))
    print(f"loss {history.loss[-100:].mean():.4f}; mu is zero in {(loc == 0).float().mean():.0%} of the latents")
    print(f"mean squared error {drawn:.4f} with draws of z, {central:.4f} with z = mu")
    figure = fv.figures.of_model.reconstructions(*trained, test[:20], key, name="mnist_sigma_vae")
    return [fv.figures.save(figure, f"{out}/mnist_sigma_vae_reconstructions.png")]


if __name__ == "__main__":
    print(*cyclopts.run(main, result_action="return_value"), sep="\n")
