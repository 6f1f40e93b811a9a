"""Does the variance of the gradient matter for the final bound? python examples/atlas/bounds.py --root data --out atlas

Trains two models with several estimators of one target, from 20 seeds. The runs of a seed have the same initial
parameters, batches and noise. Along training it measures the variance of the run's own gradient and the bound on test
data. `analyse_bounds.py` estimates how much of the differences in the final bound the variance explains.

Started again, it continues. Started once per core, the processes share the work.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cyclopts
import torch
from sharing import share
from torch import Tensor

import funcvae as fv
from funcvae.errors import BadValue

SEEDS = 20
POINTS = 10
"""Measurements along a run."""
REPLICATES = 30
"""Draws of the noise for each variance."""
TEST_ITEMS = 1000


class Experiment(NamedTuple):
    """A system, and estimators of one target that train it."""

    estimators: tuple[str, ...]
    bound: Callable[[Tensor], Tensor]
    """The target, from log-weights [K, B]."""
    samples: int
    batch: int
    steps: int


EXPERIMENTS = {
    "gaussian2d_vae": Experiment(("elbo", "elbo_mc", "stl", "rloo", "score"), fv.bounds.elbo, 4, 100, 1000),
    "burda_vae": Experiment(("iwae", "dreg", "vimco"), fv.bounds.iwae, 8, 20, 1000),
}


def trained(name: str, spec: str, seed: int, root: str) -> dict[str, Any]:
    """The variance along a run, and its test bound, both at `POINTS` equally spaced steps."""
    system, experiment = fv.models.SYSTEMS[name], EXPERIMENTS[name]
    recipe, estimator = system.recipe, fv.estimators.parse(spec)
    dataset = fv.data.load(recipe.data or "", root=root)
    order_key, init_key, observe_key, noise_key, test_key, weight_key = fv.random.split(fv.random.key(seed), 6)
    train = dataset.train[fv.random.permutation(order_key, len(dataset.train))]
    train = train.repeat(math.ceil(experiment.steps * experiment.batch / len(train)), *[1] * (train.dim() - 1))
    train = train[: experiment.steps * experiment.batch]
    x = recipe.observe(observe_key, train[: experiment.batch])
    test = recipe.observe(test_key, dataset.test[:TEST_ITEMS])
    model, opt = system.build(dataset.train), recipe.optimizer(experiment.steps)
    every = experiment.steps // POINTS
    variance: list[dict[str, float]] = []
    bounds: list[float] = []

    def watch(step: int, ts: fv.train.TrainState) -> None:
        if step % every == 0:
            here, key = fv.Trained(model, ts.params, ts.state), fv.random.fold_in(noise_key, step)
            moments = fv.variance.moments(estimator, *here, x, key, samples=experiment.samples, replicates=REPLICATES)
            variance.append({group: moments.groups[group].variance.value for group in ("encoder", "decoder")})
            log_w = fv.evaluate.log_weights(*here, test, weight_key, samples=experiment.samples)
            bounds.append(float(experiment.bound(log_w).mean()))

    ts = fv.train.init(model, opt, init_key)
    fv.train.fit(
        ts, model, estimator, opt, train, batch=experiment.batch, samples=experiment.samples, observe=recipe.observe,
        watch=watch, compile=False,
    )  # fmt: skip
    return {"system": name, "estimator": spec, "seed": seed, "steps": every, "variance": variance, "test_bound": bounds}


def main(*systems: str, root: str = "data", out: Path = Path("atlas")) -> None:
    """Trains the runs.

    Args:
        systems: Names in `EXPERIMENTS`; by default all.
        root: Folder of the named data sets.
        out: Folder of the measurements.
    """
    torch.set_num_threads(1)
    for name in systems or EXPERIMENTS:
        if name not in EXPERIMENTS:
            raise BadValue(f"no experiment {name}: choose from {', '.join(EXPERIMENTS)}")
        files = {
            out / "bounds" / f"{name}-{spec.replace(':', '_')}-s{seed}.json": partial(trained, name, spec, seed, root)
            for seed in range(SEEDS)
            for spec in EXPERIMENTS[name].estimators
        }
        share(files, f"training {name}")


if __name__ == "__main__":
    cyclopts.run(main)
