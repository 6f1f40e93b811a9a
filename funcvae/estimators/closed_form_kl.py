"""Estimators of the ELBO with the KL divergence in closed form."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcvae import bounds
from funcvae._support import checks
from funcvae._support.autograd import vjp
from funcvae._support.examples import Data
from funcvae.distributions import Delta, kl
from funcvae.estimators.engine import scale_tree, share_of_state
from funcvae.estimators.types import SAMPLES, Claims, Estimate, Estimator, Parts
from funcvae.model import VAE, joint, log_prob
from funcvae.modules import Params, State

__all__ = ["Penalty", "analytic_kl", "floored", "scaled"]


Penalty = Callable[[Tensor], Tensor]
"""Maps the KL [..., B, Z] of each latent, in nats, to the term [..., B] to subtract from the bound."""


def analytic_kl(name: str, penalty: Penalty, claims: Claims) -> Estimator:
    """The total derivative of mean_k log p(x|z_k) - penalty(KL(q(z|x) ‖ p(z)))."""

    def forward(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> tuple[Any, ...]:
        q, state = model.encode(params, state, x, train)
        z = q.sample(eps)
        log_p_x, p_z, state = joint(model, params, state, x, z, train)
        each_kl = kl(q, p_z)
        kl_q_p = each_kl.sum(-1)
        return log_p_x - penalty(each_kl), log_p_x, kl_q_p, q, p_z, z, state

    def estimate(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Estimate:
        def loss(params: Params) -> Any:
            each, *rest = forward(model, params, state, x, eps, train)
            return -each.mean(0).mean(), (_elbo(each), *rest)

        value, pull, (bound, log_p_x, kl_q_p, q, p_z, z, new_state) = vjp(loss, params, has_aux=True)
        (grads,) = pull(torch.ones_like(value), retain_graph=False)
        log_w = log_p_x if isinstance(q, Delta) else log_p_x + log_prob(p_z, z) - log_prob(q, z)
        return Estimate(grads, bound, log_w, new_state, log_p_x.mean(0), kl_q_p.expand_as(log_p_x).mean(0))

    def evaluate(model: VAE, params: Params, state: State, x: Data, eps: Tensor) -> Tensor:
        return _elbo(forward(model, params, state, x, eps, False)[0])

    def share(
        model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool, samples: int, *w: Tensor
    ) -> Estimate:
        out = estimate(model, params, state, x, eps, train)
        weight = len(eps) / samples
        grads, *values = scale_tree((out.grads, out.bound, out.reconstruction, out.kl), weight)
        return Estimate(grads, values[0], out.log_w, share_of_state(model, out.state, state, weight), *values[1:])

    def bound(model: VAE, params: Params, state: State, x: Data, eps: Tensor, samples: int) -> Tensor:
        return evaluate(model, params, state, x, eps) * (len(eps) / samples)

    return Estimator(name, claims, None, estimate, evaluate, SAMPLES, _parts=Parts(share, bound=bound))


def scaled(beta: float | Tensor) -> Penalty:
    """beta times the KL."""
    return lambda kl: beta * kl.sum(-1)


def floored(least: float | Tensor) -> Penalty:
    """The KL, with `least` in place of that of each latent whose mean over the batch is below `least`."""

    def penalty(kl: Tensor) -> Tensor:
        mean = kl.mean(-2, keepdim=True)
        return torch.where(mean > least, kl, least).sum(-1)

    return penalty


_elbo = checks.unchecked(bounds.elbo)
