"""Replays a single step of a run, with its inputs and its results."""

from contextlib import closing
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae import compilation, noise, tree
from funcvae._support import checks
from funcvae._support.examples import Data
from funcvae._support.reprs import short_repr
from funcvae.distributed.collectives import SINGLE
from funcvae.distributed.sharding import Split, by_rows
from funcvae.errors import BadValue
from funcvae.estimators.types import Estimator, EstimatorAt
from funcvae.model import VAE, Observe, as_is
from funcvae.modules import Params
from funcvae.optim import Optimizer
from funcvae.train.settings import Scale, StepSettings, per_example
from funcvae.train.state import Metrics, TrainState
from funcvae.train.step import run_step, step_details
from funcvae.train.streaming import Source, training_batches
from funcvae.train.task import Task, checked_task

__all__ = ["Replay", "replay", "replay_task"]


@short_repr
class Replay(NamedTuple):
    """The inputs and the results of one step of a run."""

    before: TrainState
    rows: Tensor
    """The rows of the training data, int64 [B]."""
    x: Data
    """The data [B, ...] as the model sees them."""
    eps: Tensor
    """The noise [N, B, Z]."""
    log_w: Tensor
    """The log-weights [N, B], in nats."""
    bound: Tensor
    """The target bound [B], in nats."""
    grads: Params
    """Minus the gradient of the batch mean of the target, before `scale`."""
    metrics: Metrics
    """The metrics that the run reported."""
    after: TrainState


@checks.readable
def replay(
    ts: TrainState,
    step: int,
    model: VAE,
    estimator: Estimator | EstimatorAt,
    opt: Optimizer,
    train: Data | Source,
    *,
    batch: int = 128,
    samples: int = 1,
    chunk: int | None = None,
    shards: int | None = None,
    split: Split = by_rows,
    observe: Observe = as_is,
    noise: noise.Noise = noise.iid,
    scale: Scale = per_example,
    offset: float = 0.0,
    compile: bool = True,
    precision: str = "highest",
) -> Replay:
    """Replays one step of a run, with its inputs and its results; `ts` is unchanged.

    `metrics` and `after` have the bits of the run. The estimate is computed without the compiler: it equals that of the
    run bit for bit, or to rounding if the run was compiled.

    Args:
        ts: a TrainState of the run at that step or before, such as a checkpoint or the result of `init`. The steps in
            between are repeated.
        step: the step to replay, counted from 0.

    The other arguments are those of `fit`, and must be as in the run. The errors are those of `fit`, and:

    Raises:
        BadValue: `ts` is past that step.
    """
    settings = StepSettings(
        batch=batch, samples=samples, chunk=chunk, shards=shards, split=split, observe=observe, noise=noise,
        scale=scale, offset=offset, compile=compile, precision=precision,
    )  # fmt: skip
    return replay_task(ts, step, Task(model, estimator, opt, train, settings))


@checks.arguments
def replay_task(ts: TrainState, step: int, task: Task) -> Replay:
    """Replays one step of a task, in this process alone."""
    task = checked_task(ts, task._replace(processes=SINGLE))
    made = int(ts.step)
    if step < made:
        raise BadValue(f"step is {step}: ts has made {made} steps, so give {made} or more, or an earlier TrainState")
    ts = tree.map(torch.clone, ts)
    run = run_step(task, lambda: False)
    batches = training_batches(ts, task.train, task.settings.batch, step - made + 1)
    with torch.no_grad(), compilation.precision(task.settings.precision), closing(batches):
        for drawn in run.inputs(islice(batches, step - made), ts.params):
            ts, _ = run.step(ts, *drawn)
        rows, keys, batch = next(batches)
        x, eps, out = step_details(task, ts, keys, batch)
        (drawn,) = run.inputs(iter([(rows, keys, batch)]), ts.params)
        after, metrics = run.step(tree.map(torch.clone, ts), *drawn)
    return Replay(ts, rows, x, eps, out.log_w, out.bound, out.grads, metrics, after)
