"""The Kullback-Leibler divergence in closed form."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from funcvae.distributions.discrete import Bernoulli, Categorical
from funcvae.distributions.normal import Delta, Normal, SignedNormal
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
        case Delta(), _:
            return torch.zeros_like(q.loc)
        case ((RelaxedBernoulli() | RelaxedCategorical()), (Bernoulli() | Categorical())):
            raise BadType(
                f"a {type(q).__name__} posterior needs a prior with a density: use priors.concrete and elbo_mc"
            )
        case _:
            pair = f"{type(q).__name__} and {type(p).__name__}"
            raise BadType(
                f"no closed-form KL for {pair}: use an estimator that samples it, such as elbo_mc, or rloo for a "
                "discrete posterior"
            )
