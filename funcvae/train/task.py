"""What is trained, on which data and how, and whether it can be."""

from typing import NamedTuple

from torch import Tensor

from funcvae import random, tree
from funcvae._support import checks
from funcvae.distributed.collectives import SINGLE, Processes, split_evenly
from funcvae.distributed.sharding import by_samples
from funcvae.errors import BadData, BadType, BadValue
from funcvae.estimators.types import Estimator, checked_estimator
from funcvae.model import CHECK_SEED, VAE, check_data, check_trained
from funcvae.modules import Params, State
from funcvae.optim import Optimizer, check_optimizer
from funcvae.train.settings import StepSettings
from funcvae.train.state import TrainState, check_train_state

__all__ = ["Task", "check_batches", "check_shards", "check_task", "checked_task"]


class Task(NamedTuple):
    """What is trained, on which data, and how."""

    model: VAE
    estimator: Estimator
    opt: Optimizer
    train: Tensor
    """The training data [n, ...]."""
    settings: StepSettings = StepSettings()
    processes: Processes = SINGLE
    """Those that share the work."""

    @property
    def steps_per_epoch(self) -> int:
        """The last short batch included."""
        return -(-len(self.train) // self.settings.batch)

    @property
    def is_sharded(self) -> bool:
        """Whether a step is computed in shards."""
        return self.settings.shards is not None or self.processes.size > 1

    @property
    def shards(self) -> int:
        """The number of shards of a step: one for each process unless it is given."""
        return self.processes.size if self.settings.shards is None else self.settings.shards


def checked_task(ts: TrainState, task: Task) -> Task:
    """The task with its data on the device of `ts`: raises unless it can be trained from there.

    Raises:
        BadValue: see `check_shards`; or the estimator needs independent samples, and the noise scheme's are not.
        BadData: see `check_batches`; or the model cannot take the data.
    """
    if not isinstance(task, Task):
        raise BadType(f"task is {checks.describe(task)}: it must be a Task with StepSettings")
    if not isinstance(task.settings, StepSettings):
        raise BadType(f"task's settings are {checks.describe(task.settings)}: it must be a Task with StepSettings")
    check_train_state(ts, task.model)
    check_data(task.model, ts.params, ts.state, task.train, task.settings.observe, name="train")
    task = task._replace(train=task.train.to(ts.step.device))
    check_task(task, ts.params, ts.state)
    return task


def check_task(task: Task, params: Params, state: State) -> None:
    """What `checked_task` does for a valid TrainState, with valid data on its device."""
    check_optimizer(task.opt)
    checked_estimator(task.estimator).claims_under(task.settings.noise)
    check_shards(task, state)
    check_batches(task, params, state)


def check_shards(task: Task, state: State) -> None:
    """Raises unless a step can be split into its shards.

    Raises:
        BadValue: there are more shards than rows, or samples, to split; more processes than shards; or no shards are
            named, though the model has running statistics, which depend on them.
    """
    settings, processes = task.settings, task.processes
    if not isinstance(processes, Processes):
        raise BadType(
            f"processes is {checks.describe(processes)}: it must be SINGLE, or come from distributed.process_group()"
        )
    length, items = min(settings.batch, len(task.train)), "rows in a batch"
    if settings.split is by_samples:
        length, items = settings.samples, "samples"
    if length < task.shards:
        each = "each process needs" if settings.shards is None else f"--shards is {task.shards}, and each needs"
        raise BadValue(f"{each} one of the {items} at least, and there are {length}: use at most {length}")
    if processes.size > task.shards:
        plural = "s" * (task.shards != 1)
        raise BadValue(
            f"there are {processes.size} processes for {task.shards} shard{plural}: use at most {task.shards}"
        )
    if settings.shards is None and processes.size > 1 and tree.leaves(state):
        raise BadValue(
            "the model has running statistics, as of BatchNorm, which are taken for each shard: say by --shards how "
            "many, lest they hang on the number of processes"
        )


def check_batches(task: Task, params: Params, state: State) -> None:
    """Raises BadData where a batch, or a shard of it, has one item and the model, as with BatchNorm, needs more."""
    check_trained(task.model, params, state)
    n, batch = len(checks.tensor("train", task.train, "n ...")), task.settings.batch
    shards = 1 if task.settings.split is by_samples else task.shards
    sizes = {size for size in (min(n, batch), n % batch) if size}
    if all(len(piece) != 1 for size in sizes for piece in split_evenly(size, shards)):
        return
    try:
        x = task.settings.observe(random.key(CHECK_SEED, device=task.train.device), task.train[:1])
        q, _ = task.model.encode(params, state, x, True)
        task.model.decode(params, state, q.loc, True)
    except ValueError as error:
        size = f"{n} items in batches of {batch}" + (f", cut into {shards} shards," if shards > 1 else "")
        size += " leave one of a single item"
        raise BadData(f"{size}, which the model cannot be trained on: choose another batch ({error})") from None
