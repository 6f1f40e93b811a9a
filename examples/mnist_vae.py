"""Digits in a latent plane, and an interpolation between two: python examples/mnist_vae.py --root DATA

The networks are those of mnist_ae.py, with another output for log sigma. The KL pulls the codes together. Every point
of the plane decodes to a digit, and a line between two digits passes through others.
"""

from pathlib import Path

import cyclopts

import funcvae as fv


def main(steps: int = 4690, source: str = "mnist", root: str = "data", out: str = "figures") -> list[Path]:
    digits = fv.data.load(source, root=root)
    model, opt = fv.models.mnist_vae(), fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    train, test = digits.train[: 128 * steps], digits.decode(digits.test)
    per_epoch = -(-len(train) // 128)
    epochs = -(-steps // per_epoch)
    ts, history = fv.train.fit(
        ts, model, fv.estimators.elbo(), opt, train,
        epochs=epochs, observe=fv.model.as_floats, scale=fv.train.summed, progress=fv.tracking.bar,
        compile=fv.compilation.pays(steps, ts.params, train[:128].numel()),
    )  # fmt: skip
    print(f"ELBO {history.bound[-20:].mean():.1f} nats")

    trained, name = fv.Trained(model, ts.params, ts.state), f"mnist_vae after {steps:,} steps"
    assert digits.test_labels is not None
    one, zero = (fv.figures.of_model.first_of_class(digits.test_labels, label) for label in (1, 0))
    names = fv.figures.of_model.item_name(digits, one), fv.figures.of_model.item_name(digits, zero)
    drawn = {
        "scatter": fv.figures.of_model.latent_scatter(*trained, test, digits.test_labels, name=name),
        "grid": fv.figures.of_model.latent_grid(*trained, test, name=name),
        "interpolation": fv.figures.of_model.interpolation(*trained, test[one], test[zero], 12, names=names, name=name),
    }
    saved = [fv.figures.save(figure, f"{out}/mnist_vae_{what}.png") for what, figure in drawn.items()]
    frames = fv.figures.decoding.interpolated(*trained, test[one], test[zero], 30)
    return [*saved, fv.figures.save_gif(frames, f"{out}/mnist_vae_interpolation.gif", size=112)]


if __name__ == "__main__":
    print(*cyclopts.run(main, result_action="return_value"), sep="\n")
