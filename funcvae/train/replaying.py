"""One step of a run by itself, with all that went into it."""

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae import compilation, noise, tree
from funcvae._support import checks
from funcvae.distributed.processes import SINGLE
from funcvae.distributed.sharding import Split, by_rows
from funcvae.errors import BadValue
from funcvae.estimators.engine import Estimator
from funcvae.model import VAE, Observe, as_is, check_data
from funcvae.modules import Params
from funcvae.optim import Optimizer
from funcvae.train.settings import Scale, per_example
from funcvae.train.state import Metrics, TrainState, _visits, check_train_state
from funcvae.train.step import ready


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
    batch = checks.whole("batch", batch, 1)
    compilation.check_precision(precision)
    check_train_state(ts, model)
    check_data(model, ts.params, ts.state, train, observe, name="train")
    made = int(ts.step)
    if checks.whole("step", step) < made:
        raise BadValue(f"step {step} cannot be replayed from a TrainState that has made {made}: give an earlier one")
    ts, train = tree.map(torch.clone, ts), train.to(ts.step.device)
    _, run = ready(
        model, estimator, opt, ts.state, train, batch=batch, samples=samples, chunk=chunk, shards=shards, split=split,
        processes=SINGLE, observe=observe, noise=noise, scale=scale, offset=offset, compile=compile, stop=lambda: False,
    )  # fmt: skip
    visits = _visits(ts, len(train), batch)
    with torch.no_grad(), compilation.precision(precision):
        for rows, keys in islice(visits, step - made):
            ts, _ = run(ts, keys, rows)
        rows, keys = next(visits)
        x, eps, out = run.seen(ts, keys, rows)
        after, metrics = run(tree.map(torch.clone, ts), keys, rows)
    return Replay(ts, rows, x, eps, out.log_w, out.bound, out.grads, metrics, after)
