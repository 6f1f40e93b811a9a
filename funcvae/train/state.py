"""What a run carries from step to step, and the keys and batches that follow from it.

The key of a `TrainState` is split into four, the `RunKeys`. Epoch e visits the data in the order
`permutation(fold_in(order_key, e), n)`; step s uses `noise_key, observe_key = split(fold_in(step_key, s))`. So a
`TrainState` holds all that the rest of the run depends on, and any step can be replayed alone.
"""

from collections.abc import Iterator
from itertools import count, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import random, tree
from funcvae._support import checks
from funcvae.errors import BadType, BadValue
from funcvae.model import VAE, check_model, check_trained
from funcvae.modules import Params, State
from funcvae.optim import Optimizer, check_optimizer

__all__ = ["Metrics", "RunKeys", "TrainState", "batches", "init", "run_keys", "step_keys"]


class TrainState(NamedTuple):
    """Everything that a run carries from step to step."""

    step: Tensor  # int64, no dimensions: steps made
    key: random.Key
    params: Params
    state: State
    opt_state: Any


class Metrics(NamedTuple):
    """What one step reports, each a tensor of no dimensions."""

    loss: Tensor  # scale · (-bound - offset): minus the bound, unless one is given
    bound: Tensor  # mean over the batch, nats per example
    grad_norm: Tensor  # Euclidean norm of the loss's whole gradient


class RunKeys(NamedTuple):
    """What the key of a TrainState is split into."""

    order: random.Key
    """Of the epochs' orders."""
    step: random.Key
    """Of each step's noise and observation."""
    test: random.Key
    """Of the test bound's noise, the same after every epoch."""
    pictures: random.Key
    """Not used in training."""


def run_keys(key: random.Key) -> RunKeys:
    """The keys of a run, from the key of its TrainState."""
    return RunKeys(*random.split(key, 4))


def step_keys(step_key: random.Key, steps: Tensor) -> Tensor:
    """Keys [S, 2, 2] of the given steps: (noise_key, observe_key) = split(fold_in(step_key, s)) for each."""
    random.checked(step_key)
    checks.same_device(step_key=step_key, steps=checks.tensor("steps", steps, "S"))
    if not len(steps):
        return step_key.new_empty(0, 2, 2)
    return torch.vmap(lambda s: random.split(random.fold_in(step_key, s)))(steps)


def batches(key: random.Key, n: int, batch: int, epoch: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """The batches of an epoch in a run with this key: the rows of each, and each step's keys [S, 2, 2]."""
    n, batch, epoch = (
        checks.integer("n", n, 1),
        checks.integer("batch", batch, 1),
        checks.integer("epoch", epoch, 0, 2**32 - 1),
    )
    keys = run_keys(key)
    rows = random.permutation(random.fold_in(keys.order, epoch), n).split(batch)
    steps = torch.arange(epoch * len(rows), (epoch + 1) * len(rows), device=key.device)
    return rows, step_keys(keys.step, steps)


def batches_from(ts: TrainState, n: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows and the keys of every step from the TrainState's next one on: an endless iterator."""
    first, made = divmod(int(ts.step), -(-n // batch))
    for epoch in count(first):
        yield from islice(zip(*batches(ts.key, n, batch, epoch), strict=True), made, None)
        made = 0


def check_train_state(ts: TrainState, model: VAE | None = None) -> None:
    """Raises unless this is a TrainState; with a model, one of it, whose values are there."""
    if not isinstance(ts, TrainState):
        raise BadType(f"ts is {checks.describe(ts)}: it must be a TrainState, as train.init makes it")
    if checks.tensor("ts.step", ts.step, floating=False).ndim or ts.step.dtype != torch.int64:
        raise BadValue(f"ts.step is {checks.describe(ts.step)}: it must be an int64 tensor of no dimensions")
    if model is not None:  # not in a step
        check_trained(model, ts.params, ts.state)
        tree.checked(ts.opt_state, "ts.opt_state")
        random.checked(ts.key)
        if checks.concrete("ts.step", ts.step) < 0:
            raise BadValue(f"ts.step is {int(ts.step)}: it must not be negative")


def init(model: VAE, opt: Optimizer, key: random.Key) -> TrainState:
    """The first TrainState, on the key's device. The key is split in one for the parameters and one to keep."""
    check_model(model)
    check_optimizer(opt)
    init_key, run_key = random.split(key)
    params, state = model.init(init_key)
    return TrainState(torch.zeros((), dtype=torch.int64, device=key.device), run_key, params, state, opt.init(params))
