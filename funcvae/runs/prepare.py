"""From a configuration to all that it stands for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import data, estimators, noise, random, train
from funcvae.distributed.processes import SINGLE, Processes
from funcvae.errors import BadData
from funcvae.estimators.engine import Estimator
from funcvae.figures import decoding
from funcvae.model import VAE, check_data
from funcvae.models.recipe import Recipe
from funcvae.noise import Noise
from funcvae.optim import Optimizer
from funcvae.runs import config as configs
from funcvae.runs.config import Config
from funcvae.runs.folder import CHECKPOINTS, check_items
from funcvae.train import checkpoint
from funcvae.train.settings import StepSettings, Task, check_task
from funcvae.train.state import TrainState
from funcvae.variance.monitor import Monitor, make_monitor


class Setup(NamedTuple):
    """A run before its first step."""

    config: Config
    recipe: Recipe
    dataset: data.Dataset
    model: VAE
    estimator: Estimator
    scheme: Noise
    opt: Optimizer
    start: TrainState
    train: Tensor
    """The data, on the run's device."""
    test: Tensor
    seen: Tensor
    """What the model sees of the first test items."""
    follow: Monitor | None
    figure_key: random.Key
    step_key: random.Key
    """Of what is drawn from the model along training."""

    @property
    def steps_per_epoch(self) -> int:
        """The last short batch included."""
        return -(-len(self.train) // self.config.batch)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    @property
    def settings(self) -> dict[str, Any]:
        """What `train.fit` and `train.replay` are both told."""
        return {
            "batch": self.config.batch,
            "samples": self.config.samples,
            "chunk": self.config.chunk or None,
            "shards": self.config.shards or None,
            "split": configs.SPLITS[self.config.split],
            "observe": self.recipe.observe,
            "noise": self.scheme,
            "scale": self.recipe.scale,
            "offset": self.recipe.offset,
            "compile": self.config.compile,
            "precision": self.config.precision,
        }


def prepare(config: Config, load: Callable[[Config], data.Dataset], processes: Processes = SINGLE) -> Setup:
    """All that a checked configuration stands for; what can be wrong with that is found here, and nothing is written.

    Args:
        config: what to train.
        load: how to have its data.
        processes: who is to train.
    """
    recipe = configs.recipe(config.system)
    estimator, scheme = estimators.parse(config.estimator), noise.parse(config.noise)
    estimator.claims_under(scheme)
    key = random.key(config.seed, device=config.device)
    dataset = load(config)
    check_items(recipe, dataset)
    model = recipe.model(dataset.train)
    opt = recipe.optimizer(-(-len(dataset.train) // config.batch), config.lr)
    ts = train.init(model, opt, key)
    x_train, x_test = dataset.train.to(config.device), dataset.test.to(config.device)
    for name, x in {"train": x_train, "test": x_test}.items():
        check_data(model, ts.params, ts.state, x, recipe.observe, name=f"{config.data}: {name}")
    settings = StepSettings(
        batch=config.batch, samples=config.samples, shards=config.shards or None, split=configs.SPLITS[config.split],
        observe=recipe.observe, noise=scheme,
    )  # fmt: skip
    check_task(Task(model, estimator, opt, x_train, settings, processes), ts.params, ts.state)
    observe_key, figure_key, step_key, probe_key = random.split(train.run_keys(ts.key).pictures, 4)
    seen = recipe.observe(observe_key, x_test[: decoding.POINTS])
    # Estimator and noise may not suit the model or the number of samples: let them say so now. (Values do not matter.)
    eps = torch.zeros_like(scheme(observe_key, config.samples, (1, model.latent)))
    follow = make_monitor(config.monitor, scheme, x_train, recipe.observe, probe_key)
    for each in [estimator, *(follow.arms.values() if follow else ())]:
        each(model, ts.params, ts.state, seen[:1], eps, train=False)
    return Setup(
        config, recipe, dataset, model, estimator, scheme, opt, ts, x_train, x_test, seen, follow, figure_key, step_key
    )


def nearest(setup: Setup, path: Path, step: int | None = None) -> tuple[TrainState, dict[str, Any], list[BadData]]:
    """The newest checkpoint of the run in a folder, up to a step if one is given: (TrainState, about, errors).

    Before the first, that is the run's start. Damaged ones are passed over, and are what the errors tell of.
    """
    errors: list[BadData] = []
    for at, file in reversed(checkpoint.in_folder(path / CHECKPOINTS).items()):
        if step is not None and at > step:
            continue
        try:
            ts, about = checkpoint.load(file, setup.start)
            if int(ts.step) != at or type(about.get("metrics_bytes")) is not int or about["metrics_bytes"] < 0:
                raise BadData(f"{file} is not what its name says")
            return ts, about, errors
        except BadData as error:
            errors.append(error)
    return setup.start, {"metrics_bytes": 0}, errors
