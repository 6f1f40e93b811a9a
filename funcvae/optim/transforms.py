"""Transforms of a gradient before an optimizer's update."""

from collections.abc import Callable
from typing import NamedTuple

from funcvae import tree
from funcvae._support import checks
from funcvae._support.checks import Positive
from funcvae._support.pickling import by_call, remembered
from funcvae.optim.protocol import Mask, NotNegative, Optimizer, check_pair, chosen
from funcvae.tree import Tree

__all__ = ["Transform", "add_decayed_weights", "chain", "clip_by_global_norm"]


@by_call
class Transform(NamedTuple):
    """A transform of gradients: two pure functions.

    `init(params)` returns the first state, {} if it needs none, and `update(grads, state, params)` the new (grads,
    state).
    """

    init: Callable[[Tree], Tree]
    """Makes the first state from params."""
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    """Maps (grads, state, params) to the new (grads, state)."""


@remembered
@checks.arguments
def clip_by_global_norm(max_norm: Positive) -> Transform:
    """Scales gradients whose common Euclidean norm is above `max_norm` to this norm: g · min(1, max_norm/|g|).

    As `optax.clip_by_global_norm`. `torch.nn.utils.clip_grad_norm_` adds 1e-6 to |g|. The `grad_norm` that training
    reports is that of the gradient before it is clipped.
    """

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        scale = (max_norm / _norm(grads)).clamp(max=1)
        return tree.map(lambda g: g * scale.to(g), grads), state

    return Transform(_no_state(), update)


@remembered
@checks.arguments
def add_decayed_weights(weight_decay: NotNegative, mask: Mask | None = None) -> Transform:
    """Adds `weight_decay` times the parameters to their gradients: g + weight_decay · p.

    As `optax.add_decayed_weights`. Before `sgd` or `adam` it is torch's `weight_decay`, the gradient of an L2 penalty;
    the decoupled weight decay is that of `adamw`.

    Args:
        mask: chooses the parameters that decay, by their paths in the tree, as in
            `lambda path: not path.endswith("bias")`. By default, all decay.
    """

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        rows = zip(tree.rows(params, grads), chosen(mask, params), strict=True)
        return _like([g + weight_decay * p if decays else g for (p, g), decays in rows], params), state

    return Transform(_no_state(), update)


@remembered
def chain(*parts: Transform | Optimizer) -> Optimizer:
    """An optimizer that first transforms the gradients: `chain(transform, …, optimizer)`, applied from left to right.

    Its state is the tuple of the states of all parts.

    >>> opt = chain(clip_by_global_norm(1.0), adamw(1e-3))

    Raises:
        BadType: the last part is not an Optimizer, or another one is not a Transform.
    """
    *transforms, optimizer = parts or (None,)
    for transform in transforms:
        checks.instance("a part of chain before the last", transform, Transform)
    opt = checks.instance("the last part of chain", optimizer, Optimizer)

    def init(params: Tree) -> tuple[Tree, ...]:
        return tuple([part.init(params) for part in parts])

    def after_transforms(update_last: Callable[..., tuple[Tree, Tree]]) -> Callable[..., tuple[Tree, Tree]]:
        def update(grads: Tree, state: tuple[Tree, ...], params: Tree) -> tuple[Tree, tuple[Tree, ...]]:
            *states, last = state
            new = []
            for transform, old in zip(transforms, states, strict=True):
                found = transform.update(grads, old, params)
                grads, changed = check_pair("update of a Transform", found, "(grads, state)")
                new.append(changed)
            params, changed = update_last(grads, last, params)
            return params, (*new, changed)

        return update

    update_ = None if opt.update_ is None else after_transforms(opt.update_)
    return Optimizer(init, after_transforms(opt.update), update_)


def _no_state() -> Callable[[Tree], Tree]:
    return lambda params: {}  # a new function each time, because `remembered` marks it


_norm, _like = checks.unchecked(tree.norm), checks.unchecked(tree.like)
