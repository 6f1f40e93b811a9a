"""Heads: functions from a network's output to a distribution.

The output is a tensor or a tuple of two tensors. A head of two tensors splits a single tensor into halves along its
last axis. Any such function is a head. The distribution of a likelihood head must have the shape of the data, after any
leading axes of z.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from torch import Tensor

from funcvae._support import checks
from funcvae._support.checks import Positive, at_least
from funcvae.distributions import (
    Bernoulli,
    Categorical,
    Delta,
    Distribution,
    Normal,
    RelaxedBernoulli,
    RelaxedCategorical,
    SignedNormal,
)
from funcvae.errors import BadValue

__all__ = [
    "Head", "Output", "bernoulli", "categorical", "concrete", "delta", "normal_fixed", "normal_logsigma",
    "normal_logvar", "signed_normal",
]  # fmt: skip

Classes = Annotated[int, at_least(2)]
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
    """SignedNormal(loc, sigma) from (loc, sigma), where sigma may have any sign; z = loc + sigma · eps.

    Blog posts use this, but it is not a proper density. Samples have variance sigma², but `log_prob`, and the logarithm
    in the KL ½ (loc² + sigma² - log(sigma² + 1e-8) - 1), use sigma² + 1e-8 to stay finite at sigma = 0. `elbo` has
    the gradient of the posts' loss, but no estimator's claims hold. Prefer `normal_logsigma`.
    """
    loc, sigma = _pair(out)
    return SignedNormal(loc, sigma)


@checks.arguments
def normal_fixed(sigma: Positive) -> Head:
    """Makes the head Normal(out, sigma) with one fixed sigma: as a likelihood, a squared-error loss.

    -log N(x; x̂, sigma²) = C (x - x̂)² + ½ log 2π + log sigma with C = 1/(2 sigma²), so sigma = √½ gives the plain
    squared error plus a constant.

    Raises:
        BadValue: sigma is not positive; or, from the head, sigma is out of the range of the network's dtype.
    """
    return partial(_normal_fixed, sigma)


def _normal_fixed(sigma: float, out: Tensor) -> Normal:
    return Normal(out, checks.constant("sigma", sigma, _one(out)))


def bernoulli(out: Tensor) -> Bernoulli:
    """Bernoulli(out), where the network's output is the logits."""
    return Bernoulli(_one(out))


@checks.arguments
def categorical(classes: Classes) -> Head:
    """Makes the head Categorical(logits) of variables with this number of classes; z is one-hot.

    The network's output is [..., V·classes], and so is z.

    Raises:
        BadValue: classes is below two; or, from the head, it does not divide the output's last axis.
    """
    return partial(_categorical, classes)


def _categorical(classes: int, out: Tensor) -> Categorical:
    return Categorical(_by_class(classes, out))


@checks.arguments
def concrete(temperature: Positive, classes: Classes | None = None) -> Head:
    """Makes the head of a relaxed Bernoulli, or of relaxed categorical variables if `classes` is given.

    The output is that of `bernoulli` or `categorical`. A posterior needs a prior with a density, such as
    `priors.concrete`.

    Raises:
        BadValue: temperature is not positive, or classes is below two; or, from the head, temperature is out of the
            range of the network's dtype, or classes does not divide the output's last axis.

    Reference: Maddison, Mnih & Teh (2017), arXiv:1611.00712.
    """
    return partial(_concrete, temperature, classes)


def _concrete(temperature: float, classes: int | None, out: Tensor) -> RelaxedBernoulli | RelaxedCategorical:
    heat = checks.constant("temperature", temperature, _one(out))
    return RelaxedBernoulli(out, heat) if classes is None else RelaxedCategorical(_by_class(classes, out), heat)


def _by_class(classes: int, out: Tensor) -> Tensor:
    """The logits [..., V, C] from an output [..., V·C]."""
    variables, rest = divmod(checks.floats(_OUT, out, "... V·C").shape[-1], classes)
    if rest:
        raise BadValue(
            f"{out.shape[-1]} logits cannot be divided into variables of {classes} classes: use a multiple of {classes}"
        )
    return out.unflatten(-1, (variables, classes))


def delta(out: Tensor) -> Delta:
    """Delta(out). With this head as the posterior, the VAE is a plain autoencoder."""
    return Delta(_one(out))


def _pair(out: Output) -> tuple[Tensor, Tensor]:
    """The two tensors of an output, or the halves of its one tensor [..., 2·D]."""
    if isinstance(out, tuple | list):
        if len(out) != 2:
            raise BadValue(f"{_OUT} is {len(out)} tensors: this head takes one tensor or two")
        return _one(out[0]), _one(out[1])
    if checks.floats(_OUT, out, "... 2·D").shape[-1] % 2:
        raise BadValue(f"{_OUT} has a last axis of odd length {out.shape[-1]}: this head splits it into two halves")
    first, second = out.chunk(2, dim=-1)
    return first, second


def _one(out: Tensor) -> Tensor:
    return checks.floats(_OUT, out)


_OUT = "the network's output"
