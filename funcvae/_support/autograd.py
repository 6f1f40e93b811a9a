"""The vector-Jacobian product, by plain autograd where no transform is needed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcvae import tree
from funcvae.tree import Tree

Pull = Callable[..., tuple[Tree, ...]]
"""Maps (cotangent, retain_graph=True) to one tree for each argument; the graph serves for another cotangent."""


def vjp(f: Callable[..., Any], *primals: Tree, has_aux: bool = False) -> tuple[Any, ...]:
    """Computes f(*primals) and a function that pulls back its cotangents to the primals, as `torch.func.vjp` does.

    Under `torch.no_grad`, outside of transforms and compiled code (as in an eager training step), it uses plain
    autograd with the same formulas: a small operation then takes half the time.

    Returns (value, pull), or (value, pull, aux) if f also returns aux, a tree that is not differentiated;
    `pull(cotangent, retain_graph=True)` is a tuple of trees like the primals.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_inference_mode_enabled():
        return torch.func.vjp(f, *primals, has_aux=has_aux)
    leaves, kind = tree.flatten(primals)
    if not leaves:
        return torch.func.vjp(f, *primals, has_aux=has_aux)
    try:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    except RuntimeError:  # raised inside of a transform
        return torch.func.vjp(f, *primals, has_aux=has_aux)
    with torch.enable_grad():
        out = f(*kind.unflatten(leaves))
    value, aux = out if has_aux else (out, ())
    outputs = tree.leaves(value)

    def pull(cotangent: Tree, retain_graph: bool = True) -> tuple[Tree, ...]:
        pairs = [(y, c) for y, c in zip(outputs, tree.leaves(cotangent), strict=True) if y.requires_grad]
        if not pairs:
            return kind.unflatten([torch.zeros_like(leaf) for leaf in leaves])
        ys, cs = zip(*pairs, strict=True)
        with torch.enable_grad():
            loss = _WithGradients.apply(cs, *ys)
        return kind.unflatten(torch.autograd.grad(loss, leaves, retain_graph=retain_graph, materialize_grads=True))

    value, aux = tree.map(torch.Tensor.detach, (value, aux))
    return (value, pull, aux) if has_aux else (value, pull)


class _WithGradients(torch.autograd.Function):
    """A scalar whose gradients with respect to the ys are the cs; its value is not computed.

    `torch.autograd.grad` with `grad_outputs` takes as long, but imports SymPy, which delays the first step by half a
    second.
    """

    @staticmethod
    def forward(ctx: Any, cs: tuple[Tensor, ...], *ys: Tensor) -> Tensor:
        ctx.cs = cs  # a `setup_context` of its own would take 30 µs more
        return ys[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        return None, *ctx.cs
