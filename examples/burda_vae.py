"""Importance-weighted training of burda_vae: python examples/burda_vae.py --root DATA

Trains the model of Burda et al. with DReG at K = 5 on digits that are binarized again in every epoch, and samples
digits from it; with --layers 2, the model with two stochastic layers. The paper's 3,280 epochs take hours; this example
takes minutes.
"""

from pathlib import Path
from typing import Literal

import cyclopts

import funcvae as fv
from funcvae.models.recipe import binarize


def main(
    steps: int = 3000, layers: Literal[1, 2] = 1, source: str = "mnist", root: str = "data", out: str = "figures"
) -> list[Path]:
    digits = fv.data.load(source, root=root)
    name, mean = {1: "burda_vae", 2: "burda2_vae"}[layers], digits.decode(digits.train).mean(0)
    model = fv.models.burda_vae(mean=mean) if layers == 1 else fv.models.burda2_vae(mean=mean)
    opt = fv.optim.adam(1e-3, eps=1e-4)
    ts = fv.train.init(model, opt, fv.random.key(0))
    train = digits.train[: 100 * steps]
    per_epoch = -(-len(train) // 100)
    epochs = -(-steps // per_epoch)
    ts, history = fv.train.fit(
        ts, model, fv.estimators.dreg(), opt, train, test=digits.test,
        epochs=epochs, batch=100, samples=5, observe=binarize, progress=fv.tracking.bar,
        compile=fv.compilation.pays(steps, ts.params, 5 * train[:100].numel()),
    )  # fmt: skip
    print(f"L_5 {history.test_bound[-1]:.1f} nats")

    figure = fv.figures.of_model.image_samples(model, ts.params, ts.state, fv.random.key(1), 100, name=name)
    return [fv.figures.save(figure, f"{out}/{name}_samples.png")]


if __name__ == "__main__":
    print(*cyclopts.run(main, result_action="return_value"), sep="\n")
