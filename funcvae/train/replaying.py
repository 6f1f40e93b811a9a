"""One step of a run by itself, with all that went into it."""

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae import compilation, noise, tree
from funcvae._support import checks
from funcvae.distributed.collectives import SINGLE
from funcvae.distributed.sharding import Split, by_rows
from funcvae.errors import BadValue
from funcvae.estimators.types import Estimator
from funcvae.model import VAE, Observe, as_is
from funcvae.modules import Params
from funcvae.optim import Optimizer
from funcvae.train.settings import Scale, StepSettings, per_example
from funcvae.train.state import Metrics, TrainState, batches_from
from funcvae.train.step import run_step, step_details
from funcvae.train.task import Task, checked_task

__all__ = ["Replay", "replay", "replay_task"]


class Replay(NamedTuple):
    """All that went into one step of a run, and what came out of it."""

    before: TrainState
    rows: Tensor  # int64 [B], of the training data
    x: Tensor  # [B, ...], as the model saw it
    eps: Tensor  # [N, B, Z]
    log_w: Tensor  # [N, B], nats
    bound: Tensor  # [B], nats
    grads: Params  # minus the gradient of the target's batch mean, before `scale`
    metrics: Metrics  # what the run itself reported
    after: TrainState


def replay(
    ts: TrainState,
    step: int,
    model: VAE,
    estimator: Estimator,
    opt: Optimizer,
    train: Tensor,
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
    """One step of a run by itself, with all that went into it; `ts` is left as it was.

    `metrics` and `after` are the run's to the bit. What the estimator gave is taken outside the compiler: it equals
    what the step used to the bit without `compile`, and to rounding with it.

    Args:
        ts: a TrainState of the run at that step or before, such as a checkpoint's or that of `init`; the steps between
            are made again.
        step: which, counted from 0.

    The others are `fit`'s, and must be what the run was made with.

    Raises:
        BadValue: `ts` has come past that step; and what `fit` raises of its arguments.
    """
    settings = StepSettings(
        batch=batch, samples=samples, chunk=chunk, shards=shards, split=split, observe=observe, noise=noise,
        scale=scale, offset=offset, compile=compile, precision=precision,
    )  # fmt: skip
    return replay_task(ts, step, Task(model, estimator, opt, train, settings))


def replay_task(ts: TrainState, step: int, task: Task) -> Replay:
    """`replay` of a task, in this process alone."""
    if isinstance(task, Task):
        task = task._replace(processes=SINGLE)
    task = checked_task(ts, task)
    made, step = int(ts.step), checks.integer("step", step)
    if step < made:
        raise BadValue(f"step {step} cannot be replayed from a TrainState that has made {made}: give an earlier one")
    ts = tree.map(torch.clone, ts)
    run = run_step(task, lambda: False)
    batches = batches_from(ts, len(task.train), task.settings.batch)
    with torch.no_grad(), compilation.precision(task.settings.precision):
        for rows, keys in islice(batches, step - made):
            ts, _ = run.step(ts, keys, rows)
        rows, keys = next(batches)
        x, eps, out = step_details(task, ts, keys, rows)
        after, metrics = run.step(tree.map(torch.clone, ts), keys, rows)
    return Replay(ts, rows, x, eps, out.log_w, out.bound, out.grads, metrics, after)
