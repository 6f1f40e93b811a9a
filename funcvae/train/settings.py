"""The settings of training as values: what a step is made of, and what a run calls along the way."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from funcvae import compilation
from funcvae._support import checks
from funcvae.distributed.sharding import Split, by_rows
from funcvae.model import Observe, as_is
from funcvae.noise import Noise, iid
from funcvae.train.state import TrainState

__all__ = ["Callbacks", "Log", "Row", "Save", "Scale", "StepSettings", "Watch", "per_example", "summed"]

Row = dict[str, Any]
"""What is logged: numbers by name, with the `step` and the `epoch` that they belong to."""

Log = Callable[[Row], object]
"""Takes every row that a run logs."""

Watch = Callable[[int, TrainState], object]
"""Takes the number of steps made and the new TrainState after each, whose buffers the next step writes over."""

Save = Callable[[TrainState], object]
"""Takes the TrainState to be saved."""

Scale = Callable[[int], float]
"""From the size of a batch to the factor of its loss and gradient."""


def per_example(batch: int) -> float:
    """The `scale` of a loss in nats per example: 1."""
    return 1.0


def summed(batch: int) -> float:
    """The `scale` of a loss that is summed over the batch."""
    return float(batch)


@dataclass(frozen=True)
class StepSettings:
    """What a training step is made of. `fit` documents each field.

    Raises:
        BadValue: batch, samples, chunk or shards below one; an unknown precision.
        BadType: a number or a function is something else.
    """

    batch: int = 128
    samples: int = 1
    chunk: int | None = None
    shards: int | None = None
    split: Split = by_rows
    observe: Observe = as_is
    noise: Noise = iid
    scale: Scale = per_example
    offset: float = 0.0
    compile: bool = True
    precision: str = "highest"

    def __post_init__(self) -> None:
        numbers = {
            "batch": checks.integer("batch", self.batch, 1),
            "samples": checks.integer("samples", self.samples, 1),
            "chunk": None if self.chunk is None else checks.integer("chunk", self.chunk, 1),
            "shards": None if self.shards is None else checks.integer("shards", self.shards, 1),
            "offset": checks.number("offset", self.offset),
        }
        for name, number in numbers.items():
            object.__setattr__(self, name, number)  # Python's own type, also where numpy's was given
        checks.function("split", self.split, "a way to split, such as distributed.by_rows")
        checks.function("observe", self.observe)
        checks.function("noise", self.noise, "a scheme, such as noise.iid")
        checks.function("scale", self.scale)
        checks.flag("compile", self.compile)
        compilation.check_precision(self.precision)


@dataclass(frozen=True)
class Callbacks:
    """What a run calls along the way. `fit` documents when.

    Raises:
        BadValue: save_every is below zero.
        BadType: one of the others is no function.
    """

    log: Log = lambda row: None
    watch: Watch = lambda step, ts: None
    save: Save = lambda ts: None
    save_every: int = 0
    stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        object.__setattr__(self, "save_every", checks.integer("save_every", self.save_every, 0))
        for name in ("log", "watch", "save", "stop"):
            checks.function(name, getattr(self, name))


NO_CALLBACKS = Callbacks()
