"""Adam and AdamW."""

from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam as torch_adam

from funcvae import tree
from funcvae._support import checks
from funcvae._support.checks import Only
from funcvae._support.pickling import remembered
from funcvae._support.reprs import short_repr
from funcvae.errors import BadValue
from funcvae.optim.protocol import Mask, NotNegative, Optimizer, Rate, chosen, first_step, on_copies, rate_at
from funcvae.optim.schedules import Schedule
from funcvae.tree import Tree

__all__ = ["AdamState", "adam", "adamw"]

Rows = list[tuple[Tensor, ...]]  # each parameter with its gradient, m and v


@short_repr
class AdamState(NamedTuple):
    """The state of `adam` and `adamw`, whose trees are like params."""

    step: Tensor
    """The number of updates made, an int64 tensor without axes."""
    m: Tree
    """The running mean of the gradient."""
    v: Tree
    """The running mean of its square."""


def _betas(name: str, value: Any) -> tuple[float, float]:
    pair = tuple(checks.numbers(name, value))
    if len(pair) != 2 or not all(0 <= beta < 1 for beta in pair):
        raise BadValue(f"{name} is {checks.describe(pair)}: it must be two decay rates in [0, 1)")
    return pair


Betas = Annotated[tuple[float, float], Only(_betas)]  # two decay rates in [0, 1)


@remembered
@checks.arguments
def adam(lr: Rate = 1e-3, betas: Betas = (0.9, 0.999), eps: NotNegative = 1e-8) -> Optimizer:
    """Adam, equal to `torch.optim.Adam` to rounding.

    With gradient g_t at step t = 1, 2, … and betas (b1, b2):

        m_t = b1 m_{t-1} + (1 - b1) g_t
        v_t = b2 v_{t-1} + (1 - b2) g_t²
        p_t = p_{t-1} - lr · m_t/(1 - b1^t) / ( √(v_t/(1 - b2^t)) + eps )
            = p_{t-1} - scale · m_t / ( √v_t + eps_t ),   eps_t = eps · c_2,  scale = lr · c_2/c_1

    with c_1 = 1 - b1^t and c_2 = √(1 - b2^t). The second form reads v_t once less; compiled and transformed code uses
    it. Eager code uses torch's fused kernel, which has the first form, if all tensors are contiguous. The two are equal
    to rounding.

    Args:
        lr: a number, or a schedule `step -> lr`, where step is the number of updates already made (0 at the first), an
            int64 tensor without axes. (`0.9**step` is float32: write `0.9 ** step.double()`.)
        eps: added to the square root, after the bias correction.

    >>> opt = adam(lr=0.1)
    >>> params = {"w": torch.tensor([1.0, -2.0])}
    >>> state = opt.init(params)
    >>> params, state = opt.update({"w": torch.tensor([3.0, -0.5])}, state, params)
    >>> params["w"]  # the first step is lr · sign(g)
    tensor([ 0.9000, -1.9000])

    Raises:
        BadValue: lr or eps is negative, or a decay rate lies outside [0, 1); or, from `init`, params has no leaves; or,
            from `update`, the trees have different structures or shapes.

    Reference: Kingma & Ba (2015), arXiv:1412.6980, Algorithm 1, as in `torch.optim.Adam` and `optax.adam`. (The paper
    also describes a variant with eps inside the bias correction.)
    """
    return _adam(lr, betas, eps, 0.0, None)


@remembered
@checks.arguments
def adamw(
    lr: Rate = 1e-3,
    betas: Betas = (0.9, 0.999),
    eps: NotNegative = 1e-8,
    weight_decay: NotNegative = 0.01,
    mask: Mask | None = None,
) -> Optimizer:
    """Adam with decoupled weight decay, equal to `torch.optim.AdamW` to rounding.

        p_t = (1 - lr · weight_decay) p_{t-1} - Adam's step

    Args:
        mask: chooses the parameters that decay, by their paths in the tree, as in
            `lambda path: not path.endswith("bias")`. By default, all decay.

    The other arguments, the state and the errors are those of `adam`.

    Reference: Loshchilov & Hutter (2019), arXiv:1711.05101.
    """
    return _adam(lr, betas, eps, weight_decay, mask)


def _adam(
    lr: float | Schedule, betas: tuple[float, float], eps: float, weight_decay: float, mask: Mask | None
) -> Optimizer:
    b1, b2 = betas

    def init(params: Tree) -> AdamState:
        return AdamState(first_step(params), tree.zeros_like(params), tree.zeros_like(params))

    def update_(grads: Tree, state: AdamState, params: Tree) -> tuple[Tree, AdamState]:
        rate = rate_at(lr, state.step)
        rows = tree.rows(params, grads, state.m, state.v)
        decays = chosen(mask, params) if weight_decay else [False] * len(rows)
        decayed = [p for (p, *_), yes in zip(rows, decays, strict=True) if yes]
        form = in_one_pass if _fusible(rows, state.step, rate) else as_written
        form(rows, decayed, state.step, rate)
        return params, AdamState(state.step + 1, state.m, state.v)

    def as_written(rows: Rows, decayed: list[Tensor], step: Tensor, rate: Tensor | float) -> None:
        t = (step + 1).double()  # b2^t needs double precision, also for float32 parameters
        rate = rate * torch.ones_like(t)
        c1, c2 = 1 - b1**t, (1 - b2**t).sqrt()
        # Stacked, so that the compiler computes these numbers once and not again for every element of the parameters.
        scale, eps_t, kept = torch.stack((rate * c2 / c1, eps * c2, 1 - rate * weight_decay)).unbind()
        for p in decayed:
            p.mul_(kept.to(p))
        for p, g, m, v in rows:
            m.mul_(b1).add_(g, alpha=1 - b1)
            buffer = g * g  # reused: allocating another one costs as much as the arithmetic
            v.mul_(b2).add_(buffer, alpha=1 - b2)
            p.sub_(buffer.copy_(v).sqrt_().add_(eps_t.to(p)).reciprocal_().mul_(m).mul_(scale.to(p)))

    def in_one_pass(rows: Rows, decayed: list[Tensor], step: Tensor, rate: Tensor | float) -> None:
        """Updates with torch's fused kernel, in a third of the time of single operations."""
        for p in decayed:
            p.mul_(1 - rate * weight_decay)
        ps, gs, ms, vs = (list(column) for column in zip(*rows, strict=True))
        steps = [*step.float().repeat(len(rows))]  # the kernel increments each
        torch_adam(
            ps, gs, ms, vs, [], steps, fused=True, amsgrad=False, maximize=False, weight_decay=0.0,
            lr=rate, beta1=b1, beta2=b2, eps=eps,
        )  # fmt: skip

    return Optimizer(init, on_copies(update_, AdamState), update_)


def _fusible(rows: Rows, step: Tensor, rate: Tensor | float) -> bool:
    """Whether torch's fused kernel can update these: it needs contiguous memory, and has no derivative."""
    if torch.compiler.is_compiling() or not rows or step.ndim:
        return False
    if isinstance(rate, Tensor) and (rate.requires_grad or rate.is_cuda):  # the CUDA kernel needs float32
        return False
    wants_graph = torch.is_grad_enabled()
    try:
        return step.device.type in ("cpu", "cuda") and all(
            (t.shape, t.dtype, t.device) == (row[0].shape, row[0].dtype, step.device)
            and t.is_contiguous()
            and not (t.requires_grad and wants_graph)
            and t.data_ptr()
            for row in rows
            for t in row
        )
    except RuntimeError:  # a tensor in a transform has no memory of its own
        return False
