"""Bounds on log p(x) as functions of the log-weights log w_k = log p(x, z_k) - log q(z_k|x), [N, B] -> [B], in nats.

These are values, to report or to differentiate at will: `torch.func.grad` through a bound gives the total derivative of
that bound along the noise, which is the gradient of `elbo_mc`, `iwae`, `renyi`, `miwae` and `ciwae`, and its higher
derivatives are the bound's own. For a gradient whose weights are held constant (STL, DReG, score functions),
differentiate `funcvae.surrogate(estimator)` instead, whose value is minus the batch mean of the bound and whose first
gradient is `Estimate.grads`; its higher derivatives are zero.

`elbo` and `iwae` are bounds as they stand; `renyi(alpha)`, `miwae(m)`, `ciwae(beta)` and `tvo(partition)` make one.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae.errors import BadValue

__all__ = ["Bound", "checked", "ciwae", "elbo", "groups", "iwae", "miwae", "renyi", "rising", "tempered_mean", "tvo"]

Bound = Callable[[Tensor], Tensor]


def elbo(log_w: Tensor) -> Tensor:
    """The evidence lower bound: mean_k log w_k.

    Reference: Kingma & Welling (2014), arXiv:1312.6114.
    """
    return checked(log_w).mean(0)


def iwae(log_w: Tensor) -> Tensor:
    """The importance-weighted bound: L_K = log mean_k w_k. It grows with K, to log p(x).

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.
    """
    return checked(log_w).logsumexp(0) - math.log(log_w.shape[0])


def renyi(alpha: float) -> Bound:
    """The variational Rényi bound: (1/(1-alpha)) log mean_k w_k^(1-alpha).

    L_K at alpha = 0, the ELBO in the limit alpha -> 1, and never above log p(x) in the mean for 0 <= alpha.

    Raises:
        BadValue: alpha is 1 or not finite.

    Reference: Li & Turner (2016), arXiv:1602.02311.
    """
    alpha = checks.number("alpha", alpha)
    if alpha == 1:
        raise BadValue("alpha is 1, where the Rényi bound is the ELBO: use elbo_mc")
    if not math.isfinite(alpha):
        raise BadValue(f"alpha is {alpha}: it must be finite")

    def bound(log_w: Tensor) -> Tensor:
        top = checked(log_w).max(0).values
        f = (1 - alpha) * (log_w - top)
        # Where all are small, as near alpha = 1, log(mean exp f) would lose the digits that 1/(1 - alpha) asks for.
        small = f.abs().max(0).values < 1
        log_mean = torch.where(small, f.clamp(-1, 1).expm1().mean(0).log1p(), iwae(f))
        return top + log_mean / (1 - alpha)

    return bound


def miwae(m: int) -> Bound:
    """The mean of M importance-weighted bounds, each of K = N/M samples: mean_g log mean_{k in g} w_k.

    The groups are samples 0 … K-1, K … 2K-1, and so on.

    Raises:
        BadValue: m is below one; or, from the bound, it does not divide the number of samples.

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """
    m = checks.integer("m", m, 1)
    return lambda log_w: iwae(groups(log_w, m).transpose(0, 1)).mean(0)


def ciwae(beta: float) -> Bound:
    """A combination of two bounds: beta ELBO + (1-beta) L_K.

    Raises:
        BadValue: beta is not in [0, 1].

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """
    beta = checks.number("beta", beta)
    if not 0 <= beta <= 1:
        raise BadValue(f"beta is {beta}: the ELBO's share lies between 0 and 1")
    if beta == 0:  # 0 · ELBO is not 0 where a weight is
        return iwae
    return lambda log_w: beta * elbo(log_w) + (1 - beta) * iwae(log_w)


def tvo(partition: Sequence[float]) -> Bound:
    """The thermodynamic variational objective: a left Riemann sum for log p(x), which is the integral over 0 <= β <= 1.

        sum_j (β_{j+1} - β_j) f̄_j,    f̄_j = sum_k softmax_k(β_j log w) log w_k

    `partition` is β_0 = 0 < … < β_P = 1; (0, 1) gives the ELBO. The inner means are self-normalised: in the limit of
    many samples this is a lower bound, for few it is biased.

    Raises:
        BadValue: the partition does not rise from 0 to 1.

    Reference: Masrani, Le & Wood (2019), arXiv:1907.00031.
    """
    betas = rising(partition)

    def bound(log_w: Tensor) -> Tensor:
        terms = [(after - beta) * tempered_mean(log_w, beta)[1] for beta, after in pairwise(betas)]
        return torch.stack(terms).sum(0)

    return bound


def checked(log_w: Tensor) -> Tensor:
    """Log-weights [N, ...], if they are some: raises BadType or BadValue where they are not, or N is 0."""
    if not len(checks.tensor("log_w", log_w, "N ...", floating=True)):
        raise BadValue(f"log_w has shape {list(log_w.shape)}: it must be [N, B], with N >= 1")
    return log_w


def groups(log_w: Tensor, m: int) -> Tensor:
    """The log-weights [N, B] in m groups of successive samples, [m, N/m, B]."""
    m = checks.integer("m", m, 1)
    if len(checked(log_w)) % m:
        raise BadValue(f"{len(log_w)} samples do not make {m} groups of one size: samples must be a multiple of m")
    return log_w.unflatten(0, (m, -1))


def rising(partition: Sequence[float]) -> tuple[float, ...]:
    """The partition itself, if it rises from 0 to 1."""
    betas = tuple(checks.numbers("partition", partition))
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not all(a < b for a, b in pairwise(betas)):
        raise BadValue(f"partition is {betas}: it must rise from 0 to 1, as in (0, 0.5, 1)")
    return betas


def tempered_mean(log_w: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The weights softmax_k(beta log w) [N, B], and the mean of log w under them [B]."""
    checked(log_w)
    beta = checks.number("beta", beta)
    if beta == 0:
        return torch.full_like(log_w, 1 / len(log_w)), log_w.mean(0)
    w = (beta * log_w).softmax(0)
    return w, torch.where(w > 0, w * log_w, 0).sum(0)  # w log w -> 0 as log w -> -inf
