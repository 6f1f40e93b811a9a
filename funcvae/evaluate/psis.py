"""The Pareto diagnostic k̂: the shape of the tail of importance weights."""

import math

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["k_hat", "pareto_fits", "pooled", "tail_length", "threshold"]

Floats = NDArray[np.float64]


def k_hat(log_w: Tensor) -> Floats:
    """The shape k̂ [B] of a generalised Pareto distribution fitted to the largest weights of each datum.

    The largest min(K/5, 3√K) of K weights are fitted by Zhang and Stephens' method. A tail of shape k has only
    moments of order below 1/k: the weights have no variance if k >= ½, and no mean if k >= 1. The result is infinite if
    there are fewer than five weights to fit, and -infinite if all weights agree within a thousandth.

    Args:
        log_w: log-weights [K, B], up to a constant for each datum.

    References: Vehtari, Simpson, Gelman, Yao & Gabry (2024), arXiv:1507.02646; Zhang & Stephens (2009), "A new and
    efficient estimation method for the generalized Pareto distribution".
    """
    columns = rearrange(log_w.detach().double().cpu().numpy(), "k b -> b k")
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite largest log-weight gives k̂ = inf
        return np.array([_k_hat(np.sort(column - column.max())) for column in columns])


def pooled(k_hat: Tensor, samples: int) -> Tensor:
    """k̂ [B] moved towards its mean over the data, by the share of its variance that is estimation error.

    For a tail of M weights the error's variance is about (1 + k)²/M. A datum's own k̂ selects the draws that missed the
    large weights: these have both a low k̂ and a wrong estimate. The mean over the data does not. Values that are not
    finite stay.

    Reference: Morris (1983), "Parametric empirical Bayes inference".
    """
    known = k_hat[k_hat.isfinite()]
    if len(known) < 2:
        return k_hat
    mean = known.mean()
    error = (1 + mean).square() / tail_length(samples)
    return torch.where(k_hat.isfinite(), mean + (1 - error / known.var()).clamp(min=0) * (k_hat - mean), k_hat)


def threshold(samples: int) -> float:
    """The k̂ above which the standard error of a mean of this many weights is not reliable: min(1 - 1/log10 K, ½).

    From ½ on the weights have no variance. Vehtari et al. (2024), arXiv:1507.02646, section 3, have 0.7 in place of ½,
    for weights smoothed by their tail's fit; these are not.
    """
    return min(1 - 1 / math.log10(samples), 0.5) if samples > 1 else -math.inf


def tail_length(samples: int) -> int:
    """The number of the largest of these samples that are fitted: min(K/5, 3√K), rounded up."""
    return math.ceil(min(samples / 5, 3 * samples**0.5))


def pareto_fits(x: Floats) -> tuple[Floats, Floats, Floats]:
    """The generalised Pareto distributions that fit x [n], sorted and positive, on a grid of G of them.

    Returns:
        b = -k/sigma [G], the shapes k [G] of largest likelihood for each b, and weights [G] proportional to the
        likelihood, the largest of them 1.
    """
    n = len(x)
    grid = np.arange(1, 31 + int(n**0.5))
    b = 1 / x[-1] + (1 - np.sqrt(len(grid) / (grid - 0.5))) / (3 * x[int(n / 4 + 0.5) - 1])
    k = np.log1p(-np.outer(b, x)).mean(1)
    log_likelihood = n * (np.log(-b / k) - k - 1)
    return b, k, np.exp(log_likelihood - log_likelihood.max())


def _k_hat(f: Floats) -> float:
    """k̂ of sorted log-weights [K] whose maximum is 0.

    It is k at the posterior mean of b = -k/sigma over a grid of profile likelihoods, shrunk towards ½ by a weak prior.
    """
    if f[0] > -1e-3 and len(f) > 1:
        return -math.inf
    tail = tail_length(len(f))
    if len(f) <= tail:
        return math.inf
    cut = max(f[-tail - 1], math.log(np.finfo(float).tiny))
    x = np.exp(f[f > cut]) - math.exp(cut)
    if (n := len(x)) < 5:
        return math.inf
    b, _, weight = pareto_fits(x)
    mean_b = (weight * b).sum() / weight.sum()
    return float((n * np.log1p(-mean_b * x).mean() + 10 * 0.5) / (n + 10))
