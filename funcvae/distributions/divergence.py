"""The Kullback-Leibler divergence in closed form."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from funcvae.distributions.discrete import Bernoulli, Categorical
from funcvae.distributions.normal import Delta, FullNormal, Normal, SignedNormal
from funcvae.distributions.relaxed import RelaxedBernoulli, RelaxedCategorical
from funcvae.distributions.types import Distribution
from funcvae.errors import BadType, BadValue

__all__ = ["kl"]


def kl(q: Distribution, p: Distribution) -> Tensor:
    """KL(q ‖ p) in closed form, elementwise, in nats.

    For normals it is ½ (r² + d² - 1) - log r, with r = σ_q/σ_p and d = (μ_q - μ_p)/σ_p. For a SignedNormal q, only the
    logarithm uses the variance σ_q² + 1e-8: ½ (r² + d² - 1 - log((σ_q² + 1e-8)/σ_p²)), which is not exactly zero at
    r = 1. For Bernoullis it is p_q log(p_q/p_p) + (1 - p_q) log((1 - p_q)/(1 - p_p)). For a class of a categorical
    variable it is p_q log(p_q/p_p) - p_q + p_p: these terms are not negative, and add up to the KL of the variable. For
    a Delta q it is zero, because an autoencoder's loss has no such term.

    If q or p is a FullNormal, element i is the mean over q of `KL(q(z_i|z_<i) ‖ p(z_i|z_<i))`. By the chain rule they
    sum to KL(q ‖ p). With M = L_p⁻¹ L_q and d = L_p⁻¹ (μ_q - μ_p), it is ½ (sum_j M_ij² + d_i² - 1) - log M_ii.

    Raises:
        BadType: no closed form is known for this pair.
        BadValue: the categorical variables of q and p differ in their number or classes.
    """
    match q, p:
        case Normal(), Normal():
            r, d = q.sigma / p.sigma, (q.loc - p.loc) / p.sigma
            return 0.5 * (r * r + d * d - 1) - r.log()
        case SignedNormal(), Normal():
            r, d = q.sigma / p.sigma, (q.loc - p.loc) / p.sigma
            return 0.5 * (r * r + d * d - 1 - (q.variance / p.sigma**2).log())
        case Bernoulli(), Bernoulli():
            a, c = q.logits, p.logits
            one, zero = logsigmoid(a) - logsigmoid(c), logsigmoid(-a) - logsigmoid(-c)
            return a.sigmoid() * one + (-a).sigmoid() * zero
        case Categorical(), Categorical():
            if q.logits.shape[-2:] != p.logits.shape[-2:]:
                shapes = f"{list(q.logits.shape[-2:])} and {list(p.logits.shape[-2:])}"
                raise BadValue(f"q and p have {shapes} variables and classes: they must be equal")
            log_q, log_p = q.logits.log_softmax(-1), p.logits.log_softmax(-1)
            return (log_q.exp() * (log_q - log_p - 1) + log_p.exp()).flatten(-2)
        case Normal() | FullNormal(), Normal() | FullNormal():
            m, d = _whitened(p, _scale(q)), _whitened(p, (q.loc - p.loc).unsqueeze(-1)).squeeze(-1)
            i = torch.arange(m.shape[-1], device=m.device)  # under torch.compile, Tensor.diagonal warns
            return 0.5 * (m.square().sum(-1) + d * d - 1) - m[..., i, i].log()
        case Delta(), _:
            return torch.zeros_like(q.loc)
        case ((RelaxedBernoulli() | RelaxedCategorical()), (Bernoulli() | Categorical())):
            raise BadType(
                f"a {type(q).__name__} posterior needs a prior with a density: use priors.concrete and elbo_mc"
            )
        case _:
            pair = f"{type(q).__name__} and {type(p).__name__}"
            such = "elbo_mc" if getattr(q, "reparameterised", True) else "rloo or disarm"
            raise BadType(f"no closed-form KL for {pair}: use an estimator that samples it, such as {such}")


def _scale(q: Normal | FullNormal) -> Tensor:
    """The Cholesky factor of the covariance of q."""
    if isinstance(q, FullNormal):
        return q.scale_tril
    return q.sigma.unsqueeze(-1) * torch.eye(q.loc.shape[-1], dtype=q.loc.dtype, device=q.loc.device)


def _whitened(p: Normal | FullNormal, columns: Tensor) -> Tensor:
    """L_p⁻¹ times columns [..., Z, n]."""
    if isinstance(p, Normal):
        return columns / p.sigma.unsqueeze(-1)
    return torch.linalg.solve_triangular(p.scale_tril, columns, upper=False)
