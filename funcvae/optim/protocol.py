"""The protocol of optimizers, and the parts that they share."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae._support.checks import Finite, Only, at_least
from funcvae._support.pickling import by_call
from funcvae._support.reprs import short_repr
from funcvae.errors import BadType, BadValue
from funcvae.optim.schedules import Schedule
from funcvae.tree import FloatTensors, Tree

__all__ = [
    "Mask", "NotNegative", "Optimizer", "Rate", "check_gradient", "check_pair", "chosen", "first_step", "on_copies",
    "rate_at",
]  # fmt: skip


def _rate(name: str, value: Any) -> float | Schedule:
    return value if callable(value) else at_least(0)(name, checks.number(name, value))


Rate = Annotated[float | Schedule, Only(_rate)]  # a learning rate, or the schedule of one
NotNegative = Annotated[Finite, at_least(0)]  # a finite number, 0 or more
Mask = Callable[[str], bool]
"""Whether weight decay applies to a parameter, by its path in the tree, such as "encoder/linear1.weight"."""


@short_repr
@by_call
class Optimizer(NamedTuple):
    """An optimizer: two pure functions, and optionally a version of the second that works in place.

    `init(params)` returns the first state, and `update(grads, state, params)` the new (params, state). `grads` is the
    gradient of the loss, such as `Estimate.grads`; the update descends. `update_` returns the same numbers, but writes
    into the state and params that it is given, and checks nothing: for a loop that owns them, as in
    `funcvae.train.fit`.
    """

    init: Callable[[Tree], Tree]
    """Makes the first state from params."""
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    """Maps (grads, state, params) to the new (params, state)."""
    update_: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]] | None = None
    """The same in place; None if there is no such version."""


@checks.arguments
def first_step(params: FloatTensors) -> Tensor:
    """The number of updates made before the first one: 0, on the device of the parameters."""
    leaves = tree.leaves(params)
    if not leaves:
        raise BadValue("params has no leaves: there is nothing to optimise")
    return torch.zeros((), dtype=torch.int64, device=leaves[0].device)


def rate_at(lr: float | Schedule, step: Tensor) -> Tensor | float:
    """The learning rate after `step` updates; raises unless it is one number, because a tensor with axes might
    broadcast."""
    if not callable(lr):
        return lr
    rate = lr(step)
    if not isinstance(rate, Tensor):
        return checks.number("the learning rate of the schedule", rate)
    if rate.ndim or rate.is_complex() or rate.is_meta != step.is_meta:
        raise BadValue(f"the learning rate of the schedule is {checks.describe(rate)}: it must be one number")
    return rate


def chosen(mask: Mask | None, params: Tree) -> list[bool]:
    """Whether the mask chooses each leaf of params, in the order of the leaves; all without a mask."""
    return [mask is None or mask(path) for path in tree.paths(params)]


def check_pair(name: str, found: Any, what: str) -> Any:
    """Raises BadType unless a function of the user returned two trees."""
    if not (isinstance(found, tuple | list) and len(found) == 2):
        raise BadType(f"{name} returned {checks.describe(found)}: it must return {what}")
    return found


def check_gradient(grad: Tensor, old: Tensor) -> None:
    """Raises unless a gradient has the shape and device of its parameter or moment; they might broadcast."""
    checks.same_device(gradient=checks.tensor("a gradient", grad), parameter=old)
    if old.shape != grad.shape:
        shapes = list(grad.shape), list(old.shape)
        raise BadValue("a gradient has shape {}: its parameter or moment has {}".format(*shapes))


def on_copies(update_: Callable[[Tree, Any, Tree], tuple[Tree, Any]], kind: type) -> Callable[..., tuple[Tree, Any]]:
    """The pure version of an update in place. The state is of this `kind`: a step, and trees like params or empty."""

    @checks.arguments
    def update(grads: FloatTensors, state: Any, params: FloatTensors) -> tuple[Tree, Any]:
        def copy(old: Tensor, grad: Tensor) -> Tensor:
            check_gradient(grad, old)
            return old + grad.new_zeros(())  # a copy that is batched if a `vmap` has batched the gradient

        step, *trees = checks.instance("state", state, kind)
        copies = [tree.map(copy, old, grads) if tree.leaves(old) else old for old in trees]
        return update_(grads, kind(step, *copies), tree.map(copy, params, grads))

    return update
