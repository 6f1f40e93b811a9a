"""The linear VAE: probabilistic PCA with a recognition network."""

import math

import torch
from torch import Tensor, nn

from funcvae import heads
from funcvae._support import checks
from funcvae._support.checks import Count, Positive
from funcvae._support.pickling import remembered
from funcvae.model import VAE, vae

__all__ = ["LinearDecoder", "LinearEncoder", "linear_vae"]


class LinearEncoder(nn.Module):
    """x [B, inputs] -> (V x + c, log sigma_q), where log sigma_q is one vector for all data."""

    def __init__(self, inputs: int, latent: int) -> None:
        super().__init__()
        self.mu = nn.Linear(inputs, latent)
        self.log_sigma = nn.Parameter(torch.zeros(latent))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x to (mu, log sigma), each [B, latent]."""
        mu = self.mu(x)
        return mu, self.log_sigma.expand_as(mu)


class LinearDecoder(nn.Module):
    """z [B, latent] -> (W z + mu, log sigma), where log sigma is one learned number."""

    def __init__(self, latent: int, inputs: int) -> None:
        super().__init__()
        self.mean = nn.Linear(latent, inputs)
        self.log_sigma = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps z to (mean, log sigma), each [B, inputs]."""
        mean = self.mean(z)
        return mean, self.log_sigma.expand_as(mean)


@remembered
@checks.arguments
def linear_vae(inputs: Count, latent: Count, sigma2: Positive | None = None) -> VAE:
    """A VAE with p(x|z) = N(W z + mu, sigma² I) and q(z|x) = N(V x + c, diag(sigma_q²)), with one sigma_q for all x.

    This is probabilistic PCA. Its log p(x), its true posterior (which q can equal if W's columns are orthogonal) and
    its optimal W are known in closed form: see `funcvae.evaluate.ppca`.

    Args:
        inputs: D, the dimension of x [B, D].
        latent: Z.
        sigma2: variance of p(x|z); learned unless given.

    Reference: Lucas, Tucker, Grosse & Norouzi (2019), arXiv:1911.02469.
    """
    learned = sigma2 is None
    return vae(
        encoder=lambda: LinearEncoder(inputs, latent),
        decoder=(lambda: LinearDecoder(latent, inputs)) if learned else (lambda: nn.Linear(latent, inputs)),
        posterior=heads.normal_logsigma,
        likelihood=heads.normal_logsigma if sigma2 is None else heads.normal_fixed(math.sqrt(sigma2)),
        latent=latent,
    )
