"""Priors p(z): factories of an `nn.Module` that maps z to the distribution p(z). It may read only the shape of z.

A learned prior is a module with parameters. They are in `params["prior"]`, and every estimator trains them with the
decoder's weights.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from funcvae._support import checks
from funcvae._support.checks import Count, Positive
from funcvae.distributions import Bernoulli, Categorical, Distribution, Normal
from funcvae.errors import BadValue
from funcvae.heads import Classes
from funcvae.heads import categorical as categorical_head
from funcvae.heads import concrete as concrete_head

__all__ = ["bernoulli", "categorical", "concrete", "learned_bernoulli", "learned_categorical", "standard_normal"]


def standard_normal() -> nn.Module:
    """N(0, I), without parameters."""
    return _StandardNormal()


class _StandardNormal(nn.Module):
    def forward(self, z: Tensor) -> Normal:
        checks.floats("z", z)
        return Normal(z.new_zeros(()), z.new_ones(()))


def bernoulli() -> nn.Module:
    """Fair Bernoullis, without parameters."""
    return _Uniform(Bernoulli)


@checks.arguments
def learned_bernoulli(latent: Count) -> Callable[[], nn.Module]:
    """Makes the factory of Bernoullis with learned logits [latent], which are 0 at first.

    Raises:
        BadValue: latent is below one; or, from the prior, it is not that of z.
    """
    return _learned(Bernoulli, latent)


@checks.arguments
def categorical(classes: Classes) -> Callable[[], nn.Module]:
    """Makes the factory of uniform categorical variables, one-hot, without parameters.

    Raises:
        BadValue: classes is below two; or, from the prior, it does not divide the latents.
    """
    return partial(_Uniform, categorical_head(classes))


@checks.arguments
def learned_categorical(classes: Classes, variables: Count) -> Callable[[], nn.Module]:
    """Makes the factory of one-hot variables with learned logits [variables, classes], which are 0 at first.

    Raises:
        BadValue: classes is below two, or variables below one; or, from the prior, their product is not the number of
            latents.
    """
    return _learned(Categorical, variables, classes)


@checks.arguments
def concrete(temperature: Positive, classes: Classes | None = None) -> Callable[[], nn.Module]:
    """Makes the factory of the relaxation of `bernoulli`, or of `categorical` if `classes` is given.

    Raises:
        BadValue: temperature is not positive, or classes is below two; or, from the prior, classes does not divide the
            latents.

    Reference: Maddison, Mnih & Teh (2017), arXiv:1611.00712.
    """
    return partial(_Uniform, concrete_head(temperature, classes))


class _Uniform(nn.Module):
    """A head of logits 0."""

    def __init__(self, head: Callable[[Tensor], Distribution]) -> None:
        super().__init__()
        self.head = head

    def forward(self, z: Tensor) -> Distribution:
        latent = checks.floats("z", z, "... Z").shape[-1]
        return self.head(z.new_zeros(latent))


def _learned(kind: Callable[[Tensor], Distribution], *shape: int) -> Callable[[], nn.Module]:
    checks.fits("the prior", shape)
    return partial(_Learned, kind, shape)


class _Learned(nn.Module):
    """A distribution with learned logits."""

    def __init__(self, kind: Callable[[Tensor], Distribution], shape: tuple[int, ...]) -> None:
        super().__init__()
        self.kind, self.logits = kind, nn.Parameter(torch.zeros(shape))

    def forward(self, z: Tensor) -> Distribution:
        latent = checks.floats("z", z, "... Z").shape[-1]
        if latent != self.logits.numel():  # a single logit would broadcast
            shape = list(self.logits.shape)
            raise BadValue(f"the prior has logits {shape} for {self.logits.numel()} latents, and z has {latent}")
        return self.kind(self.logits)
