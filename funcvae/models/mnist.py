"""VAEs of MNIST's digits with a latent plane one can look at."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from funcvae import heads
from funcvae.models.recipe import Recipe
from funcvae.vae import VAE, vae


class VariationalEncoder(nn.Module):
    """Images [B, 1, 28, 28] -> (mu, log sigma), each [B, latent]."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(784, 512)
        self.linear2 = nn.Linear(512, latent)
        self.linear3 = nn.Linear(512, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, ...] of 784 pixels -> (mu, log sigma)."""
        h = F.relu(self.linear1(x.flatten(1)))
        return self.linear2(h), self.linear3(h)


class Decoder(nn.Module):
    """Latents [B, latent] -> images [B, 1, 28, 28] in [0, 1]."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(latent, 512)
        self.linear2 = nn.Linear(512, 784)

    def forward(self, z: Tensor) -> Tensor:
        """z [B, latent] -> images."""
        h = F.relu(self.linear1(z))
        return self.linear2(h).sigmoid().unflatten(-1, (1, 28, 28))


def mnist_vae(latent: int = 2) -> VAE:
    """784-512-2 with sigma = exp(.): summed squared error plus KL, as a proper bound in nats.

    The squared error is a Gaussian likelihood of sigma = √½, so minus the bound is the usual loss

        ‖x - x̂‖² + KL(q(z|x) ‖ N(0, I))

    plus the constant 392 log π. After the blog post "Variational AutoEncoders (VAE) with PyTorch", whose KL, sigma² +
    mu² - log sigma - ½, has its minimum at sigma = 1/√2; here it is ½ (sigma² + mu² - 1) - log sigma, with its minimum
    at 1.
    """
    return vae(
        encoder=lambda: VariationalEncoder(latent),
        decoder=lambda: Decoder(latent),
        posterior=heads.normal_logsigma,
        likelihood=heads.normal_fixed(math.sqrt(0.5)),
        latent=latent,
    )


RECIPES = (
    Recipe(
        name="mnist_vae",
        about="784-512-2, sigma = exp(.), summed squared error: digits in a plane",
        model=lambda train: mnist_vae(),
        shape=(1, 28, 28),
        data="mnist",
        epochs=20,
    ),
)
