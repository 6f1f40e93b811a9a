"""The gradient of the ELBO with a quadratic control variate."""

from typing import Any

import torch
from torch import Tensor

from funcvae import tree
from funcvae._support import checks
from funcvae._support.autograd import vjp
from funcvae._support.checks import Finite
from funcvae._support.examples import Data
from funcvae._support.pickling import remembered
from funcvae.batching import from_sample
from funcvae.distributions import FullNormal, Normal
from funcvae.errors import BadValue
from funcvae.estimators.engine import add_trees
from funcvae.estimators.table import elbo_mc
from funcvae.estimators.types import Claims, Estimate, Estimator, spell
from funcvae.model import VAE, joint, log_prob
from funcvae.modules import Params, State

__all__ = ["quadratic_cv"]


@remembered
@checks.arguments
def quadratic_cv(gamma: Finite) -> Estimator:
    """`elbo_mc` with the Taylor polynomial b(z) of log p(x, z) at the mean μ of a normal q as a control variate.

        mean_k ∇[log w_k - γ (b(z_k) - E_q b)], b(z) = g·(z-μ) + ½ (z-μ)·H(z-μ), E_q b = ½ tr(H Cov z) at μ

    The gradient g and the Hessian H of log p(x, z) at μ are held constant, one pair for each datum. Since q is normal,
    the term -log q(z_k|x) of `elbo_mc` adds no variance. So if log p(x, z) is quadratic in z, the variance of the
    encoder's gradient is (1-γ)² times that of `elbo_mc`. The gradient of decoder and prior is that of `elbo_mc`.
    Unbiased for every γ. H takes Z further decodes for each datum, whatever the number of samples, and is computed
    again for each chunk of samples. (Miller et al. approximate its diagonal instead.)

    Raises:
        BadValue: gamma is not finite; or, from the estimator, the posterior is not a Normal or FullNormal.

    References: Miller, Foti, D'Amour & Adams (2017), arXiv:1705.07880; Geffner & Domke (2020), arXiv:2007.14634.
    """
    base = elbo_mc()

    def control(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Params:
        """The gradient of mean_k b(z_k) - E_q b in the encoder's parameters."""

        def mean(phi: Params) -> Any:
            q, new = model.encode({**params, "encoder": phi}, state, x, train)
            if not isinstance(q, Normal | FullNormal):
                raise BadValue(
                    f"quadratic_cv requires a Normal or FullNormal posterior, and this is a {type(q).__name__}: use "
                    "elbo_mc, or rloo if its samples are not reparameterised"
                )
            center = q.loc.detach()
            g, h = _derivatives(model, params, from_sample(new, 0), x, center, train)  # the same in every chunk

            def squares(d: Tensor) -> Tensor:
                """½ d·Hd [N, B]."""
                return 0.5 * torch.einsum("nbi,ibj,nbj->nb", d, h, d)

            # z - loc = L eps, and tr(H Cov z) = tr(H L Lᵀ) is a sum over the columns of L.
            columns, d = q.sample(_each_axis(center)) - q.loc, q.sample(eps) - center
            b = (g * d).sum(-1) + squares(d)
            expected = (g * (q.loc - center)).sum(-1) + squares(columns).sum(0)  # to first order in loc - μ, which is 0
            return (b - expected).mean()

        value, pull = vjp(mean, params["encoder"])
        return pull(torch.ones_like(value), retain_graph=False)[0]

    def controlled(out: Estimate, part: float, *args: Any) -> Estimate:
        """An estimate with the control variate on a part of the samples."""
        change = tree.map(lambda g: gamma * part * g, control(*args))
        return out._replace(grads={**out.grads, "encoder": add_trees(out.grads["encoder"], change)})

    def estimate(*args: Any) -> Estimate:
        return controlled(base.estimate(*args), 1, *args)

    def share(
        model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool, samples: int, *w: Tensor
    ) -> Estimate:
        args = (model, params, state, x, eps, train)
        return controlled(base.parts.share(*args, samples, *w), len(eps) / samples, *args)

    claims = Claims("ELBO", True, True, ("arXiv:1705.07880", "arXiv:2007.14634"), "normal", note="normal posterior")
    return Estimator(
        spell("quadratic_cv", gamma), claims, None, estimate, base.evaluate, _parts=base.parts._replace(share=share)
    )


def _derivatives(model: VAE, params: Params, state: State, x: Data, z: Tensor, train: bool) -> tuple[Tensor, Tensor]:
    """Gradient [B, Z] and Hessians [Z, B, Z] of log p(x, z) at z [B, Z]; examples must not depend on one another."""

    def log_joint(z: Tensor) -> Tensor:
        log_p_x, p_z, _ = joint(model, params, state, x, z, train)
        return (log_p_x + log_prob(p_z, z)).sum()

    each_axis = _each_axis(z)
    gradients, pull = vjp(torch.func.grad(log_joint), z.expand_as(each_axis))
    return gradients[0].detach(), pull(each_axis)[0].detach()


def _each_axis(z: Tensor) -> Tensor:
    """The unit vectors [Z, B, Z] for each z [B, Z]."""
    return torch.eye(z.shape[-1], dtype=z.dtype, device=z.device).unsqueeze(1).expand(-1, *z.shape)
