"""Following the gradient's variance as training goes on, without changing a bit of it."""

import math
import sys
from typing import NamedTuple

from torch import Tensor
from tqdm import tqdm

from funcvae import estimators, random, variance
from funcvae.errors import BadValue, NonFinite
from funcvae.estimators.engine import Estimator
from funcvae.model import VAE, Observe
from funcvae.modules import Params, State
from funcvae.noise import Noise
from funcvae.train.settings import Row


class Probe(NamedTuple):
    """How the gradient's variance is followed along training, on one batch of training data, with the networks in
    training mode, as they are when it is used."""

    every: int = 0
    """After how many steps each time; 0 for never."""
    others: tuple[str, ...] = ()
    """Estimators to follow beside the one that trains, on the same noise."""
    replicates: int = 100
    """Of the noise."""


NEVER = Probe()


class Follower(NamedTuple):
    """Measures the variance of gradients as training goes on."""

    arms: dict[str, Estimator]
    x: Tensor
    key: random.Key
    scheme: Noise
    samples: int
    replicates: int

    def __call__(self, model: VAE, params: Params, state: State, step: int) -> Row:
        """The numbers for a row: "variance/NAME/NETWORK", its standard error "variance_se/…", and "snr/…"."""
        try:
            found = variance.compare(
                self.arms, model, params, state, self.x, random.fold_in(self.key, step), samples=self.samples,
                replicates=self.replicates, noise=self.scheme, train=True, timings=0,
            )  # fmt: skip
        except NonFinite as error:
            tqdm.write(f"funcvae: no variance after step {step}: {error}", file=sys.stderr)
            return {}
        row = {}
        for name, each in found.rows.items():
            for network in found.networks:
                group = each.groups[network]
                row[f"variance/{name}/{network}"] = group.variance.value
                row[f"variance_se/{name}/{network}"] = group.variance.se
                row[f"snr/{name}/{network}"] = group.snr.value
        return {name: value for name, value in row.items() if math.isfinite(value)}


def follower(
    probe: Probe,
    *,
    estimator: str,
    scheme: Noise,
    samples: int,
    data: Tensor,
    batch: int,
    observe: Observe,
    key: random.Key,
) -> Follower | None:
    """What follows the variance, or None if it is not to be followed.

    Args:
        probe: how.
        estimator: the one that trains.
        scheme: its noise.
        samples: K.
        data: the training data [n, ...].
        batch: how many of them the gradient is of, drawn by the key.
        observe: what the model sees of them.
        key: of the choice, the observation and the noise.

    Raises:
        BadValue: `every` is negative; a variance needs more replicates; no such estimator, or one that the noise does
            not suit.
    """
    if probe.every < 0:
        raise BadValue(f"--variance-every is {probe.every}: it must be a number of steps, or 0 for never")
    if probe.every == 0 and probe.others:
        raise BadValue("--variance-of names estimators to follow: say by --variance-every after how many steps")
    if probe.every == 0:
        return None
    if probe.replicates < 2:
        raise BadValue(f"--variance-replicates is {probe.replicates}: a variance needs at least 2")
    arms = {spec: estimators.parse(spec) for spec in dict.fromkeys((estimator, *probe.others))}
    for arm in arms.values():
        arm.claims_under(scheme)
    choice_key, observe_key, noise_key = random.split(key, 3)
    rows = random.permutation(choice_key, len(data))[:batch]
    return Follower(arms, observe(observe_key, data[rows]), noise_key, scheme, samples, probe.replicates)
