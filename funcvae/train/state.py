"""The state of a run, and its keys and batches, which are functions of that state.

The key of a `TrainState` is split into four, the `RunKeys`. Epoch e visits the data in the order
`permutation(fold_in(order_key, e), n)`. Step s uses `noise_key, observe_key = split(fold_in(step_key, s))`. So the rest
of a run depends only on its `TrainState`, and any step can be replayed alone.
"""

from collections.abc import Iterator
from itertools import count, islice
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from funcvae import random
from funcvae._support import checks
from funcvae._support.checks import Count, Indices, Natural
from funcvae._support.reprs import short_repr
from funcvae.errors import BadValue
from funcvae.model import VAE, check_trained
from funcvae.modules import Params, State
from funcvae.optim import Optimizer

__all__ = ["Metrics", "RunKeys", "TrainState", "batches", "init", "run_keys", "step_keys"]


@short_repr
class TrainState(NamedTuple):
    """Everything that the rest of a run depends on."""

    step: Tensor
    """The number of steps made, an int64 tensor without axes."""
    key: random.Key
    """The key of the whole run, which does not change."""
    params: Params
    """The parameters of the model."""
    state: State
    """The state of the model."""
    opt_state: Any
    """The state of the optimizer."""


@short_repr
class Metrics(NamedTuple):
    """The metrics of one step, tensors without axes."""

    loss: Tensor
    """scale · (-bound - offset): by default, minus the bound."""
    bound: Tensor
    """The mean over the batch, in nats per example."""
    grad_norm: Tensor
    """The Euclidean norm of the whole gradient of the loss, before a transform of the optimizer clips it."""
    reconstruction: Tensor
    """The batch mean of mean_k log p(x|z_k), in nats per example: see `Estimate`."""
    kl: Tensor
    """The batch mean of the KL divergence, in nats per example: see `Estimate`."""


@short_repr
class RunKeys(NamedTuple):
    """The keys that the key of a TrainState is split into."""

    order: random.Key
    """The key of the order of the data in each epoch."""
    step: random.Key
    """The key of the noise and the observation of each step."""
    test: random.Key
    """The key of the noise of the test bound, the same after every epoch."""
    pictures: random.Key
    """The key of figures; training does not use it."""


@checks.arguments
def run_keys(key: random.Key) -> RunKeys:
    """The keys of a run, from the key of its TrainState."""
    return RunKeys(*random.split(key, 4))


@checks.arguments
def step_keys(step_key: random.Key, steps: Annotated[Indices, "S"]) -> Tensor:
    """Keys [S, 2, 2] of the given steps: (noise_key, observe_key) = split(fold_in(step_key, s)) for each."""
    checks.same_device(step_key=step_key, steps=steps)
    if not len(steps):
        return step_key.new_empty(0, 2, 2)
    split, fold_in = checks.unchecked(random.split), checks.unchecked(random.fold_in)
    return torch.vmap(lambda s: split(fold_in(step_key, s)))(steps)


@checks.arguments
def batches(key: random.Key, n: Count, batch: Count, epoch: Natural) -> tuple[tuple[Tensor, ...], Tensor]:
    """The batches of an epoch in a run with this key: the rows of each batch, and the keys [S, 2, 2] of its S steps."""
    keys = run_keys(key)
    rows = random.permutation(random.fold_in(keys.order, epoch), n).split(batch)
    steps = torch.arange(epoch * len(rows), (epoch + 1) * len(rows), device=key.device)
    return rows, step_keys(keys.step, steps)


def batches_from(ts: TrainState, n: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An endless iterator over the rows and the keys of every step, from the next step of a TrainState on."""
    first, made = divmod(int(ts.step), -(-n // batch))
    for epoch in count(first):
        yield from islice(zip(*batches(ts.key, n, batch, epoch), strict=True), made, None)
        made = 0


@checks.arguments
def check_train_state(ts: TrainState, model: VAE) -> None:
    """Raises BadType or BadValue unless this is a TrainState of the model."""
    check_trained(model, ts.params, ts.state)
    run_keys(ts.key)
    if checks.concrete("ts.step", ts.step).ndim or ts.step.dtype != torch.int64 or ts.step < 0:
        raise BadValue(f"ts.step is {ts.step.tolist()}: it must be an int64 tensor without axes, 0 or more")


@checks.arguments
def init(model: VAE, opt: Optimizer, key: random.Key) -> TrainState:
    """The first TrainState, on the device of the key, which is split into one for the parameters and one to keep."""
    init_key, run_key = random.split(key)
    params, state = model.init(init_key)
    return TrainState(torch.zeros((), dtype=torch.int64, device=key.device), run_key, params, state, opt.init(params))
