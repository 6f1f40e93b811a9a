"""The VAEs of Burda et al. (2016) on dynamically binarized MNIST, with one stochastic layer and with two."""

from dataclasses import replace
from itertools import accumulate

import torch
from torch import Tensor, nn

from funcvae import heads
from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae._support.pickling import remembered
from funcvae.distributions import Layers, Normal, TopDown, layers_of
from funcvae.model import VAE, vae
from funcvae.models._layers import Mean, glorot, mean_of, pixels
from funcvae.models.recipe import Recipe, binarize
from funcvae.models.system import System
from funcvae.optim import Schedule, piecewise

__all__ = [
    "SYSTEMS", "Burda2Encoder", "Burda2Prior", "BurdaDecoder", "BurdaEncoder", "burda2_vae", "burda_schedule",
    "burda_vae",
]  # fmt: skip


class BurdaEncoder(nn.Module):
    """Images, or other inputs -> (mu, log sigma), each [B, latent]."""

    def __init__(self, latent: int, inputs: int = 784, units: int = 200) -> None:
        super().__init__()
        self.hidden = nn.Sequential(glorot(inputs, units), nn.Tanh(), glorot(units, units), nn.Tanh())
        self.mu = glorot(units, latent)
        self.log_sigma = glorot(units, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x [B, ...] to (mu, log sigma)."""
        h = self.hidden(x.flatten(1))
        return self.mu(h), self.log_sigma(h)

    def layers(self) -> Layers:
        """The weights, for a distribution that depends on another latent through this network."""
        mu, log_sigma = self.mu, self.log_sigma
        both = torch.cat([mu.weight, log_sigma.weight]), torch.cat([mu.bias, log_sigma.bias])
        return *layers_of(self.hidden), both


class Burda2Encoder(nn.Module):
    """Images -> (mu, log sigma) of the first stochastic layer, and the weights of the network to the second."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.first = BurdaEncoder(first)
        self.second = BurdaEncoder(second, first, 100)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Layers]:
        """Maps x [B, ...] of 784 pixels to (mu, log sigma, layers)."""
        return *self.first(x), self.second.layers()


class Burda2Prior(nn.Module):
    """The prior N(h2; 0, I) p(h1|h2)."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.first = BurdaEncoder(first, second, 100)
        self.second = second

    def forward(self, z: Tensor) -> TopDown:
        """Returns p(z); only dtype and device of z are used."""
        return TopDown(Normal(z.new_zeros(self.second), z.new_ones(self.second)), self.first.layers())


class BurdaDecoder(nn.Module):
    """Latents [B, latent or more] -> logits [B, 1, 28, 28]. It reads the first `latent` of them."""

    def __init__(self, latent: int, mean: Tensor) -> None:
        super().__init__()
        self.latent = latent
        self.hidden = nn.Sequential(glorot(latent, 200), nn.Tanh(), glorot(200, 200), nn.Tanh())
        self.output = glorot(200, 784)
        with torch.no_grad():
            self.output.bias.copy_(mean.flatten().clamp(0.001, 0.999).logit())

    def forward(self, z: Tensor) -> Tensor:
        """Maps z to logits."""
        return self.output(self.hidden(z[..., : self.latent])).unflatten(-1, (1, 28, 28))


@remembered
@checks.arguments
def burda_vae(latent: Count = 50, mean: Mean | None = None) -> VAE:
    """A VAE with a tanh encoder 784-200-200-50, sigma = exp(.), and a Bernoulli decoder 50-200-200-784.

    Initial weights are Glorot-uniform and biases zero, except for the output's bias. The recipe's optimizer is the
    standard Adam with eps = 1e-4. The authors' code differs: β1 = 0.99 instead of the paper's 0.9, eps is added to the
    uncorrected √v, and gradients are summed over the batch.

    Args:
        latent: Z.
        mean: mean of the training images [1, 28, 28]. The output's bias starts at its logit, clipped to [.001, .999].
            By default, the mean is one half.

    Raises:
        BadValue: mean does not have 784 pixels.

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.
    """
    start = pixels(mean)
    return vae(
        encoder=lambda: BurdaEncoder(latent),
        decoder=lambda: BurdaDecoder(latent, start),
        posterior=heads.normal_logsigma,
        likelihood=heads.bernoulli,
        latent=latent,
    )


@remembered
@checks.arguments
def burda2_vae(first: Count = 100, second: Count = 50, mean: Mean | None = None) -> VAE:
    """A VAE with two stochastic layers, z = (h1, h2), tanh networks, sigma = exp(.), and a Bernoulli decoder.

        q(z|x) = q(h1|x) q(h2|h1)    784-200-200-100 and 100-100-100-50
        p(z) = N(h2; 0, I) p(h1|h2)    50-100-100-100
        p(x|z) = p(x|h1)    100-200-200-784

    KL(q(z|x) ‖ p(z)) has no closed form, so only estimators that sample it can be used, such as `elbo_mc` and `iwae`.
    The weights start and the optimizer works as in `burda_vae`, and so do they differ from the authors' code.

    Args:
        first: the number of units of h1. The latent of the model is `first` + `second`.
        second: the number of units of h2.
        mean: see `burda_vae`.

    Raises:
        BadValue: mean does not have 784 pixels.

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.
    """
    start = pixels(mean)
    return vae(
        encoder=lambda: Burda2Encoder(first, second),
        decoder=lambda: BurdaDecoder(first, start),
        prior=lambda: Burda2Prior(first, second),
        posterior=heads.two_layers,
        likelihood=heads.bernoulli,
        latent=first + second,
    )


@remembered
@checks.arguments
def burda_schedule(steps_per_epoch: Count) -> Schedule:
    """The paper's learning rate: for i = 1 … 8, 3^(i-1) epochs at 1e-4 · round(10^(1 - (i-1)/7), 1); 3,280 in total."""
    rates = [1e-4 * round(10 ** (1 - i / 7), 1) for i in range(8)]
    epochs = [0, *accumulate(3**i for i in range(7))]  # 0, 1, 4, 13, …
    return piecewise({epoch * steps_per_epoch: rate for epoch, rate in zip(epochs, rates, strict=True)})


def _burda(train: Tensor | None = None, latent: Count = 50) -> VAE:
    return burda_vae(latent, mean_of(train))


def _burda2(train: Tensor | None = None, first: Count = 100, second: Count = 50) -> VAE:
    return burda2_vae(first, second, mean_of(train))


_RECIPE = Recipe(
    shape=(1, 28, 28),
    data="mnist",
    observe=binarize,
    lr=burda_schedule,
    eps=1e-4,
    epochs=3280,
    batch=20,
)
SYSTEMS = (
    System(
        "burda_vae",
        "VAE 784-200-200-50 of dynamically binarized digits with a Bernoulli likelihood: a published benchmark",
        _burda,
        _RECIPE,
    ),
    System(
        "burda2_vae",
        "VAE of the same digits with two stochastic layers, of 100 and 50 units; sampled KL",
        _burda2,
        replace(_RECIPE, estimator="elbo_mc"),
    ),
)
