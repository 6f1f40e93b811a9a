"""Stochastic gradient descent, with momentum."""

from typing import NamedTuple

from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae._support.checks import Finite
from funcvae._support.pickling import remembered
from funcvae._support.reprs import short_repr
from funcvae.errors import BadValue
from funcvae.optim.protocol import NotNegative, Optimizer, Rate, first_step, on_copies, rate_at
from funcvae.tree import Tree

__all__ = ["SGDState", "sgd"]


@short_repr
class SGDState(NamedTuple):
    """The state of `sgd`: the number of updates and the momentum."""

    step: Tensor
    """The number of updates made, an int64 tensor without axes."""
    momentum: Tree
    """The running sum of the gradients, like params; {} without momentum."""


@remembered
@checks.arguments
def sgd(lr: Rate = 1e-3, momentum: NotNegative = 0.0, dampening: Finite = 0.0, nesterov: bool = False) -> Optimizer:
    """Stochastic gradient descent, equal to `torch.optim.SGD` to rounding.

    With gradient g_t at step t = 1, 2, …:

        b_1 = g_1,    b_t = momentum · b_{t-1} + (1 - dampening) g_t
        p_t = p_{t-1} - lr · b_t,    with nesterov: p_{t-1} - lr (g_t + momentum · b_t)

    For torch's `weight_decay`, write `chain(add_decayed_weights(weight_decay), sgd(...))`.

    Args:
        lr: a number, or a schedule, as in `adam`.

    Raises:
        BadValue: lr or momentum is negative; or nesterov without momentum, or with dampening; or the errors of `adam`.

    Reference: Sutskever, Martens, Dahl & Hinton (2013), "On the importance of initialization and momentum in deep
    learning", in torch's form.
    """
    if nesterov and (momentum == 0 or dampening != 0):
        raise BadValue(f"nesterov needs momentum without dampening: they are {momentum} and {dampening}")

    def init(params: Tree) -> SGDState:
        return SGDState(first_step(params), tree.zeros_like(params) if momentum else {})

    def update_(grads: Tree, state: SGDState, params: Tree) -> tuple[Tree, SGDState]:
        rate = rate_at(lr, state.step)
        along = grads
        if momentum:
            part = 1 - dampening * (state.step > 0).double()
            for b, g in tree.rows(state.momentum, grads):
                b.mul_(momentum).add_(g * part.to(g) if dampening else g)
            along = tree.map(lambda b, g: g + momentum * b, state.momentum, grads) if nesterov else state.momentum
        for p, d in tree.rows(params, along):
            p.sub_(d * (rate.to(d) if isinstance(rate, Tensor) else rate))
        return params, SGDState(state.step + 1, state.momentum)

    return Optimizer(init, on_copies(update_, SGDState), update_)
