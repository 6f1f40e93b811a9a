"""The sigmoid belief nets on which ARM, DisARM and RELAX were compared: Bernoulli latents, binarized MNIST."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor, nn

from funcvae import heads, priors
from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae._support.pickling import remembered
from funcvae.model import VAE, vae
from funcvae.models._layers import Mean, glorot, mean_of, pixels
from funcvae.models.recipe import Recipe, binarize
from funcvae.models.system import System

__all__ = ["SYSTEMS", "SbnDecoder", "SbnEncoder", "sbn_vae"]

Sizes = Annotated[
    Sequence[int], checks.sizes, checks.that(lambda sizes: min(sizes, default=1) >= 1, "numbers of at least 1")
]


class SbnEncoder(nn.Module):
    """Images -> logits [B, latent]."""

    def __init__(self, latent: int, hidden: Sequence[int], mean: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.empty(784).copy_(mean), requires_grad=False)
        self.layers = _dense(784, *hidden, latent)

    def forward(self, x: Tensor) -> Tensor:
        """Maps x [B, ...] of 784 pixels to logits."""
        return self.layers(x.flatten(1) - self.mean)


class SbnDecoder(nn.Module):
    """Latents [B, latent] -> logits [B, 1, 28, 28]."""

    def __init__(self, latent: int, hidden: Sequence[int], mean: Tensor) -> None:
        super().__init__()
        self.layers = _dense(latent, *hidden, 784)
        with torch.no_grad():
            self.layers[-1].get_parameter("bias").copy_(mean.clamp(0.001, 0.999).logit())

    def forward(self, z: Tensor) -> Tensor:
        """Maps z to logits."""
        return self.layers(2 * z - 1).unflatten(-1, (1, 28, 28))


@remembered
@checks.arguments
def sbn_vae(
    latent: Count = 200,
    hidden: Sizes = (),
    mean: Mean | None = None,
) -> VAE:
    """A VAE with Bernoulli latents, a learned Bernoulli prior and a Bernoulli likelihood.

        q(z|x) = Bernoulli(f(x - mean))    784-200, or 784-200-200-200 with hidden = (200, 200)
        p(x|z) = Bernoulli(g(2z - 1))      200-784, or 200-200-200-784

    f and g are linear maps with LeakyReLU of slope 0.3 between them. Initial weights are Glorot-uniform, and biases and
    the prior's logits zero, except for the output's bias.

    The recipes use Adam at 1e-4 and batches of 50 for 1e6 steps, as the authors do. The authors' code differs: the
    prior is trained by gradient descent at 1e-2, and on 50,000 images instead of all 60,000.

    Args:
        latent: Z.
        hidden: units in the hidden layers of the encoder; the decoder has them in reverse order. By default, both
            networks are linear.
        mean: mean of the training images [1, 28, 28], one half by default. It is subtracted from x, and the output's
            bias starts at its logit, clipped to [.001, .999].

    Raises:
        BadValue: mean does not have 784 pixels, or a hidden layer has no units.

    Reference: Dong, Mnih & Tucker (2020), arXiv:2006.10680, section 6.2.
    """
    start = pixels(mean)
    return vae(
        encoder=lambda: SbnEncoder(latent, hidden, start),
        decoder=lambda: SbnDecoder(latent, hidden[::-1], start),
        prior=priors.learned_bernoulli(latent),
        posterior=heads.bernoulli,
        likelihood=heads.bernoulli,
        latent=latent,
    )


def _dense(*sizes: int) -> nn.Sequential:
    """Linear layers between these sizes, with LeakyReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [glorot(inputs, outputs), nn.LeakyReLU(0.3)]
    return nn.Sequential(*layers[:-1])


def _linear(train: Tensor | None = None, latent: Count = 200, hidden: Sizes = ()) -> VAE:
    return sbn_vae(latent, hidden, mean_of(train))


def _nonlinear(train: Tensor | None = None, latent: Count = 200, hidden: Sizes = (200, 200)) -> VAE:
    return sbn_vae(latent, hidden, mean_of(train))


_RECIPE = Recipe(
    shape=(1, 28, 28),
    data="mnist",
    observe=binarize,
    estimator="disarm",
    lr=lambda steps_per_epoch: 1e-4,
    epochs=834,  # 1e6 steps
    batch=50,
)
_ABOUT = "VAE of binarized digits with 200 Bernoulli latents and {} networks: a published benchmark"
SYSTEMS = (
    System("sbn_vae", _ABOUT.format("linear"), _linear, _RECIPE),
    System("sbn_nonlinear_vae", _ABOUT.format("LeakyReLU"), _nonlinear, _RECIPE),
)
