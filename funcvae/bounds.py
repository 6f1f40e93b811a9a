"""Bounds on log p(x) as functions of the log-weights log w_k = log p(x, z_k) - log q(z_k|x), [N, B] -> [B], in nats.

These are values, to report or to differentiate at will: `torch.func.grad` through a bound gives the total derivative of
that bound along the noise. For a gradient whose weights are held constant (STL, DReG, score functions), differentiate
`funcvae.surrogate(estimator)` instead, whose value is minus the batch mean of the bound and whose first gradient is
`Estimate.grads`; its higher derivatives are zero.
"""

import math
from collections.abc import Callable

from torch import Tensor

Bound = Callable[[Tensor], Tensor]


def elbo(log_w: Tensor) -> Tensor:
    """The evidence lower bound: mean_k log w_k.

    Reference: Kingma & Welling (2014), arXiv:1312.6114.
    """
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    """The importance-weighted bound: L_K = log mean_k w_k. It grows with K, to log p(x).

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.
    """
    return log_w.logsumexp(0) - math.log(log_w.shape[0])
