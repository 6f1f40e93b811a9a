"""Several estimators in one forward pass, and an estimator as a scalar loss."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae._support.examples import Data
from funcvae.estimators.engine import forward
from funcvae.estimators.types import (
    MODEL,
    Estimate,
    Estimator,
    GradientEstimator,
    Pass,
    check_arguments,
    check_estimator,
    with_posterior_of,
)
from funcvae.model import VAE, unchanged
from funcvae.modules import Params, State

__all__ = ["Loss", "surrogate", "together"]


def _check_together(
    estimators: Sequence[GradientEstimator], model: VAE, params: Params, state: State, x: Data, eps: Tensor,
    *, train: bool,
) -> None:  # fmt: skip
    check_arguments(model, params, state, x, eps, train=train)
    for estimator in checks.sequence("estimators", estimators):
        check_estimator("an estimator", estimator)


@checks.after(_check_together)
def together(
    estimators: Sequence[GradientEstimator], model: VAE, params: Params, state: State, x: Data, eps: Tensor,
    *, train: bool,
) -> list[Estimate]:  # fmt: skip
    """Calls several estimators on the same noise, with one forward pass for all that can share it.

    Estimators from `weighted` share the pass, except those with two pulls, and so do those that evaluate the model at
    the same `Points`. All others run separately. The results are those of separate calls.
    """
    model = with_posterior_of(model.unchecked(), *estimators)
    shared = [getattr(estimator, "from_pass", None) for estimator in estimators]
    points: list[Any] = [getattr(estimator, "points", None) for estimator in estimators]
    passes: dict[int, Pass] = {}
    estimates = []
    for i, (from_pass, estimator) in enumerate(zip(shared, estimators, strict=True)):
        if from_pass is None:
            estimates.append(_estimate(estimator, model, params, state, x, eps, train))
            continue
        same = [j for j in range(len(points)) if shared[j] and points[j] is points[i]]
        if i == same[0]:
            passes[i] = forward(model, params, state, x, eps, train, points[i])
        estimates.append(from_pass(passes[same[0]], retain_graph=i < same[-1]))
    return estimates


def _estimate(
    estimator: GradientEstimator, model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool
) -> Estimate:
    if isinstance(estimator, Estimator):
        return estimator.estimate(model, params, state, x, eps, train)
    return checks.instance(
        "the result of the estimator", estimator(model, params, state, x, eps, train=train), Estimate
    )


class Loss(Protocol):
    """A scalar loss of an estimator's arguments."""

    def __call__(self, model: VAE, params: Params, state: State, x: Data, eps: Tensor, *, train: bool) -> Tensor:
        """The loss: minus the batch mean of the target bound, in nats."""
        ...


def surrogate(estimator: GradientEstimator) -> Loss:
    """Makes a scalar loss whose gradient in params is the estimator's `grads`, for use with any optimizer.

    The loss takes the arguments of the estimator. Its value is minus the batch mean of the target bound, in nats. Only
    its first derivative in params is meaningful: the gradient enters as a constant slope, so higher derivatives are
    zero. To differentiate a bound itself, use `funcvae.bounds` on the log-weights.
    """
    check_estimator("estimator", estimator)

    @checks.after(check_arguments)
    def loss(model: VAE, params: Params, state: State, x: Data, eps: Tensor, *, train: bool) -> Tensor:
        here = tree.map(torch.Tensor.detach, params)
        model = with_posterior_of(model.unchecked(), estimator)
        out = unchanged(MODEL, lambda x, eps: _estimate(estimator, model, here, state, x, eps, train), x, eps)
        rise = tree.map(lambda g, p, p_here: (g * (p - p_here)).sum(), out.grads, params, here)
        return sum(tree.leaves(rise)) - out.bound.mean()

    return loss
