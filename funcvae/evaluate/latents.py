"""How a model uses its latents: active units, and the KL divergence of each dimension."""

from typing import NamedTuple

import torch
from torch import Tensor

from funcvae._support import checks, examples
from funcvae._support.checks import Count, Finite
from funcvae._support.examples import Data
from funcvae._support.reprs import short_repr
from funcvae.distributions import Delta, kl
from funcvae.errors import BadData, BadType
from funcvae.evaluate.weights import check_item_values
from funcvae.model import VAE, check_data
from funcvae.modules import Params, State

__all__ = ["ActiveUnits", "active_units", "kl_per_dimension"]


@short_repr
class ActiveUnits(NamedTuple):
    """How much the posterior mean of each latent varies over the data."""

    variance: Tensor
    """Var_x E_q(z|x)[z] of each latent [Z]."""
    threshold: float

    @property
    def active(self) -> Tensor:
        """Whether the variance of each latent [Z] is above the threshold."""
        return self.variance > self.threshold

    @property
    def number(self) -> int:
        """The number of active units."""
        return int(self.active.sum())


@checks.arguments
@torch.no_grad()
def active_units(
    model: VAE, params: Params, state: State, x: Data, *, threshold: Finite = 0.01, batch: Count = 500
) -> ActiveUnits:
    """The latents that the model uses: the variance of their posterior mean over the data is above the threshold.

        A_u = Var_x( E_q(z|x)[z_u] ) > 0.01

    The mean of a discrete latent is its probability of being 1, so the variance is at most 1/4. A relaxed posterior
    approximates its mean.

    Args:
        x: data [n, ...] as the model sees them, n >= 2.
        batch: number of data encoded at a time.

    Raises:
        BadData: there are fewer than two data.

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519, section 5.
    """
    check_data(model, params, state, x)
    model = model.unchecked()
    if examples.count(x) < 2:
        raise BadData("x has one item: a variance needs at least two")
    means = torch.cat([model.encode(params, state, part)[0].mean for part in examples.split(x, batch)])
    check_item_values("latents", means.isfinite().all(1))
    return ActiveUnits(means.double().var(0), threshold)


@checks.arguments
@torch.no_grad()
def kl_per_dimension(model: VAE, params: Params, state: State, x: Data, *, batch: Count = 500) -> Tensor:
    """KL(q(z_u|x) ‖ p(z_u)) of each latent u in closed form, averaged over the data: [Z], in nats.

    For a FullNormal posterior or prior, these are the terms of the chain rule, `KL(q(z_u|x, z_<u) ‖ p(z_u|z_<u))`,
    which depend on the order of the latents. The latents of a categorical variable share its KL as in
    `funcvae.distributions.kl`. In each case the terms sum to KL(q(z|x) ‖ p(z)).

    Raises:
        BadType: no closed form is known for this posterior and prior, or the posterior has no density.
    """
    check_data(model, params, state, x)
    model = model.unchecked()
    rows = []
    for part in examples.split(x, batch):
        q, _ = model.encode(params, state, part)
        if isinstance(q, Delta):
            raise BadType("the posterior is a Delta, which has no density: its KL is not defined")
        rows.append(kl(q, model.prior(params, state, q.loc, **model.given(part))[0]).double())
    each = torch.cat(rows)
    check_item_values("KLs", each.isfinite().all(1))
    return each.mean(0)
