"""The gradient of the ELBO with a quadratic control variate."""

from typing import Any

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae._support.autograd import vjp
from funcvae._support.checks import Finite
from funcvae._support.pickling import remembered
from funcvae.distributions import Normal
from funcvae.errors import BadValue
from funcvae.estimators.engine import add_trees
from funcvae.estimators.table import elbo_mc
from funcvae.estimators.types import Claims, Estimate, Estimator
from funcvae.model import VAE, log_p_x_given_z, log_prob
from funcvae.modules import Params, State

__all__ = ["quadratic_cv"]


@remembered
@checks.arguments
def quadratic_cv(gamma: Finite) -> Estimator:
    """`elbo_mc` minus γ times a control variate: the Taylor polynomial b(z) of log p(x, z) at the mean μ of a Normal q.

        mean_k ∇[log w_k - γ (b(z_k) - E_q b)], b(z) = g·(z-μ) + ½ (z-μ)·H(z-μ), E_q b = ½ Σ_i σ_i² H_ii at μ

    The gradient g [Z] and the Hessian H [Z, Z] of log p(x, z) at μ are held constant, one pair for each datum. With a
    Normal q the term -log q(z_k|x) of `elbo_mc` does not add variance. So if log p(x, z) is quadratic in z, the
    variance of the encoder's gradient is (1-γ)² times that of `elbo_mc`, and zero at γ = 1. The gradient of decoder and
    prior is that of `elbo_mc`. Unbiased for every γ. H takes Z further decodes for each datum, whatever the number of
    samples, and is computed again for each chunk of samples. (Miller et al. approximate its diagonal instead.)

    Raises:
        BadValue: gamma is not finite; or, from the estimator, the posterior is not a Normal.

    References: Miller, Foti, D'Amour & Adams (2017), arXiv:1705.07880; Geffner & Domke (2020), arXiv:2007.14634.
    """
    base = elbo_mc()

    def control(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool, part: float) -> Params:
        """The gradient to descend in the encoder's parameters of -γ mean_k (b(z_k) - E_q b), times a part."""

        def mean(phi: Params) -> Any:
            q, new = model.encode({**params, "encoder": phi}, state, x, train)
            if not isinstance(q, Normal):
                raise BadValue(
                    f"quadratic_cv requires a Normal posterior, and this is a {type(q).__name__}: use elbo_mc, or rloo "
                    "if its samples are not reparameterised"
                )
            center = q.loc.detach()
            g, h = _derivatives(model, params, new, x, center, train)
            d = q.sample(eps) - center
            b = (g * d).sum(-1) + 0.5 * torch.einsum("nbi,ibj,nbj->nb", d, h, d)
            m = q.loc - center
            expected = (g * m).sum(-1) + 0.5 * torch.einsum("bi,ibj,bj->b", m, h, m)
            expected = expected + 0.5 * (q.sigma**2 * h.diagonal(dim1=0, dim2=2)).sum(-1)
            return (b - expected).mean()

        value, pull = vjp(mean, params["encoder"])
        (grads,) = pull(torch.full_like(value, gamma * part), retain_graph=False)
        return grads

    def controlled(out: Estimate, *args: Any) -> Estimate:
        return out._replace(grads={**out.grads, "encoder": add_trees(out.grads["encoder"], control(*args))})

    def estimate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Estimate:
        args = (model, params, state, x, eps, train)
        return controlled(base.estimate(*args), *args, 1)

    def share(
        model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool, samples: int, *w: Tensor
    ) -> Estimate:
        args = (model, params, state, x, eps, train)
        return controlled(base.parts.share(*args, samples, *w), *args, len(eps) / samples)

    name = f"quadratic_cv:{str(gamma).removesuffix('.0')}"
    claims = Claims("ELBO", True, True, ("arXiv:1705.07880", "arXiv:2007.14634"), "normal", note="Normal posterior")
    return Estimator(name, claims, None, estimate, base.evaluate, _parts=base.parts._replace(share=share))


def _derivatives(model: VAE, params: Params, state: State, x: Tensor, z: Tensor, train: bool) -> tuple[Tensor, Tensor]:
    """Gradient [B, Z] and Hessians [Z, B, Z] of log p(x, z) at z [B, Z]; examples must not depend on one another."""

    def log_joint(z: Tensor) -> Tensor:
        p_x, new = model.decode(params, state, z, train)
        p_z, _ = model.prior(params, new, z, train)
        return (log_p_x_given_z(p_x, x) + log_prob(p_z, z)).sum()

    axes = z.shape[-1]
    each_axis = torch.eye(axes, dtype=z.dtype, device=z.device).unsqueeze(1).expand(-1, *z.shape)
    gradients, pull = vjp(torch.func.grad(log_joint), z.expand(axes, *z.shape))
    return gradients[0].detach(), pull(each_axis)[0].detach()
