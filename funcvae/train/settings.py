"""The settings of training as value objects: those of a step, and the functions that a run calls."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from funcvae._support import checks
from funcvae._support.checks import Count, Finite, Natural
from funcvae._support.progress import Progress, silent
from funcvae._support.reprs import short_repr
from funcvae.compilation import PRECISIONS
from funcvae.distributed.sharding import Split, by_rows
from funcvae.model import Observe, as_is
from funcvae.noise import Noise, iid
from funcvae.train.state import TrainState
from funcvae.train.stopping import Until

__all__ = ["Callbacks", "Log", "Row", "Save", "Scale", "StepSettings", "Watch", "per_example", "summed"]

Row = dict[str, Any]
"""A row of the log: numbers by name, with their `kind`, `epoch` and `step`. Bounds are in nats per example.

"step": `loss`, `bound`, `grad_norm`, `reconstruction` and `kl` of a step, which is counted from 0.
"epoch": `train_bound`, `train_reconstruction`, `train_kl` and, if it was computed, `test_bound`, where `step` is the
    number of steps made. A run folder also has `params_sha256`.
"variance": `variance/NAME/NETWORK`, its standard error `variance_se/…`, and `snr/…`, after a number of steps.

Numbers that are not finite are left out.
"""
Log = Callable[[Row], object]
"""Called with each `Row` that a run logs: of a step, an epoch or a measurement."""
Watch = Callable[[int, TrainState], object]
"""Called with the number of steps made and the new TrainState, whose buffers the next step overwrites."""
Save = Callable[[TrainState], object]
"""Called with the TrainState to save, as for a checkpoint."""
Scale = Callable[[int], float]
"""Maps the size of a batch to the factor that multiplies its loss and gradient."""


def per_example(batch: int) -> float:
    """The `scale` of a loss in nats per example: 1."""
    return 1.0


def summed(batch: int) -> float:
    """The `scale` of a loss summed over the batch: its size."""
    return float(batch)


@short_repr
@dataclass(frozen=True)
class StepSettings:
    """The settings of a training step. `fit` documents each field."""

    batch: Count = 128
    samples: Count = 1
    chunk: Count | None = None
    shards: Count | None = None
    split: Split = by_rows
    observe: Observe = as_is
    noise: Noise = iid
    scale: Scale = per_example
    offset: Finite = 0.0
    compile: bool = True
    precision: str = "highest"

    def __post_init__(self) -> None:
        checks.fields(self)
        checks.known("precision", self.precision, PRECISIONS)


@short_repr
@dataclass(frozen=True)
class Callbacks:
    """The functions that a run calls. `fit` documents when."""

    log: Log = lambda row: None
    watch: Watch = lambda step, ts: None
    save: Save = lambda ts: None
    save_every: Natural = 0
    stop: Callable[[], bool] = lambda: False
    until: Until | None = None
    best: Save | None = None
    progress: Progress = silent

    def __post_init__(self) -> None:
        checks.fields(self)


NO_CALLBACKS = Callbacks()
"""The callbacks of a training that logs, saves and shows nothing."""
