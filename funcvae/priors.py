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
from funcvae.distributions import Bernoulli, Categorical, Distribution, Mixture, Normal
from funcvae.errors import BadValue
from funcvae.heads import Classes
from funcvae.heads import categorical as categorical_head
from funcvae.heads import concrete as concrete_head

__all__ = [
    "bernoulli", "categorical", "concrete", "learned_bernoulli", "learned_categorical", "mixture", "standard_normal",
]  # fmt: skip


def standard_normal() -> nn.Module:
    """The prior N(0, I) on the latents, without parameters."""
    return _StandardNormal()


class _StandardNormal(nn.Module):
    def forward(self, z: Tensor) -> Normal:
        checks.floats("z", z)
        return Normal(z.new_zeros(()), z.new_ones(()))


def bernoulli() -> nn.Module:
    """The prior of independent fair Bernoullis, without parameters."""
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


@checks.arguments
def mixture(components: Count, latent: Count) -> Callable[[], nn.Module]:
    """Makes a learned mixture of normals over z [Z], for the argument `prior` of `vae`.

        p(z) = sum_c π_c N(z; loc_c, diag(exp(log_sigma_c)²)),    π = softmax(logits)

    The weights start equal and sigma at 1. The means start at draws from N(0, I), so that the components differ.

    Args:
        components: C.
        latent: Z.

    Raises:
        BadValue: components or latent is below one or too large; or, from the model, Z is not that of the model.
    """
    checks.fits("components", (components, latent))
    return partial(_Mixture, components, latent)


class _Mixture(nn.Module):
    def __init__(self, components: int, latent: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(nn.init.normal_(torch.empty(components, latent)))
        self.log_sigma = nn.Parameter(torch.zeros(components, latent))

    def forward(self, z: Tensor) -> Mixture:
        if checks.floats("z", z, "... Z").shape[-1] != self.loc.shape[1]:  # it might broadcast
            raise BadValue(f"the mixture has latent {self.loc.shape[1]}: the model has latent {z.shape[-1]}")
        return Mixture(self.logits, self.loc, self.log_sigma.exp())
