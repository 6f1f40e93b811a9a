"""A training task (model, data and settings), and the checks that its parts fit together."""

from typing import NamedTuple

import torch

from funcvae import random, tree
from funcvae._support import checks, examples
from funcvae._support.reprs import short_repr
from funcvae.distributed.collectives import SINGLE, Processes, split_evenly
from funcvae.distributed.sharding import by_samples, draw_noise
from funcvae.distributions import is_reparameterised
from funcvae.errors import BadData, BadValue
from funcvae.estimators.types import Estimator, EstimatorAt, by_step, check_posterior
from funcvae.model import CHECK_SEED, VAE, check_items, running
from funcvae.modules import Params, State
from funcvae.optim import Optimizer
from funcvae.optim.protocol import check_pair
from funcvae.train import streaming
from funcvae.train.settings import StepSettings
from funcvae.train.state import TrainState, check_train_state
from funcvae.train.streaming import Readable

__all__ = ["Task", "check_batches", "check_shards", "check_task", "checked_task"]


@short_repr
class Task(NamedTuple):
    """The model to train, the data, and the settings."""

    model: VAE
    estimator: Estimator | EstimatorAt
    opt: Optimizer
    train: Readable
    """The training data [n, ...], or a source of them (`funcvae.train.Source`)."""
    settings: StepSettings = StepSettings()
    processes: Processes = SINGLE
    """The processes that share the work."""

    @property
    def steps_per_epoch(self) -> int:
        """The number of batches in the data, including a last short one."""
        return -(-streaming.count(self.train) // self.settings.batch)

    @property
    def estimator_at(self) -> EstimatorAt:
        """The estimator of each step."""
        return by_step(self.estimator)

    @property
    def is_sharded(self) -> bool:
        """Whether a step is computed in shards."""
        return self.settings.shards is not None or self.processes.size > 1

    @property
    def shards(self) -> int:
        """The number of shards of a step: one for each process unless the settings give it."""
        return self.processes.size if self.settings.shards is None else self.settings.shards


@checks.arguments
def checked_task(ts: TrainState, task: Task) -> Task:
    """Checks a task. Returns it with its data on the device of `ts`, or a `Stream`, and with the unchecked model.

    Raises BadType or BadValue if `ts` is not of this model, if the step cannot be split into its shards, or if the
    estimator does not suit noise or posterior; BadData if the model cannot take the data, or a shard of a single item.
    """
    for name, check in checks.checks_of_class(Task).items():  # a NamedTuple does not check its own fields
        task = task._replace(**{name: check(name, getattr(task, name))})
    check_train_state(ts, task.model)
    model, x = task.model.unchecked(), streaming.first(task.train)
    check_items(model, ts.params, ts.state, x, task.settings.observe, name="train")
    _check_optimizer(task.opt, ts)
    task = task._replace(model=model, train=streaming.on_device(task.train, ts.step.device))
    check_task(task, ts)
    return task


def _check_optimizer(opt: Optimizer, ts: TrainState) -> None:
    """Raises BadType or BadValue unless the state of `ts` is of the optimizer, and an update keeps the shapes.

    Makes an update of copies with a gradient of zeros.
    """
    first = opt.init(ts.params)
    for leaf in tree.leaves(first):
        checks.tensor("a leaf of the optimizer's state", leaf)
    if _shapes(ts.opt_state) != _shapes(first):
        raise BadValue("ts.opt_state is not of this optimizer and these params: make ts by train.init")
    params, state = tree.map(torch.clone, (ts.params, ts.opt_state))
    updated = check_pair("update", opt.update(tree.zeros_like(params), state, params), "(params, opt_state)")
    for what, new, old in zip(("params", "opt_state"), updated, (ts.params, ts.opt_state), strict=True):
        if _shapes(new) != _shapes(old):
            raise BadValue(f"update of the optimizer returned {what} of other names or shapes: it must keep them")


def _shapes(state: tree.Tree) -> dict[str, torch.Size | None]:
    return {name: getattr(leaf, "shape", None) for name, leaf in tree.named_leaves(state).items()}


def check_task(task: Task, ts: TrainState) -> None:
    """Raises what `checked_task` raises, for a valid TrainState and valid data on its device."""
    settings, data = task.settings, examples.head(streaming.first(task.train), 2)
    params, state, estimator = ts.params, ts.state, task.estimator_at(ts.step)
    estimator.claims_under(settings.noise)
    check_shards(task, state)
    key = random.key(CHECK_SEED, device=examples.device(data))
    x = settings.observe(key, data)
    q, _ = task.model.encode(params, state, x)
    check_posterior(estimator, q, is_reparameterised)
    draw_noise(settings.noise, key, settings.samples, len(q.loc), task.model, params, x)
    check_batches(task, params, state)


def check_shards(task: Task, state: State) -> None:
    """Raises BadValue if there are more shards than rows or samples, or more processes than shards.

    It is also raised if the number of shards is not given, and the model has running statistics, which depend on it.
    """
    settings, processes, shards = task.settings, task.processes, task.shards
    length, items = min(settings.batch, streaming.count(task.train)), "each batch has only {} rows"
    if settings.split is by_samples:
        length, items = settings.samples, "each datum has only {} samples"
    if length < shards:
        what = f"there are {shards} processes" if settings.shards is None else f"shards is {shards}"
        raise BadValue(f"{what}, but {items.format(length)}: use at most {length}")
    if processes.size > shards:
        raise BadValue(f"there are {processes.size} processes, but shards is {shards}: use at most {shards}")
    if settings.shards is None and processes.size > 1 and running(task.model, state):
        raise BadValue(
            "the model has buffers, such as BatchNorm's running statistics, which each shard may change: set shards, "
            "otherwise they depend on the number of processes"
        )


def check_batches(task: Task, params: Params, state: State) -> None:
    """Raises BadData if a batch or shard has a single item, and the model needs more (as with BatchNorm)."""
    n, batch, x = streaming.count(task.train), task.settings.batch, examples.head(streaming.first(task.train), 1)
    shards = 1 if task.settings.split is by_samples else task.shards
    sizes = {size for size in (min(n, batch), n % batch) if size}
    if all(len(piece) != 1 for size in sizes for piece in split_evenly(size, shards)):
        return
    try:
        x = task.settings.observe(random.key(CHECK_SEED, device=examples.device(x)), x)
        q, _ = task.model.encode(params, state, x, True)
        task.model.decode(params, state, q.loc, True, **task.model.given(x))
    except ValueError as error:
        cut, part = (f" and {shards} shards", "shard") if shards > 1 else ("", "batch")
        raise BadData(
            f"{n} items in batches of {batch}{cut} leave a {part} of a single item, on which the model cannot be "
            f"trained: choose another batch ({error})"
        ) from None
