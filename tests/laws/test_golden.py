"""Recorded losses of a short training run of every named system, which hold to 1e-5 across versions of torch.

Runs are in float32, except for systems with BatchNorm. A bias before BatchNorm has no gradient. Adam makes steps of
full size from the rounding instead, and after ten steps float32 losses agree only to 3e-2 between one thread and two.
In float64 they agree to 1e-8.

(test_random.py compares bits and uniforms, which must never change, with JAX's.) After an intended change, write the
file again: python tests/laws/test_golden.py
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import funcvae as fv

FILE = Path(__file__).parents[1] / "reference" / "losses.json"
STEPS_AN_EPOCH, EPOCHS, BATCH = 5, 2, 4
BATCH_NORM = ("mnist_bn_vae", "cifar_resnet_vae")


def losses(system: str) -> list[float]:
    """Losses of ten steps by the recipe on data from a key, with two samples a datum; the last batch is short."""
    recipe = fv.models.SYSTEMS[system].recipe
    init_key, x_key = fv.random.split(fv.random.key(2026))
    shape = [16 if n is None else n for n in recipe.shape]
    x = fv.random.uniform(x_key, (STEPS_AN_EPOCH * BATCH - 2, *shape))
    model, opt = fv.models.SYSTEMS[system].build(x), recipe.optimizer(STEPS_AN_EPOCH)
    ts = fv.train.init(model, opt, init_key)
    if system in BATCH_NORM:
        x, (params, state) = x.double(), fv.tree.map(double, (ts.params, ts.state))
        ts = ts._replace(params=params, state=state, opt_state=opt.init(params))
    _, history = fv.train.fit(
        ts, model, fv.estimators.parse(recipe.estimator), opt, x, epochs=EPOCHS,
        batch=BATCH, samples=2, observe=recipe.observe, scale=recipe.scale, offset=fv.models.SYSTEMS[system].offset(),
        compile=False,
    )  # fmt: skip
    return history.loss.tolist()


def double(t: torch.Tensor) -> torch.Tensor:
    return t.double() if t.is_floating_point() else t


@pytest.mark.parametrize(
    "system",
    [s if s != "cifar_resnet_vae" else pytest.param(s, marks=pytest.mark.slow) for s in fv.models.SYSTEMS],
)
def test_a_short_run_has_the_recorded_losses(system):
    np.testing.assert_allclose(losses(system), json.loads(FILE.read_text())[system], rtol=1e-5)


if __name__ == "__main__":
    FILE.write_text(json.dumps({system: losses(system) for system in fv.models.SYSTEMS}, indent=1) + "\n")
