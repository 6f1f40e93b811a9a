"""A plain autoencoder of digits, with the code of the VAEs: python examples/mnist_ae.py --root DATA

Its posterior is a point and has no KL, so nothing keeps the codes together. They spread far beyond a standard normal,
and between the classes they decode to images that are not digits.
"""

from pathlib import Path

import cyclopts

import funcvae as fv


def main(steps: int = 4690, source: str = "mnist", root: str = "data", out: str = "figures") -> list[Path]:
    digits = fv.data.load(source, root=root)
    model, opt = fv.models.mnist_ae(), fv.optim.adam(1e-3)
    ts = fv.train.init(model, opt, fv.random.key(0))
    train, test = digits.train[: 128 * steps], digits.decode(digits.test)
    per_epoch = -(-len(train) // 128)
    epochs = -(-steps // per_epoch)
    ts, history = fv.train.fit(
        ts, model, fv.estimators.elbo(), opt, train,
        epochs=epochs, observe=fv.model.as_floats, scale=fv.train.summed, progress=fv.tracking.bar,
        compile=fv.compilation.pays(steps, ts.params, train[:128].numel()),
    )  # fmt: skip
    print(f"squared error of a digit: {-history.bound[-20:].mean() - fv.models.SYSTEMS['mnist_ae'].offset():.1f}")

    trained = fv.Trained(model, ts.params, ts.state)
    drawn = {
        "scatter": fv.figures.of_model.latent_scatter(*trained, test, digits.test_labels, name="mnist_ae"),
        "grid": fv.figures.of_model.latent_grid(*trained, test, name="mnist_ae"),
    }
    return [fv.figures.save(figure, f"{out}/mnist_ae_{what}.png") for what, figure in drawn.items()]


if __name__ == "__main__":
    print(*cyclopts.run(main, result_action="return_value"), sep="\n")
