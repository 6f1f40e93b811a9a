"""Estimators put to use: several in one forward pass, or one as a scalar loss."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae.errors import BadType
from funcvae.estimators.engine import forward
from funcvae.estimators.types import Estimate, GradientEstimator, check_arguments, check_estimator, checked_estimate
from funcvae.model import VAE, check_trained
from funcvae.modules import Params, State

__all__ = ["Loss", "surrogate", "together"]


def together(
    estimators: Sequence[GradientEstimator],
    model: VAE,
    params: Params,
    state: State,
    x: Tensor,
    eps: Tensor,
    *,
    train: bool,
) -> list[Estimate]:
    """What each estimator gives for the same noise, in one forward pass for all that can share one.

    Those made by `weighted` share it, but for those with two pulls; the others, and other functions, run by
    themselves. The numbers are those of separate calls.
    """
    check_arguments(model, params, state, x, eps)
    if not isinstance(estimators, Iterable) or isinstance(estimators, Tensor):
        raise BadType(f"estimators is {checks.describe(estimators)}: it must be several, in a list or tuple")
    estimators = list(estimators)
    for estimator in estimators:
        check_estimator("an estimator", estimator)
    shared = [getattr(estimator, "_from_pass", None) for estimator in estimators]
    last = max((i for i, from_pass in enumerate(shared) if from_pass), default=-1)
    passed = forward(model, params, state, x, eps, train) if last >= 0 else None
    return [
        from_pass(passed, retain_graph=i < last)
        if from_pass
        else checked_estimate(estimator(model, params, state, x, eps, train=train))
        for i, (from_pass, estimator) in enumerate(zip(shared, estimators, strict=True))
    ]


class Loss(Protocol):
    """A scalar loss of an estimator's arguments."""

    def __call__(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, *, train: bool) -> Tensor:
        """Minus the batch mean of the target bound, in nats."""
        ...


def surrogate(estimator: GradientEstimator) -> Loss:
    """A scalar loss whose first gradient in params is the estimator's `grads`: a bridge to any other optimiser.

    Takes the estimator's arguments. Its value is minus the batch mean of the target bound, in nats. Only the first
    derivative, and only in params, means anything: the gradient enters as a constant slope, so higher derivatives are
    zero. To differentiate a bound itself, at will, use `funcvae.bounds` on the log-weights.
    """

    check_estimator("estimator", estimator)

    def loss(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, *, train: bool) -> Tensor:
        check_trained(model, params, state)
        here = tree.map(torch.Tensor.detach, params)
        out = checked_estimate(estimator(model, here, state, x, eps, train=train))
        rise = tree.map(lambda g, p, p_here: (g * (p - p_here)).sum(), out.grads, params, here)
        return sum(tree.leaves(rise)) - out.bound.mean()

    return loss
