"""Schedules: functions of the number of steps made, for learning rates and for weights of an objective.

A schedule takes an int64 tensor t and returns a float64 tensor of its shape. It can be compiled and `vmap`ped.
"""

import math
from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae._support.checks import Count, Finite, at_least
from funcvae._support.pickling import remembered
from funcvae.errors import BadValue

__all__ = ["Schedule", "constant", "cosine", "exponential", "linear", "piecewise", "repeat", "warmup_cosine"]

Schedule = Callable[[Tensor], Tensor | float]
"""Maps the number of steps made, an int64 tensor without axes, to a number for the next step."""


@remembered
@checks.arguments
def constant(value: Finite) -> Schedule:
    """The schedule that has the same value at every step."""
    return lambda t: torch.full_like(t, value, dtype=torch.float64)


@remembered
@checks.arguments
def linear(start: Finite, end: Finite, steps: Count) -> Schedule:
    """A line from `start` to `end` in `steps` steps, and then `end`.

        start + (end - start) · min(t/steps, 1)

    As `optax.linear_schedule`, and `torch.optim.lr_scheduler.LinearLR`.
    """
    return lambda t: start + (end - start) * _part(t, steps)


@remembered
@checks.arguments
def cosine(start: Finite, steps: Count, end: Finite = 0.0) -> Schedule:
    """Half a period of a cosine from `start` to `end` in `steps` steps, and then `end`.

        end + (start - end) · ½ (1 + cos(π min(t/steps, 1)))

    As `optax.cosine_decay_schedule`, and `torch.optim.lr_scheduler.CosineAnnealingLR` in its first `T_max` steps.

    Reference: Loshchilov & Hutter (2017), arXiv:1608.03983.
    """
    return lambda t: end + (start - end) * 0.5 * (1 + (math.pi * _part(t, steps)).cos())


@remembered
@checks.arguments
def warmup_cosine(peak: Finite, warmup: Count, steps: Count, start: Finite = 0.0, end: Finite = 0.0) -> Schedule:
    """A line from `start` to `peak` in `warmup` steps, and then a cosine to `end` at step `steps`.

    As `optax.warmup_cosine_decay_schedule`. With `start` 0, the first step has the learning rate 0.

    Raises:
        BadValue: steps is not above warmup.
    """
    if steps <= warmup:
        raise BadValue(f"steps is {steps}: it must be above warmup, {warmup}, which it includes")
    rise, fall = linear(start, peak, warmup), cosine(peak, steps - warmup, end)
    return lambda t: torch.where(t < warmup, rise(t), fall(t - warmup))


@remembered
@checks.arguments
def exponential(start: Finite, decay: Annotated[Finite, at_least(0)], steps: Count = 1) -> Schedule:
    """A value that is multiplied by `decay` in every `steps` steps: start · decay^(t/steps).

    As `optax.exponential_decay`, and `torch.optim.lr_scheduler.ExponentialLR` for one step.
    """
    return lambda t: start * decay ** (t.double() / steps)


@remembered
@checks.arguments
def piecewise(values: Mapping[int, float]) -> Schedule:
    """Constant values {first step: value}; each holds from its step until the next one.

    >>> lr = piecewise({0: 1e-3, 1000: 1e-4})
    >>> lr(torch.tensor([0, 999, 1000]))
    tensor([0.0010, 0.0010, 0.0001], dtype=torch.float64)

    Raises:
        BadType, BadValue: the dict does not map whole numbers, with 0 among them, to finite numbers.
    """
    first_steps = [checks.at_least(0)("a step of values", checks.integer("a step of values", t)) for t in values]
    if 0 not in first_steps:
        raise BadValue(f"values has steps {checks.describe(first_steps)}: 0 must be among them")
    pieces = [(t, checks.is_finite("a value", checks.number("a value", values[t]))) for t in sorted(values)]

    def at(t: Tensor) -> Tensor:
        value = torch.full_like(t, pieces[0][1], dtype=torch.float64)
        for first, later in pieces[1:]:
            value = torch.where(t < first, value, later)
        return value

    return at


@remembered
@checks.arguments
def repeat(schedule: Schedule, period: Count) -> Schedule:
    """A schedule that starts again after every `period` steps: schedule(t mod period).

    With `linear(0, 1, r · period)` it is the cyclical annealing of a KL term, usually with r = ½.

    Reference: Fu et al. (2019), arXiv:1903.10145.
    """
    return lambda t: schedule(t % period)


def _part(t: Tensor, steps: int) -> Tensor:
    """The part of `steps` steps that is over: min(t/steps, 1)."""
    return (t.double() / steps).clamp(max=1)
