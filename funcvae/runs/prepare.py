"""Builds model, data, optimizer and settings from a configuration."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from funcvae import compilation, data, estimators, noise, optim, random, threads, train
from funcvae._support import examples
from funcvae._support.examples import Data
from funcvae._support.progress import notice
from funcvae.distributed.collectives import SINGLE, Processes
from funcvae.errors import BadData, BadValue
from funcvae.figures import of_results
from funcvae.model import check_data
from funcvae.models import Recipe
from funcvae.runs.config import SPLITS, Config
from funcvae.runs.folder import CHECKPOINTS, fitted, for_model
from funcvae.train import checkpoint, streaming
from funcvae.train.settings import StepSettings
from funcvae.train.state import TrainState
from funcvae.train.streaming import Stream
from funcvae.train.task import Task, check_task
from funcvae.variance.monitor import Monitor, make_monitor

__all__ = ["Setup", "newest_checkpoint", "prepare"]


class Setup(NamedTuple):
    """A run before its first step."""

    config: Config
    dataset: data.Dataset
    task: Task
    start: TrainState
    test: Data | Stream  # the test data, on the run's device
    test_observed: Data  # the first test items, as the model observes them
    hyperparameters: dict[str, Any]  # the configuration; first the learning rate in use and the estimator
    monitor: Monitor | None  # measures the gradient's variance during training; None if that is not requested
    figure_key: random.Key
    draw_key: random.Key  # key of the draws from the model during training

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run's system."""
        return self.config.system.recipe

    @property
    def steps(self) -> int:
        """The steps of the whole run."""
        return self.config.epochs * self.task.steps_per_epoch

    def threads(self) -> AbstractContextManager[None]:
        """Uses as many threads as suit the size of the steps."""
        rows = self.config.samples * min(self.config.batch, streaming.count(self.task.train))
        return threads.using(threads.of_step(self.start.params, rows))

    def plan(self, made: int = 0) -> str:
        """Two lines that say what the run will do; `made` steps were made before."""
        config, n = self.config, streaming.count(self.task.train)
        epochs = f"{config.epochs:,} epoch{'s' * (config.epochs != 1)} of {self.task.steps_per_epoch:,} steps"
        rest = f", from step {made:,}" if made else ""
        lr = "" if config.lr is None else f" at {config.lr}"
        how = "compiled" if config.compile else "not compiled"
        return (
            f"training {config.system.name} on {config.data} ({n:,} items): {epochs}, {self.steps:,} in all{rest}\n"
            f"{config.estimator}, K = {config.samples}, batch {config.batch}, {config.optimizer}{lr}, on "
            f"{config.device}, {how}; run folder {config.out}"
        )


@threads.using(1)  # so that the bits do not depend on the number of threads, which is known afterwards
def prepare(config: Config, load: Callable[[Config], data.Dataset], processes: Processes = SINGLE) -> Setup:
    """Builds everything that a run needs; `load` loads the data of a configuration. Writes nothing.

    Raises BadType or BadValue if the parts do not fit together, BadData if the system cannot take the data.
    """
    recipe = config.system.recipe
    scheme = noise.parse(config.noise)
    estimators.parse_final(config.estimator, 0).claims_under(scheme)
    key = random.key(config.seed, device=config.device)
    dataset = fitted(config.system, load(config))
    model = config.system.build(for_model(dataset.train), **config.model)
    if config.sample_each_step and model.condition:
        raise BadValue("sample_each_step draws without a condition, and the model is conditional: leave it out")
    steps = config.steps(streaming.count(dataset.train))
    estimator = estimators.parse_scheduled(config.estimator, steps)
    per_epoch = steps // config.epochs
    lr = recipe.lr(per_epoch) if config.lr is None else optim.parse_schedule(config.lr, steps)
    opt = recipe.optimizer(per_epoch, lr, name=config.optimizer, clip=config.clip)
    ts = train.init(model, opt, key)
    if config.compile == "auto":
        config = replace(config, compile=_compiles(config, steps, ts, dataset.train, processes))
    x_train, x_test = (streaming.on_device(x, ts.step.device) for x in (dataset.train, dataset.test))
    for name, x in {"train": x_train, "test": x_test}.items():
        few = streaming.first(x)
        check_data(model, ts.params, ts.state, few, recipe.observe, name=f"{config.data}: {name}")
    settings = StepSettings(
        batch=config.batch, samples=config.samples, chunk=config.chunk or None, shards=config.shards or None,
        split=SPLITS[config.split], observe=recipe.observe, noise=scheme, scale=recipe.scale,
        offset=config.system.offset(**config.model), compile=bool(config.compile), precision=config.precision,
    )  # fmt: skip
    task = Task(model, estimator, opt, x_train, settings, processes)
    check_task(task, ts)
    observe_key, figure_key, draw_key, monitor_key = random.split(train.run_keys(ts.key).pictures, 4)
    observed = recipe.observe(observe_key, streaming.head(x_test, of_results.POINTS))
    # Raises if an estimator or the noise does not suit the model or the number of samples; the values do not matter.
    eps = torch.zeros_like(scheme(observe_key, config.samples, (1, model.latent)))
    monitor = make_monitor(config.monitor, scheme, x_train, recipe.observe, monitor_key, steps)
    for each in [task.estimator_at(ts.step), *(monitor.at(0).values() if monitor else ())]:
        each(model, ts.params, ts.state, examples.head(observed, 1), eps, train=False)
    shown = lr if isinstance(lr, float) else config.lr or f"the recipe's, from {float(lr(torch.tensor(0))):g}"
    hyperparameters = {"lr": shown, "estimator": config.estimator} | {**config.content(), "lr": shown}
    return Setup(config, dataset, task, ts, x_test, observed, hyperparameters, monitor, figure_key, draw_key)


def _compiles(config: Config, steps: int, ts: TrainState, x: Data | Stream, processes: Processes) -> bool:
    """Whether a run whose configuration leaves it open compiles its step."""
    rows = config.samples * min(config.batch, streaming.count(x))
    if not compilation.pays(steps, ts.params, rows * examples.numel(examples.head(streaming.first(x), 1))):
        return False
    if not compilation.available() and processes.is_main:
        _print_once(f"{compilation.NO_COMPILER}; training without torch.compile")
    return compilation.available()


_print_once = cache(notice)


def newest_checkpoint(setup: Setup, path: Path, step: int | None = None) -> tuple[TrainState, int, list[BadData]]:
    """Loads the newest intact checkpoint in a run folder, or the newest that is not after a step.

    Returns the state, its number of bytes of metrics, and the errors of damaged newer checkpoints; the initial state
    and 0 bytes if there is no checkpoint.
    """
    errors: list[BadData] = []
    for made, file in reversed(checkpoint.in_folder(path / CHECKPOINTS).items()):
        if step is not None and made > step:
            continue
        try:
            ts, about = checkpoint.load(file, setup.start)
            size = about.get("metrics_bytes")
            if int(ts.step) != made or type(size) is not int or size < 0:
                raise BadData(f"{file} is not the checkpoint of step {made:,}")
            return ts, size, errors
        except BadData as error:
            errors.append(error)
    return setup.start, 0, errors
