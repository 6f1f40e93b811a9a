"""The Kullback-Leibler divergence in closed form."""

import torch
from torch import Tensor
from torch.nn.functional import softplus

from funcvae.distributions.discrete import Bernoulli, Categorical
from funcvae.distributions.normal import Delta, Normal, SignedNormal
from funcvae.distributions.types import Distribution
from funcvae.errors import BadType

__all__ = ["kl"]


def kl(q: Distribution, p: Distribution) -> Tensor:
    """KL(q ‖ p) in closed form, elementwise, in nats.

    For normals it is ½ (r² + d² - 1) - log r, with r = σ_q/σ_p and d = (μ_q - μ_p)/σ_p. For a SignedNormal q, only the
    logarithm uses the variance σ_q² + 1e-8: ½ (r² + d² - 1 - log((σ_q² + 1e-8)/σ_p²)), which is not exactly zero at
    r = 1. For Bernoullis with logits a and c it is sigmoid(a) (a - c) + softplus(c) - softplus(a). For categorical
    variables it is π_q (log π_q - log π_p) of each class. For a Delta q it is zero, because an autoencoder's loss has
    no such term.

    Raises:
        BadType: no closed form is known for this pair.
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
            return a.sigmoid() * (a - c) + softplus(c) - softplus(a)
        case Categorical(), Categorical():
            log_q = q.logits.log_softmax(-1)
            return (log_q.exp() * (log_q - p.logits.log_softmax(-1))).flatten(-2)
        case Delta(), _:
            return torch.zeros_like(q.loc)
        case _:
            pair = f"{type(q).__name__} and {type(p).__name__}"
            raise BadType(f"no closed-form KL for {pair}: use an estimator that samples it, such as elbo_mc")
