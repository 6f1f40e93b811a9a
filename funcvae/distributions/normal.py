"""Normal distributions, and the point mass."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae._support.reprs import short_repr
from funcvae.errors import BadType

__all__ = ["Delta", "FullNormal", "Normal", "SignedNormal"]


@short_repr
class Normal(NamedTuple):
    """Independent normals N(loc, sigma²), one for each element of `loc` and `sigma`."""

    loc: Tensor
    """The mean."""
    sigma: Tensor
    """The standard deviation."""

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def support(self) -> tuple[float, float]:
        """The least and the greatest x."""
        return (-math.inf, math.inf)

    @property
    def mean(self) -> Tensor:
        """The mean: loc."""
        return self.loc

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; loc, sigma²) = -½ ((x - loc)/sigma)² - log sigma - ½ log 2π, elementwise, in nats."""
        return -0.5 * ((x - self.loc) / self.sigma) ** 2 - self.sigma.log() - 0.5 * math.log(2 * math.pi)

    def sample(self, eps: Tensor) -> Tensor:
        """loc + sigma · eps."""
        return self.loc + self.sigma * eps


@short_repr
class FullNormal(NamedTuple):
    """The normal N(loc, L Lᵀ) of Z dependent variables, L = scale_tril.

    loc is [..., Z], and L [..., Z, Z] is lower triangular with a positive diagonal.
    """

    loc: Tensor
    """The mean [B, Z]."""
    scale_tril: Tensor
    """The lower triangle L [B, Z, Z]."""

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def mean(self) -> Tensor:
        """The mean: loc."""
        return self.loc

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; loc, L Lᵀ) = -½ |L⁻¹ (z - loc)|² - sum_i log L_ii - ½ Z log 2π: one number for each z, in nats."""
        off = z - self.loc
        # All samples of one datum are columns of one equation, so that L is not copied for each of them.
        columns = off.reshape(-1, *self.loc.shape).movedim(0, -1)
        eps = torch.linalg.solve_triangular(self.scale_tril, columns, upper=False)
        squares = eps.square().sum(-2).movedim(-1, 0).reshape(off.shape[:-1])
        i = torch.arange(z.shape[-1], device=z.device)  # under torch.compile, Tensor.diagonal warns
        log_det = self.scale_tril[..., i, i].log().sum(-1)
        return -0.5 * squares - log_det - 0.5 * z.shape[-1] * math.log(2 * math.pi)

    def sample(self, eps: Tensor) -> Tensor:
        """loc + L eps."""
        columns = eps.reshape(-1, *self.loc.shape).movedim(0, -1)
        return self.loc + (self.scale_tril @ columns).movedim(-1, 0).reshape(eps.shape)


@short_repr
class SignedNormal(NamedTuple):
    """A normal whose sigma may have any sign or be zero, as in code that does not exponentiate the network's output.

    Samples are loc + sigma · eps, with variance sigma². `log_prob` and the logarithm in `kl` use sigma² + 1e-8, which
    keeps them finite at sigma = 0. So `log_prob` is not the density of the samples, and no estimator's claims hold.
    """

    loc: Tensor
    sigma: Tensor

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def mean(self) -> Tensor:
        """The mean: loc."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """sigma² + 1e-8, the variance in `log_prob` and in the logarithm of `kl`."""
        return self.sigma**2 + 1e-8

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; loc, sigma² + 1e-8), elementwise, in nats."""
        return -0.5 * ((x - self.loc) ** 2 / self.variance + self.variance.log() + math.log(2 * math.pi))

    def sample(self, eps: Tensor) -> Tensor:
        """loc + sigma · eps."""
        return self.loc + self.sigma * eps


@short_repr
class Delta(NamedTuple):
    """All mass at one point: the posterior of a plain autoencoder. It has no density, and `kl` returns 0 for it."""

    loc: Tensor
    """The only value."""

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def support(self) -> tuple[float, float]:
        """The least and the greatest x."""
        return (-math.inf, math.inf)

    @property
    def mean(self) -> Tensor:
        """The mean: loc."""
        return self.loc

    def log_prob(self, x: Tensor) -> Tensor:
        """Raises BadType: a point has no density."""
        raise BadType("a Delta posterior has no density log q(z|x): use an estimator without one, such as elbo")

    def sample(self, eps: Tensor) -> Tensor:
        """loc, expanded to the shape of eps."""
        return self.loc.expand_as(eps)
