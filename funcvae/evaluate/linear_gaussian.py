"""Probabilistic principal component analysis: the linear VAE's likelihood, posterior and optimum in closed form."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae._support import checks
from funcvae.errors import BadData, BadValue

__all__ = ["PPCA", "eigenvalues", "ppca"]


class PPCA(NamedTuple):
    """p(z) = N(0, I), p(x|z) = N(W z + mu, sigma² I), for x [B, D] and z [B, Z].

    Reference: Tipping & Bishop (1999), "Probabilistic principal component analysis".
    """

    weight: Tensor
    """W [D, Z]."""
    mean: Tensor
    """mu [D]."""
    sigma2: Tensor
    """sigma², with no dimensions."""

    def log_likelihood(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; mu, W Wᵀ + sigma² I) [B], in nats.

        By way of M = WᵀW + sigma² I, [Z, Z]: |W Wᵀ + sigma² I| = sigma^(2(D-Z)) |M|, and
        sigma² (W Wᵀ + sigma² I)⁻¹ = I - W M⁻¹ Wᵀ.
        """
        (features, latent), centred = self.weight.shape, self._checked(x) - self.mean
        chol = torch.linalg.cholesky(self._m())
        log_det = (features - latent) * self.sigma2.log() + 2 * chol.diagonal().log().sum()
        projected = torch.linalg.solve_triangular(chol, (centred @ self.weight).T, upper=False).square().sum(0)
        distance = (centred.square().sum(1) - projected) / self.sigma2
        return -0.5 * (features * math.log(2 * math.pi) + log_det + distance)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p(z|x) = N(M⁻¹ Wᵀ (x - mu), sigma² M⁻¹): its means [B, Z] and its one covariance [Z, Z]."""
        inverse = torch.linalg.inv(self._m())
        return (self._checked(x) - self.mean) @ self.weight @ inverse, self.sigma2 * inverse

    def _checked(self, x: Tensor) -> Tensor:
        """Data that these parameters can take."""
        features, like = len(self.mean), self.mean
        checks.same_device(x=checks.tensor("x", x), mean=like)
        if x.ndim != 2 or x.shape[1] != features or x.is_complex():
            raise BadData(f"x is {checks.describe(x)}: it must be real [n, {features}]")
        return x.to(like.dtype)

    def _m(self) -> Tensor:
        return self.weight.T @ self.weight + self.sigma2 * torch.eye(
            self.weight.shape[1], dtype=self.weight.dtype, device=self.weight.device
        )


def eigenvalues(x: Tensor) -> Tensor:
    """The eigenvalues [D] of the covariance (1/n) sum (x - x̄)(x - x̄)ᵀ of data [n, D], the largest first."""
    return _spectrum(x)[0]


def ppca(x: Tensor, latent: int, sigma2: float | None = None) -> PPCA:
    """The PPCA of maximum likelihood for data x [n, D].

        mu = x̄,    W = U_Z (Λ_Z - sigma² I)^½,    sigma² = (1/(D-Z)) sum_{i>Z} λ_i

    with λ_i and U the eigenvalues and vectors of the data's covariance. W is determined up to a rotation of z; this
    one, with orthogonal columns, makes p(z|x) independent in every dimension. Where sigma² is given, it is that, and
    columns with λ_i <= sigma² are zero: nothing is gained by using them, whatever the inference.

    Args:
        x: data [n, D], n >= 2.
        latent: Z, below D, or up to D where sigma² is given.
        sigma2: the variance of p(x|z), if it is not to be learned.

    Raises:
        BadData: x is not [n, D] with n >= 2 and finite.
        BadValue: latent or sigma2 out of range; or data in a plane of Z dimensions, where sigma² would be zero (or lost
            in the rounding of the largest eigenvalue).
    """
    values, vectors = _spectrum(x)
    most = len(values) - (sigma2 is None)
    latent = checks.integer("latent", latent)
    if not 1 <= latent <= most:
        raise BadValue(f"latent is {latent}: for data of {len(values)} dimensions it must lie between 1 and {most}")
    sigma2 = None if sigma2 is None else checks.number("sigma2", sigma2)
    if sigma2 is not None and not 0 < sigma2 <= torch.finfo(values.dtype).max:
        raise BadValue(f"sigma2 is {sigma2}: a variance is positive, and finite")
    noise = values[latent:].mean() if sigma2 is None else values.new_tensor(sigma2)
    if noise <= 10 * len(values) * torch.finfo(values.dtype).eps * values[0]:  # zero, to rounding
        raise BadValue(f"the data lie in a plane of {latent} dimensions: give sigma2, or take a smaller latent")
    return PPCA(vectors[:, :latent] * (values[:latent] - noise).clamp(min=0).sqrt(), x.mean(0), noise)


def _spectrum(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [D] and vectors [D, D] of the data's covariance, the largest first."""
    checks.concrete("x", x)
    if x.ndim != 2 or len(x) < 2 or x.dtype not in (torch.float32, torch.float64):
        raise BadData(
            f"x is {x.dtype} {list(x.shape)}: it must be floating-point, of 32 or 64 bits, [n, D], with n >= 2"
        )
    if not x.isfinite().all():
        raise BadData(f"x holds NaN or infinite values, first in item {int(x.isfinite().all(1).int().argmin())}")
    centred = x - x.mean(0)
    covariance = centred.T @ centred / len(x)
    if not covariance.isfinite().all():
        raise BadData("x holds values whose squares overflow: scale it down")
    values, vectors = torch.linalg.eigh(covariance)
    return values.flip(0).clamp(min=0), vectors.flip(1)
