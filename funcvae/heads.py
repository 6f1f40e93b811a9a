"""Heads: from what a network returns to a distribution.

A head takes a tensor, halved on its last axis where it needs two, or a tuple of tensors. Any callable of this kind is
a head; for the likelihood a head's distribution has the shape of the data, with any leading axes of z in front.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae.distributions import Bernoulli, Delta, Distribution, Normal, SignedNormal
from funcvae.errors import BadType, BadValue

__all__ = ["Head", "Output", "bernoulli", "delta", "normal_fixed", "normal_logsigma", "normal_logvar", "signed_normal"]

Output = Tensor | tuple[Tensor, Tensor]
Head = Callable[[Any], Distribution]


def normal_logvar(out: Output) -> Normal:
    """Normal(loc, exp(logvar / 2)) from (loc, logvar)."""
    loc, logvar = _pair(out)
    return Normal(loc, (logvar / 2).exp())


def normal_logsigma(out: Output) -> Normal:
    """Normal(loc, exp(log_sigma)) from (loc, log_sigma)."""
    loc, log_sigma = _pair(out)
    return Normal(loc, log_sigma.exp())


def signed_normal(out: Output) -> SignedNormal:
    """(loc, sigma) straight from the network, sigma of any sign: z = loc + sigma · eps.

    A choice made in blog posts, and no proper density: samples have variance sigma², but `log_prob`, and the logarithm
    in the KL ½ (loc² + sigma² - log(sigma² + 1e-8) - 1), have sigma² + 1e-8, so that sigma = 0 stays finite. `elbo`
    has the gradient of the posts' loss, but no estimator's claims hold. `normal_logsigma` is the proper choice.
    """
    loc, sigma = _pair(out)
    return SignedNormal(loc, sigma)


def normal_fixed(sigma: float) -> Head:
    """A head for Normal(out, sigma²) with one sigma for all: a squared error in other words.

    -log N(x; x̂, sigma²) = C (x - x̂)² + ½ log 2π + log sigma with C = 1/(2 sigma²), so sigma = √½ gives the plain
    squared error, plus a constant.
    """
    sigma = checks.number("sigma", sigma)
    if not 0 < sigma < math.inf:
        raise BadValue(f"sigma is {sigma}: a standard deviation is positive, and finite")

    def head(out: Tensor) -> Normal:
        if sigma > torch.finfo(_one(out).dtype).max:
            raise BadValue(f"sigma is {sigma}: {out.dtype}, the network's, does not hold it")
        return Normal(out, out.new_full((), sigma))

    return head


def bernoulli(out: Tensor) -> Bernoulli:
    """Bernoulli with the network's output as its logits."""
    return Bernoulli(_one(out))


def delta(out: Tensor) -> Delta:
    """Delta at the network's output: with it as the posterior, the VAE is a plain autoencoder."""
    return Delta(_one(out))


def _pair(out: Output) -> tuple[Tensor, Tensor]:
    if isinstance(out, Tensor):
        if checks.tensor(_OUT, out, "... 2·D", floating=True).shape[-1] % 2:
            raise BadValue(f"this head halves the network's last axis, which has odd length {out.shape[-1]}")
        first, second = out.chunk(2, dim=-1)
        return first, second
    if not isinstance(out, tuple | list):
        raise BadType(f"{_OUT} is {checks.describe(out)}: this head takes one tensor or two")
    if len(out) != 2:
        raise BadValue(f"this head takes one tensor or two, the network returns {len(out)}")
    return _one(out[0]), _one(out[1])


def _one(out: Tensor) -> Tensor:
    return checks.tensor(_OUT, out, floating=True)


_OUT = "the network's output"
