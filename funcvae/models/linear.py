"""The linear VAE: probabilistic principal component analysis with a recognition network."""

import math

import torch
from torch import Tensor, nn

from funcvae import heads
from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.model import VAE, vae

__all__ = ["LinearDecoder", "LinearEncoder", "linear_vae"]


class LinearEncoder(nn.Module):
    """x [B, inputs] -> (V x + c, log sigma_q), the second one vector for all data."""

    def __init__(self, inputs: int, latent: int) -> None:
        super().__init__()
        self.mu = nn.Linear(inputs, latent)
        self.log_sigma = nn.Parameter(torch.zeros(latent))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> (mu, log sigma), each [B, latent]."""
        mu = self.mu(x)
        return mu, self.log_sigma.expand_as(mu)


class LinearDecoder(nn.Module):
    """z [B, latent] -> (W z + mu, log sigma), the second one learned number for all."""

    def __init__(self, latent: int, inputs: int) -> None:
        super().__init__()
        self.mean = nn.Linear(latent, inputs)
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """z -> (mean, log sigma), each [B, inputs]."""
        mean = self.mean(z)
        return mean, self.log_sigma.expand_as(mean)


def linear_vae(inputs: int, latent: int, sigma2: float | None = None) -> VAE:
    """p(x|z) = N(W z + mu, sigma² I) and q(z|x) = N(V x + c, diag(sigma_q²)), with one sigma_q for all x.

    This is probabilistic PCA. Its log p(x), its true posterior (which this q reaches where W's columns are orthogonal)
    and its best W are known in closed form: `funcvae.evaluate.ppca`.

    Args:
        inputs: D, of x [B, D].
        latent: Z.
        sigma2: the variance of p(x|z); learned unless given.

    Raises:
        BadValue: sigma2 is not positive.

    Reference: Lucas, Tucker, Grosse & Norouzi (2019), arXiv:1911.02469.
    """
    checks.fits("inputs and latent", (checks.integer("inputs", inputs, 1), checks.integer("latent", latent, 1)))
    if sigma2 is not None and not 0 < checks.number("sigma2", sigma2) < math.inf:
        raise BadValue(f"sigma2 is {sigma2}: a variance is positive, and finite")
    learned = sigma2 is None
    return vae(
        encoder=lambda: LinearEncoder(inputs, latent),
        decoder=(lambda: LinearDecoder(latent, inputs)) if learned else (lambda: nn.Linear(latent, inputs)),
        posterior=heads.normal_logsigma,
        likelihood=heads.normal_logsigma if sigma2 is None else heads.normal_fixed(math.sqrt(sigma2)),
        latent=latent,
    )
