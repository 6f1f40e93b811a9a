"""Pareto-smoothed importance sampling's diagnostic: how heavy the tail of importance weights is."""

import math

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from funcvae._support import checks
from funcvae.errors import BadValue

__all__ = ["k_hat", "threshold"]

Floats = NDArray[np.float64]


def k_hat(log_w: Tensor) -> Floats:
    """The shape k̂ [B] of a generalised Pareto distribution fitted to the largest weights of each datum.

    Of K weights the largest min(K/5, 3√K) are fitted by Zhang and Stephens' method. A tail of shape k has moments of
    order below 1/k only: from ½ on the weights have no variance, and from 1 on no mean. Infinite where there are fewer
    than five weights to fit; -infinite where all agree within a thousandth, and there is no tail to speak of.

    Args:
        log_w: log-weights [K, B], up to a constant for each datum.

    References: Vehtari, Simpson, Gelman, Yao & Gabry (2024), arXiv:1507.02646; Zhang & Stephens (2009), "A new and
    efficient estimation method for the generalized Pareto distribution".
    """
    if not len(checks.concrete("log_w", log_w, "K B", floating=True)):
        raise BadValue(f"log_w has shape {list(log_w.shape)}: it must be [K, B], with K >= 1")
    columns = log_w.detach().double().cpu().numpy().T
    with np.errstate(invalid="ignore", over="ignore"):  # where the greatest is infinite: no tail, and so k̂ infinite
        return np.array([_k_hat(np.sort(column - column.max())) for column in columns])


def threshold(samples: int) -> float:
    """The k̂ above which an average of this many weights is not to be trusted: min(1 - 1/log10 K, 0.7).

    Reference: Vehtari et al. (2024), arXiv:1507.02646, section 3.
    """
    return min(1 - 1 / math.log10(samples), 0.7) if checks.integer("samples", samples) > 1 else -math.inf


_LEAST = math.log(np.finfo(float).tiny)


def _k_hat(f: Floats) -> float:
    """k̂ of sorted log-weights [K] of which the greatest is 0."""
    if f[0] > -1e-3 and len(f) > 1:
        return -math.inf
    tail = math.ceil(min(len(f) / 5, 3 * len(f) ** 0.5))
    if len(f) <= tail:
        return math.inf
    cut = max(f[-tail - 1], _LEAST)
    above = f[f > cut]
    return _pareto_shape(np.exp(above) - math.exp(cut)) if len(above) >= 5 else math.inf


def _pareto_shape(x: Floats) -> float:
    """The shape of the generalised Pareto distribution of x [n], sorted and positive.

    The posterior mean of b = -k/sigma over a grid, on the profile likelihood; then a weak prior that draws k to ½.
    """
    n = len(x)
    grid = np.arange(1, 31 + int(n**0.5))
    b = 1 / x[-1] + (1 - np.sqrt(len(grid) / (grid - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1])
    k = np.log1p(-np.outer(b, x)).mean(1)
    log_likelihood = n * (np.log(-b / k) - k - 1)
    weight = np.exp(log_likelihood - log_likelihood.max())
    mean_b = (weight * b).sum() / weight.sum()
    return float((n * np.log1p(-mean_b * x).mean() + 10 * 0.5) / (n + 10))
