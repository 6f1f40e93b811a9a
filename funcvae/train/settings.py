"""The settings of a training run, as values."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from funcvae import random, tree
from funcvae._support import checks
from funcvae.distributed.processes import Processes, cut
from funcvae.distributed.sharding import Split, by_samples
from funcvae.errors import BadData, BadType, BadValue
from funcvae.model import _CHECK_SEED, VAE, Observe, as_is, check_trained
from funcvae.modules import Params, State
from funcvae.train.state import TrainState

Scale = Callable[[int], float]


def per_example(batch: int) -> float:
    """The `scale` of a loss in nats per example: 1."""
    return 1.0


def summed(batch: int) -> float:
    """The `scale` of a loss that is summed over the batch."""
    return float(batch)


def check_shards(
    batch: int, samples: int, shards: int | None, split: Split, processes: Processes, state: State | None = None
) -> int:
    """Into how many pieces the rows of a batch are cut.

    Raises:
        BadValue: there are more shards than rows, or samples, to cut; more processes than shards; or no shards are
            named, though the model has running statistics, which hang on them.
    """
    if not isinstance(processes, Processes):
        raise BadType(
            f"processes is {checks.shown(processes)}: it must be SINGLE, or come from distributed.process_group()"
        )
    checks.function("split", split, "one, such as shards.by_rows")
    count = processes.size if shards is None else checks.whole("shards", shards, 1)
    whole, what = (samples, "samples") if split is by_samples else (batch, "rows in a batch")
    if whole < count:
        each = "each process needs" if shards is None else f"--shards is {count}, and each needs"
        raise BadValue(f"{each} one of the {what} at least, and there are {whole}: use at most {whole}")
    if processes.size > count:
        raise BadValue(
            f"there are {processes.size} processes for {count} shard{'s' * (count != 1)}: use at most {count}"
        )
    if shards is None and processes.size > 1 and tree.leaves(state or {}):
        raise BadValue(
            "the model has running statistics, as of BatchNorm, which are taken for each shard: say by --shards how "
            "many, lest they hang on the number of processes"
        )
    return 1 if split is by_samples else count


Row = dict[str, Any]


Log = Callable[[Row], None]


Watch = Callable[[int, TrainState], None]


Save = Callable[[TrainState], None]


def check_batches(
    model: VAE, params: Params, state: State, train: Tensor, batch: int, observe: Observe = as_is, *, shards: int = 1
) -> None:
    """Raises BadData where a batch, or a shard of it, has one item and the model, as with BatchNorm, needs more."""
    check_trained(model, params, state)
    n, batch = len(checks.tensor("train", train, "n ...")), checks.whole("batch", batch, 1)
    sizes = {size for size in (min(n, batch), n % batch) if size}
    shards = checks.whole("shards", shards, 1)
    if all(len(piece) != 1 for size in sizes for piece in cut(size, shards)):
        return
    try:
        x = observe(random.key(_CHECK_SEED, device=train.device), train[:1])
        q, _ = model.encode(params, state, x, True)
        model.decode(params, state, q.loc, True)
    except ValueError as error:
        size = f"{n} items in batches of {batch}" + (f", cut into {shards} shards," if shards > 1 else "")
        size += " leave one of a single item"
        raise BadData(f"{size}, which the model cannot be trained on: choose another batch ({error})") from None
