"""The stateless Adam: state in, state out, on whatever device the tensors are."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam

from funcvae import tree
from funcvae._support import checks
from funcvae.errors import BadType, BadValue
from funcvae.tree import Tree

__all__ = ["AdamState", "Optimizer", "Schedule", "adam", "check_optimizer"]

Schedule = Callable[[Tensor], Tensor | float]
Rows = list[tuple[Tensor, ...]]  # of a parameter, its gradient, m and v


class Optimizer(NamedTuple):
    """A pair of pure functions, and the second once more in place.

    `init(params)` gives the first state; `update(grads, state, params)` gives the new (params, state). `grads` point
    uphill in the loss, as `Estimate.grads` do, and the step goes down. `update_` is the same number for number but
    writes into the state and params it is given: for a loop that owns them, as `train.fit`'s does. An optimizer may
    do without it.
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    update_: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]] | None = None


class AdamState(NamedTuple):
    """Adam's memory: updates made, and running means of the gradient and of its square."""

    step: Tensor  # int64, no dimensions
    m: Tree
    v: Tree


def adam(lr: float | Schedule = 1e-3, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam, equal to `torch.optim.Adam` to rounding.

    With gradient g_t at step t = 1, 2, …:

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t²
        p_t = p_{t-1} - lr · m_t/(1 - b1^t) / ( √(v_t/(1 - b2^t)) + eps )
            = p_{t-1} - scale · m_t / ( √v_t + eps_t ),   eps_t = eps · c_2,  scale = lr · c_2/c_1

    with c_1 = 1 - b1^t and c_2 = √(1 - b2^t); the second form makes one pass over v_t less. Compiled or transformed it
    is computed so; outside of that, where all lie whole in memory, by torch's kernel in the first form. The two are
    equal to rounding.

    Args:
        lr: a number, or a schedule `step -> lr`, where step counts the updates already made (0 at the first), as an
            int64 tensor of no dimensions. (A Python float to the power of it is float32: write `step.double()`.)
        b1, b2: decay rates, in [0, 1).
        eps: added to the square root, after the bias correction.

    >>> opt = adam(lr=0.1)
    >>> params = {"w": torch.tensor([1.0, -2.0])}
    >>> state = opt.init(params)
    >>> params, state = opt.update({"w": torch.tensor([3.0, -0.5])}, state, params)
    >>> params["w"]  # the first step is lr · sign(g), whatever the gradient's size
    tensor([ 0.9000, -1.9000])

    Raises:
        BadValue: lr is negative, eps is negative, or a decay rate lies outside [0, 1).

    Reference: Kingma & Ba (2015), arXiv:1412.6980. (The paper writes eps both inside and outside the bias correction;
    this is its Algorithm 1, as in `torch.optim.Adam` and `optax.adam`.)
    """
    if not callable(lr) and not (lr := checks.number("lr", lr)) >= 0:
        raise BadValue(f"lr is {lr}: a learning rate is not negative")
    b1, b2, eps = checks.number("b1", b1), checks.number("b2", b2), checks.number("eps", eps)
    if not (0 <= b1 < 1 and 0 <= b2 < 1):
        raise BadValue(f"b1 is {b1} and b2 is {b2}: decay rates lie in [0, 1)")
    if not 0 <= eps < math.inf:
        raise BadValue(f"eps is {eps}: it is not negative, and finite")

    def init(params: Tree) -> AdamState:
        leaves = [checks.tensor("a leaf of params", leaf, floating=True) for leaf in tree.leaves(params)]
        if not leaves:
            raise BadValue("params has no leaves: there is nothing to optimise")
        device = leaves[0].device
        step = torch.zeros((), dtype=torch.int64, device=device)
        return AdamState(step, tree.zeros_like(params), tree.zeros_like(params))

    def update_(grads: Tree, state: AdamState, params: Tree) -> tuple[Tree, AdamState]:
        _checked(state)
        rate = _rate(lr(state.step), state.step) if callable(lr) else lr
        rows = tree.rows(params, grads, state.m, state.v)
        for p, g, m, v in rows:  # before any is written to
            _check_alike(gradient=g, parameter=p, m=m, v=v)
        form = in_one_pass if _fusible(rows, state.step, rate) else as_written
        form(rows, state.step, rate)
        return params, AdamState(state.step + 1, state.m, state.v)

    def as_written(rows: Rows, step: Tensor, rate: Tensor | float) -> None:
        t = (step + 1).double()  # b2^t needs double precision, whatever the parameters' own
        c1, c2 = 1 - b1**t, (1 - b2**t).sqrt()
        # Stacked, so that the compiler keeps the two numbers, and does not work out their powers again for every
        # element of the parameters.
        scale, eps_t = torch.stack((rate * c2 / c1, eps * c2)).unbind()
        for p, g, m, v in rows:
            m.mul_(b1).add_(g, alpha=1 - b1)
            buffer = g * g  # one for all: a fresh one costs as much as the arithmetic
            v.mul_(b2).add_(buffer, alpha=1 - b2)
            p.sub_(buffer.copy_(v).sqrt_().add_(eps_t.to(p)).reciprocal_().mul_(m).mul_(scale.to(p)))

    def in_one_pass(rows: Rows, step: Tensor, rate: Tensor | float) -> None:
        """By torch's kernel, in a third of the time that operations one by one take."""
        p, g, m, v = (list(column) for column in zip(*rows, strict=True))
        steps = [*step.float().repeat(len(rows))]  # it counts up in each
        torch_adam(
            p, g, m, v, [], steps, fused=True, amsgrad=False, maximize=False, weight_decay=0.0,
            lr=rate, beta1=b1, beta2=b2, eps=eps,
        )  # fmt: skip

    def update(grads: Tree, state: AdamState, params: Tree) -> tuple[Tree, AdamState]:
        # Copies that a `vmap` over the gradients has batched, as an update in place needs.
        def copy(t: Tensor, g: Tensor) -> Tensor:
            _check_alike(tensor=t, gradient=g)
            return t + g.new_zeros(())

        m, v, params = (tree.map(copy, old, grads) for old in (*_checked(state)[1:], params))
        return update_(grads, AdamState(state.step, m, v), params)

    return Optimizer(init, update, update_)


def check_optimizer(opt: Optimizer) -> None:
    """Raises BadType unless this is an optimizer."""
    if not isinstance(opt, Optimizer):
        raise BadType(f"opt is {checks.describe(opt)}: it must be an Optimizer, such as optim.adam()")
    for name in ("init", "update"):
        checks.function(f"opt's {name}", getattr(opt, name))


def _fusible(rows: Rows, step: Tensor, rate: Tensor | float) -> bool:
    """Whether torch's kernel can have them: it reads the bytes as they lie, and has no derivative."""
    if torch.compiler.is_compiling() or not rows or step.ndim:
        return False
    if isinstance(rate, Tensor) and (rate.requires_grad or rate.is_cuda):  # there the kernel wants float32
        return False
    wants_graph = torch.is_grad_enabled()
    try:
        return all(
            t.dtype == row[0].dtype
            and t.device == step.device
            and t.device.type in ("cpu", "cuda")
            and t.is_contiguous()
            and not (t.requires_grad and wants_graph)
            and t.data_ptr()
            for row in rows
            for t in row
        )
    except RuntimeError:  # inside of a transform a tensor has no memory of its own
        return False


def _checked(state: AdamState) -> AdamState:
    if not isinstance(state, AdamState):
        raise BadType(f"state is {checks.describe(state)}: it must be what `init` or `update` returned")
    checks.tensor("state.step", state.step)
    return state


def _check_alike(**tensors: Tensor) -> None:
    """Raises unless a gradient, its parameter and its running moments can be added."""
    for name, t in tensors.items():
        checks.tensor(name, t, floating=True)
    first = next(iter(tensors.values()))
    for t in tensors.values():
        if t.shape != first.shape or t.device != first.device:
            told = ", ".join(f"{name} is {list(t.shape)} on {t.device}" for name, t in tensors.items())
            raise BadValue(f"{told}: they must be of one shape, on one device")


def _rate(rate: Tensor | float, step: Tensor) -> Tensor | float:
    """A schedule's learning rate, if it is one."""
    if not isinstance(rate, Tensor):
        return checks.number("the schedule's learning rate", rate)
    if rate.ndim or rate.is_complex() or rate.is_meta != step.is_meta:
        raise BadValue(f"the schedule's learning rate is {checks.describe(rate)}: it must be one number")
    return rate
