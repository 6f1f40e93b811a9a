"""Autoencoders of MNIST digits from blog posts, with a squared error as loss.

A squared error is a Gaussian likelihood of fixed scale:

    C ‖x - x̂‖² = -log N(x; x̂, c I) - ½ D log 2πc    with C = 1/(2c).

A mean over pixels is the same objective times a constant. A plain autoencoder is a VAE whose posterior is a point. So
all systems maximize an ELBO, and differ only in their networks and heads. The `scale` and `offset` of a recipe convert
the ELBO to the loss that the post prints.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from funcvae import heads
from funcvae._support import checks
from funcvae._support.checks import Positive
from funcvae._support.pickling import remembered
from funcvae.model import VAE, vae
from funcvae.models.recipe import Recipe, from_tanh_range, to_tanh_range
from funcvae.models.system import System
from funcvae.train.settings import per_example, summed

__all__ = [
    "SYSTEMS", "BatchNormEncoder", "Decoder", "Encoder", "VariationalEncoder", "mnist_ae", "mnist_bn_vae",
    "mnist_sigma_vae", "mnist_vae",
]  # fmt: skip

PIXELS = 784
SIGMA = math.sqrt(0.5)  # makes -log N(x; x̂, sigma²) equal to (x - x̂)² plus a constant


class Encoder(nn.Module):
    """Images [B, 1, 28, 28] -> codes [B, latent]."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(784, 512)
        self.linear2 = nn.Linear(512, latent)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [B, ...] of 784 pixels to codes."""
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class VariationalEncoder(nn.Module):
    """Images [B, 1, 28, 28] -> (mu, log sigma), each [B, latent]."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(784, 512)
        self.linear2 = nn.Linear(512, latent)
        self.linear3 = nn.Linear(512, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x [B, ...] of 784 pixels to (mu, log sigma)."""
        h = F.relu(self.linear1(x.flatten(1)))
        return self.linear2(h), self.linear3(h)


class Decoder(nn.Module):
    """Latents [B, latent] -> images [B, 1, 28, 28] in [0, 1]."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(latent, 512)
        self.linear2 = nn.Linear(512, 784)

    def forward(self, z: Tensor) -> Tensor:
        """Maps z [B, latent] to images."""
        h = F.relu(self.linear1(z))
        return self.linear2(h).sigmoid().unflatten(-1, (1, 28, 28))


@remembered
def mnist_ae(latent: int = 2) -> VAE:
    """A plain autoencoder 784-512-2: the posterior is a point, and the loss is the summed squared error.

        ‖x - x̂‖², x̂ = decoder(encoder(x))

    It follows the blog post "Variational AutoEncoders (VAE) with PyTorch". The codes do not follow the prior, so images
    decoded from samples of the prior are not typical of the model.
    """
    return vae(
        encoder=lambda: Encoder(latent),
        decoder=lambda: Decoder(latent),
        posterior=heads.delta,
        likelihood=heads.normal_fixed(SIGMA),
        latent=latent,
    )


@remembered
def mnist_vae(latent: int = 2) -> VAE:
    """A VAE 784-512-2 with sigma = exp(.), whose summed squared error plus KL is a proper bound in nats.

    The squared error is a Gaussian likelihood with sigma = √½, so minus the bound is the usual loss

        ‖x - x̂‖² + KL(q(z|x) ‖ N(0, I))

    plus the constant 392 log π. The model follows the blog post "Variational AutoEncoders (VAE) with PyTorch". The KL
    of the post, sigma² + mu² - log sigma - ½, has its minimum at sigma = 1/√2. Here the KL is
    ½ (sigma² + mu² - 1) - log sigma, with its minimum at sigma = 1.
    """
    return vae(
        encoder=lambda: VariationalEncoder(latent),
        decoder=lambda: Decoder(latent),
        posterior=heads.normal_logsigma,
        likelihood=heads.normal_fixed(SIGMA),
        latent=latent,
    )


class BatchNormEncoder(nn.Module):
    """Images [B, 1, 28, 28] -> (mu, log sigma²), each [B, latent], through 196, 49 and 28 units."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(784, 196),
            nn.ReLU(),
            nn.BatchNorm1d(196, momentum=0.7),
            nn.Linear(196, 49),
            nn.ReLU(),
            nn.BatchNorm1d(49, momentum=0.7),
            nn.Linear(49, 28),
            nn.LeakyReLU(),
        )
        self.hidden2mu = nn.Linear(28, latent)
        self.hidden2log_var = nn.Linear(28, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x [B, ...] of 784 pixels in [-1, 1] to (mu, log sigma²)."""
        hidden = self.encoder(x.flatten(1))
        return self.hidden2mu(hidden), self.hidden2log_var(hidden)


@remembered
@checks.arguments
def mnist_bn_vae(latent: int = 28, alpha: Positive = 1.0) -> VAE:
    """A VAE 784-196-49-28 with BatchNorm in the encoder and Tanh as the decoder's output, for pixels in [-1, 1].

    The likelihood is a Gaussian of variance 392/alpha, so minus the bound is

        alpha · mean_pixels (x - x̂)² + KL(q(z|x) ‖ N(0, I))

    plus the constant 392 log(784 π/alpha). The model follows the post "Introduction to Variational Autoencoders (VAEs)
    and Implementation with Pytorch", which prints the networks and alpha, but no loss. With alpha = 1 the KL
    goes to zero and every reconstruction is the mean image, because encoding a digit costs more nats than it saves.
    With alpha = 784 the squared error has the same weight as in the other digit systems.
    """
    return vae(
        encoder=lambda: BatchNormEncoder(latent),
        decoder=lambda: nn.Sequential(
            nn.Linear(latent, 49),
            nn.ReLU(),
            nn.Linear(49, 196),
            nn.ReLU(),
            nn.Linear(196, 784),
            nn.Tanh(),
            nn.Unflatten(-1, (1, 28, 28)),
        ),
        posterior=heads.normal_logvar,
        likelihood=heads.normal_fixed(math.sqrt(PIXELS / (2 * alpha))),
        latent=latent,
    )


@remembered
@checks.arguments
def mnist_sigma_vae(
    latent: int = 10,
    activation: Callable[[], nn.Module] = nn.ReLU,
    output: Callable[[], nn.Module] = nn.Sigmoid,
) -> VAE:
    """A VAE 784-256-64-20 whose encoder's output is split into mu and sigma of any sign: see `heads.signed_normal`.

    Minus the bound divided by 784 is, up to a constant, the posts' loss: mean squared error plus KL/784.

        mean_pixels (x - x̂)² + ½ sum_j (mu² + sigma² - log(sigma² + 1e-8) - 1) / 784

    Two blog posts print it. The later one has an activation after every layer of the encoder, including the last, so mu
    and sigma are never negative and often exactly zero. The earlier one ("Learning Day 37: Implementing Variational
    Autoencoder in Pytorch") prints no activations; it is `activation=nn.Identity, output=nn.Identity`.

    Args:
        latent: Z.
        activation: makes the module after each layer except the decoder's last.
        output: makes the module after the decoder's last layer.
    """
    return vae(
        encoder=lambda: nn.Sequential(
            nn.Flatten(),
            nn.Linear(784, 256),
            activation(),
            nn.Linear(256, 64),
            activation(),
            nn.Linear(64, 2 * latent),
            activation(),
        ),
        decoder=lambda: nn.Sequential(
            nn.Linear(latent, 64),
            activation(),
            nn.Linear(64, 256),
            activation(),
            nn.Linear(256, 784),
            output(),
            nn.Unflatten(-1, (1, 28, 28)),
        ),
        posterior=heads.signed_normal,
        likelihood=heads.normal_fixed(SIGMA),
        latent=latent,
    )


def _log_normaliser(sigma2: float) -> float:
    """½ D log 2π sigma², the part of -log N(x; x̂, sigma² I) that a squared error omits."""
    return 0.5 * PIXELS * math.log(2 * math.pi * sigma2)


def _offset(**options: Any) -> float:
    return _log_normaliser(SIGMA**2)


_SUMMED = Recipe(shape=(1, 28, 28), data="mnist", epochs=20, scale=summed, offset=_offset)

SYSTEMS = (
    System("mnist_ae", "plain autoencoder 784-512-2 of digits; loss: summed squared error", mnist_ae, _SUMMED),
    System(
        "mnist_vae", "VAE 784-512-2 of digits with a latent plane; loss: summed squared error + KL", mnist_vae, _SUMMED
    ),
    System(
        "mnist_bn_vae",
        "VAE 784-196-49-28 of digits with BatchNorm and Tanh; loss: mean squared error + KL",
        mnist_bn_vae,
        replace(
            _SUMMED, observe=to_tanh_range, pixels=from_tanh_range, scale=per_example,
            offset=lambda latent, alpha: _log_normaliser(PIXELS / (2 * alpha)),
        ),
    ),
    System(
        "mnist_sigma_vae",
        "VAE 784-256-64-20 of digits with a sigma of any sign; loss: mean squared error + KL/784",
        mnist_sigma_vae,
        replace(_SUMMED, epochs=50, batch=32, scale=lambda batch: 1 / PIXELS),
    ),
)  # fmt: skip
