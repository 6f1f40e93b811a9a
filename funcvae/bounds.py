"""Bounds on log p(x) as functions of the log-weights log w_k = log p(x, z_k) - log q(z_k|x), [N, B] -> [B], in nats.

Report these values or differentiate them: `torch.func.grad` through a bound is the total derivative of that bound at
fixed noise, which is the gradient of `elbo_mc`, `iwae`, `renyi`, `miwae` and `ciwae`. Higher derivatives are those of
the bound. For gradients with constant weights (STL, DReG, score functions), differentiate
`funcvae.surrogate(estimator)` instead: its value is minus the batch mean of the bound, its first gradient is
`Estimate.grads`, and its higher derivatives are zero.

`elbo` and `iwae` are bounds. `renyi(alpha)`, `miwae(m)`, `ciwae(beta)` and `tvo(partition)` make one.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor

from funcvae._support import checks
from funcvae._support.checks import Count, Finite, Floats, Fraction, that
from funcvae._support.pickling import remembered
from funcvae.errors import BadValue

__all__ = [
    "Bound", "LogWeights", "Partition", "ciwae", "elbo", "groups", "iwae", "miwae", "renyi", "softmax", "tempered_mean",
    "tvo",
]  # fmt: skip


def _rises(name: str, value: Sequence[float]) -> tuple[float, ...]:
    betas = tuple(checks.numbers(name, value))
    if len(betas) < 2 or betas[0] != 0 or betas[-1] != 1 or not all(a < b for a, b in pairwise(betas)):
        raise BadValue(f"{name} is {betas}: it must rise from 0 to 1, as in (0, 0.5, 1)")
    return betas


Bound = Callable[[Tensor], Tensor]
"""Maps log-weights [N, B] to the values [B] of a bound, in nats."""
LogWeights = Annotated[Floats, "N ...", that(len, "[N, B], with N >= 1")]
"""Log-weights [N, B], with at least one sample."""
Partition = Annotated[Sequence[float], checks.Only(_rises)]
"""The β of `tvo`: two or more numbers that rise from 0 to 1, both included."""


@checks.arguments
def elbo(log_w: LogWeights) -> Tensor:
    r"""The evidence lower bound $\frac{1}{K} \sum_k \log w_k$.

    Reference: Kingma & Welling (2014), arXiv:1312.6114.
    """
    return log_w.mean(0, dtype=torch.float64).to(log_w.dtype)  # a float32 sum loses several digits


@checks.arguments
def iwae(log_w: LogWeights) -> Tensor:
    r"""The importance-weighted bound $L_K = \log \frac{1}{K} \sum_k w_k$. It increases with K, to log p(x).

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.
    """
    return log_w.logsumexp(0) - math.log(len(log_w))


@remembered
@checks.arguments
def renyi(alpha: Finite) -> Bound:
    r"""The variational Rényi bound $\frac{1}{1-\alpha} \log \frac{1}{K} \sum_k w_k^{1-\alpha}$.

    This is L_K at alpha = 0 and the ELBO in the limit alpha -> 1. Its mean is at most log p(x) for alpha >= 0.

    Raises:
        BadValue: alpha is 1 or not finite.

    Reference: Li & Turner (2016), arXiv:1602.02311.
    """
    if alpha == 1:
        raise BadValue("alpha is 1, where the Rényi bound is the ELBO: use elbo_mc")

    @checks.arguments
    def bound(log_w: LogWeights) -> Tensor:
        # The factor 1/(1 - alpha) magnifies rounding errors: compute in float64 and, where all f are small, as near
        # alpha = 1, without cancellation.
        f = (1 - alpha) * log_w.double()
        small = f.abs().max(0).values < 1
        log_mean = torch.where(small, f.clamp(-1, 1).expm1().mean(0).log1p(), _iwae(f))
        return (log_mean / (1 - alpha)).to(log_w.dtype)

    return bound


@remembered
@checks.arguments
def miwae(m: Count) -> Bound:
    """The mean of M importance-weighted bounds, each of K = N/M samples: mean_g log mean_{k in g} w_k.

    The groups are the samples 0 … K-1, K … 2K-1, and so on.

    Raises:
        BadValue: m is below one; or, from the bound, m does not divide the number of samples.

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """

    @checks.arguments
    def bound(log_w: LogWeights) -> Tensor:
        return _elbo(_iwae(rearrange(_groups(log_w, m), "m k ... -> k m ...")))

    return bound


@remembered
@checks.arguments
def ciwae(beta: Fraction) -> Bound:
    """A combination of two bounds: beta ELBO + (1-beta) L_K.

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """
    if beta == 0:  # 0 · ELBO is NaN where a weight is 0
        return iwae

    @checks.arguments
    def bound(log_w: LogWeights) -> Tensor:
        return beta * _elbo(log_w) + (1 - beta) * _iwae(log_w)

    return bound


@remembered
@checks.arguments
def tvo(partition: Partition) -> Bound:
    r"""The thermodynamic variational objective: a left Riemann sum for log p(x) as an integral over β in [0, 1].

    $$\sum_j (\beta_{j+1} - \beta_j) \bar f_j, \qquad \bar f_j = \sum_k \mathrm{softmax}_k(\beta_j \log w) \log w_k$$

    `partition` is β_0 = 0 < … < β_P = 1; (0, 1) gives the ELBO. The inner means are self-normalised: this is a lower
    bound in the limit of many samples, and biased for few.

    Reference: Masrani, Le & Wood (2019), arXiv:1907.00031.
    """

    @checks.arguments
    def bound(log_w: LogWeights) -> Tensor:
        f = log_w.double()
        terms = [(after - beta) * _tempered_mean(f, beta)[1] for beta, after in pairwise(partition)]
        return torch.stack(terms).sum(0).to(log_w.dtype)

    return bound


@checks.arguments
def groups(log_w: LogWeights, m: Count) -> Tensor:
    """Splits log-weights [N, B] into m groups of successive samples, [m, N/m, B].

    Raises:
        BadValue: m does not divide N.
    """
    if len(log_w) % m:
        raise BadValue(f"{len(log_w)} samples cannot be divided into {m} equal groups: samples must be a multiple of m")
    return rearrange(log_w, "(m k) ... -> m k ...", m=m)


@checks.arguments
def softmax(log_w: LogWeights) -> Tensor:
    """The normalised weights softmax_k(log w) [N, B].

    A float32 sum of N terms has a relative error of up to N/2^24, so that of more than 128 samples is in float64.
    """
    return (log_w.double() if len(log_w) > 128 else log_w).softmax(0).to(log_w.dtype)


@checks.arguments
def tempered_mean(log_w: LogWeights, beta: float) -> tuple[Tensor, Tensor]:
    """The weights softmax_k(beta log w) [N, B], and the mean of log w under them [B]."""
    if beta == 0:
        return torch.full_like(log_w, 1 / len(log_w)), _elbo(log_w)
    f = log_w.double()  # in float32, beta log w would lose the digits that its differences need
    w = (beta * f).softmax(0)
    mean = (w * torch.where(w > 0, f, 0)).sum(0)  # w log w -> 0 as log w -> -inf
    return w.to(log_w.dtype), mean.to(log_w.dtype)


_elbo, _iwae, _groups = checks.unchecked(elbo), checks.unchecked(iwae), checks.unchecked(groups)
_tempered_mean = checks.unchecked(tempered_mean)
