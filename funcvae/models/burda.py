"""The VAE of Burda et al. (2016): one stochastic layer of 50 units on dynamically binarized MNIST."""

from itertools import accumulate
from typing import Annotated

import torch
from torch import Tensor, nn

from funcvae import heads
from funcvae._support import checks
from funcvae._support.checks import Count
from funcvae._support.pickling import remembered
from funcvae.errors import BadValue
from funcvae.model import VAE, from_bytes, vae
from funcvae.models.recipe import Recipe, binarize
from funcvae.optim import Schedule

__all__ = ["RECIPES", "BurdaDecoder", "BurdaEncoder", "burda_schedule", "burda_vae"]


class BurdaEncoder(nn.Module):
    """Images -> (mu, log sigma), each [B, latent]."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(_glorot(784, 200), nn.Tanh(), _glorot(200, 200), nn.Tanh())
        self.mu = _glorot(200, latent)
        self.log_sigma = _glorot(200, latent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Maps x [B, ...] of 784 pixels to (mu, log sigma)."""
        h = self.hidden(x.flatten(1))
        return self.mu(h), self.log_sigma(h)


class BurdaDecoder(nn.Module):
    """Latents [B, latent] -> logits [B, 1, 28, 28]."""

    def __init__(self, latent: int, mean: Tensor) -> None:
        super().__init__()
        self.hidden = nn.Sequential(_glorot(latent, 200), nn.Tanh(), _glorot(200, 200), nn.Tanh())
        self.output = _glorot(200, 784)
        with torch.no_grad():
            self.output.bias.copy_(mean.flatten().clamp(0.001, 0.999).logit())

    def forward(self, z: Tensor) -> Tensor:
        """Maps z [B, latent] to logits."""
        return self.output(self.hidden(z)).unflatten(-1, (1, 28, 28))


@remembered
@checks.arguments
def burda_vae(latent: Count = 50, mean: Annotated[Tensor, checks.floating, checks.concrete] | None = None) -> VAE:
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
    start = torch.full((784,), 0.5)
    if mean is not None:
        if mean.numel() != 784:
            raise BadValue(f"mean has shape {list(mean.shape)}: it must be [1, 28, 28]")
        start = mean.cpu()
    return vae(
        encoder=lambda: BurdaEncoder(latent),
        decoder=lambda: BurdaDecoder(latent, start),
        posterior=heads.normal_logsigma,
        likelihood=heads.bernoulli,
        latent=latent,
    )


@remembered
@checks.arguments
def burda_schedule(steps_per_epoch: Count) -> Schedule:
    """The paper's learning rate: for i = 1 … 8, 3^(i-1) epochs at 1e-4 · round(10^(1 - (i-1)/7), 1); 3,280 in total."""
    rates = [1e-4 * round(10 ** (1 - i / 7), 1) for i in range(8)]
    ends = list(accumulate(3**i for i in range(8)))  # 1, 4, 13, … 3280 epochs

    def lr(step: Tensor) -> Tensor:
        rate = torch.full((), rates[-1], dtype=torch.float64, device=step.device)
        for end, earlier in reversed(list(zip(ends, rates, strict=True))):
            rate = torch.where(step < end * steps_per_epoch, earlier, rate)
        return rate

    return lr


def _glorot(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


RECIPES = (
    Recipe(
        name="burda_vae",
        about="VAE 784-200-200-50 of dynamically binarized digits with a Bernoulli likelihood: a published benchmark",
        model=lambda train: burda_vae(mean=from_bytes(train).mean(0)),
        shape=(1, 28, 28),
        data="mnist",
        observe=binarize,
        lr=burda_schedule,
        eps=1e-4,
        epochs=3280,
        batch=20,
    ),
)
