"""Monitors the gradient's variance during training. The bits of the training run do not change."""

import math
from typing import NamedTuple

import torch

from funcvae import estimators, random
from funcvae._support.examples import Data
from funcvae._support.progress import notice
from funcvae.errors import BadValue, NonFinite
from funcvae.estimators.types import Estimator, EstimatorAt, by_step
from funcvae.model import VAE, Observe
from funcvae.modules import Params, State
from funcvae.noise import Noise
from funcvae.train import streaming
from funcvae.train.settings import Row
from funcvae.train.streaming import Stream
from funcvae.variance.comparison import compare

__all__ = ["Monitor", "MonitorSettings", "make_monitor"]


class MonitorSettings(NamedTuple):
    """How the gradient's variance is monitored: on one batch of training data, with the networks in training mode."""

    every: int  # steps between two measurements; 0 to measure nothing
    estimators: tuple[str, ...]  # the estimator that trains, and others to measure on the same noise
    replicates: int
    samples: int
    batch: int


class Monitor(NamedTuple):
    """Measures the variance of gradients during training."""

    settings: MonitorSettings
    arms: dict[str, EstimatorAt]
    """The estimators by name, each as a function of the step."""
    x: Data
    key: random.Key
    scheme: Noise

    def at(self, step: int) -> dict[str, Estimator]:
        """The estimators after this number of steps."""
        return {name: at(torch.tensor(step, device=self.key.device)) for name, at in self.arms.items()}

    def __call__(self, model: VAE, params: Params, state: State, step: int) -> Row:
        """Measures after a step: a row with "variance/NAME/NETWORK", its standard error "variance_se/…", and "snr/…".

        `step` is the number of steps made, and the estimators are those of the next step. If a gradient is not finite,
        prints a line to stderr and returns an empty row.
        """
        try:
            found = compare(
                self.at(step), model, params, state, self.x, random.fold_in(self.key, step), noise=self.scheme,
                samples=self.settings.samples, replicates=self.settings.replicates, train=True, timings=0,
            )  # fmt: skip
        except NonFinite as error:
            notice(f"the variance after step {step} was not measured: {error}")
            return {}
        row = {}
        for name, compared in found.rows.items():
            for network in found.networks:
                group = compared.groups[network]
                row[f"variance/{name}/{network}"] = group.variance.value
                row[f"variance_se/{name}/{network}"] = group.variance.se
                row[f"snr/{name}/{network}"] = group.snr.value
        return {name: value for name, value in row.items() if math.isfinite(value)}


def make_monitor(
    settings: MonitorSettings,
    scheme: Noise,
    data: Data | Stream,
    observe: Observe,
    key: random.Key,
    steps: int | None = None,
) -> Monitor | None:
    """The monitor of a training run, or None if `every` is 0. The key decides the batch, its observation and noise.

    `steps` is the number of steps of the run, for estimators with a schedule that depends on it.

    Raises BadValue if `every` is 0 although there are estimators to measure; or if an estimator is unknown, or requires
    independent samples and those of the noise scheme are not.
    """
    if settings.every == 0:
        if len(settings.estimators) > 1:
            raise BadValue("variance_of needs variance_every: give the number of steps between two measurements")
        return None
    arms = {spec: by_step(estimators.parse_scheduled(spec, steps)) for spec in settings.estimators}
    choice_key, observe_key, noise_key = random.split(key, 3)
    rows = random.permutation(choice_key, streaming.count(data))[: settings.batch]
    monitor = Monitor(settings, arms, observe(observe_key, streaming.take(data, rows)), noise_key, scheme)
    for estimator in monitor.at(0).values():
        estimator.claims_under(scheme)
    return monitor
