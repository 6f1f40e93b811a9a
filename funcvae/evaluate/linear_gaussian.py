"""Probabilistic principal component analysis: the linear VAE's likelihood, posterior and optimum in closed form."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal

from funcvae._support import checks
from funcvae._support.checks import Count, Positive
from funcvae._support.reprs import short_repr
from funcvae.errors import BadData, BadValue

__all__ = ["PPCA", "eigenvalues", "ppca"]


@short_repr
class PPCA(NamedTuple):
    """p(z) = N(0, I), p(x|z) = N(W z + mu, sigma² I), for x [B, D] and z [B, Z].

    Reference: Tipping & Bishop (1999), "Probabilistic principal component analysis".
    """

    weight: Tensor
    """W [D, Z]."""
    mean: Tensor
    """mu [D]."""
    sigma2: Tensor
    """sigma², a tensor without axes."""

    @checks.arguments
    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; mu, W Wᵀ + sigma² I) [B], in nats."""
        x = self._centred(x)
        parts = torch.zeros_like(self.mean), self.weight, self.sigma2.expand_as(self.mean)
        return LowRankMultivariateNormal(*parts, validate_args=False).log_prob(x)

    @checks.arguments
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p(z|x) = N(M⁻¹ Wᵀ (x - mu), sigma² M⁻¹) with M = WᵀW + sigma² I: means [B, Z] and one covariance [Z, Z]."""
        gram = self.weight.T @ self.weight
        inverse = torch.linalg.inv(gram + self.sigma2 * torch.eye(len(gram)).to(gram))
        return self._centred(x) @ self.weight @ inverse, self.sigma2 * inverse

    def _centred(self, x: Tensor) -> Tensor:
        """x - mu; raises BadData or BadValue if the shapes or devices do not match."""
        checks.same_device(x=x, mean=self.mean)
        if x.ndim != 2 or x.shape[1] != len(self.mean) or x.is_complex():
            raise BadData(f"x is {checks.describe(x)}: it must be real [n, {len(self.mean)}]")
        return x.to(self.mean.dtype) - self.mean


@checks.arguments
def eigenvalues(x: Tensor) -> Tensor:
    """The eigenvalues [D] of the covariance (1/n) sum (x - x̄)(x - x̄)ᵀ of data [n, D], in decreasing order."""
    return _spectrum(x)[0]


@checks.arguments
def ppca(x: Tensor, latent: Count, sigma2: Positive | None = None) -> PPCA:
    """The maximum-likelihood PPCA of data x [n, D].

        mu = x̄,    W = U_Z (Λ_Z - sigma² I)^½,    sigma² = (1/(D-Z)) sum_{i>Z} λ_i

    with λ_i and U the eigenvalues and eigenvectors of the data's covariance. W is determined up to a rotation of z; the
    columns of this W are orthogonal, so the dimensions of p(z|x) are independent. If sigma² is given, columns with
    λ_i <= sigma² are zero, as they do not increase the likelihood.

    Args:
        x: data [n, D], n >= 2.
        latent: Z, below D; at most D if sigma² is given.
        sigma2: the variance of p(x|z), or None to learn it.

    Raises:
        BadData: x is not [n, D] with n >= 2, or not finite.
        BadValue: latent or sigma2 is out of range, or the data lie in a plane of Z dimensions, where sigma² would be
            zero (or lost in the rounding of the largest eigenvalue).
    """
    values, vectors = _spectrum(x)
    most = len(values) - (sigma2 is None)
    if latent > most:
        raise BadValue(f"latent is {latent}: for data of {len(values)} dimensions it must lie between 1 and {most}")
    noise = values[latent:].mean() if sigma2 is None else values.new_tensor(sigma2)
    if noise <= 10 * len(values) * torch.finfo(values.dtype).eps * values[0]:  # zero, to rounding
        raise BadValue(f"the data lie in a plane of {latent} dimensions: give sigma2, or use a smaller latent")
    return PPCA(vectors[:, :latent] * (values[:latent] - noise).clamp(min=0).sqrt(), x.mean(0), noise)


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D] in decreasing order and eigenvectors [D, D] of the data's covariance."""
    if checks.concrete("x", x).ndim != 2 or len(x) < 2 or x.dtype not in (torch.float32, torch.float64):
        raise BadData(f"x is {checks.describe(x)}: it must be torch.float32 or torch.float64 [n, D], with n >= 2")
    if not x.isfinite().all():
        raise BadData(f"x holds NaN or infinite values, first in item {int(x.isfinite().all(1).int().argmin())}")
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x)
    if not covariance.isfinite().all():
        raise BadData("x holds values whose squares overflow: scale it down")
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0).clamp(min=0), vectors.flip(1)
