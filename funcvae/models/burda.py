"""The published yardstick: one stochastic layer of 50 units on dynamically binarized MNIST."""

from itertools import accumulate

import torch
from torch import Tensor, nn

from funcvae import heads
from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.model import VAE, vae
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
        """x [B, ...] of 784 pixels -> (mu, log sigma)."""
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
        """z [B, latent] -> logits."""
        return self.output(self.hidden(z)).unflatten(-1, (1, 28, 28))


def burda_vae(latent: int = 50, mean: Tensor | None = None) -> VAE:
    """784-200-200-50 with tanh, sigma = exp(.), and a Bernoulli decoder 50-200-200-784.

    Weights start Glorot-uniform and biases at zero, the output's bias apart. The recipe's optimiser is the standard
    Adam with eps = 1e-4; the authors' own code differs (β1 = 0.99 where the paper says 0.9, eps added to the
    uncorrected √v, gradients summed over the batch).

    Args:
        latent: Z.
        mean: the training images' mean [1, 28, 28], at whose logit, clipped to [.001, .999], the output's bias starts.
            Grey, one half, unless given.

    Reference: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519.
    """
    start = torch.full((784,), 0.5)
    if mean is not None:
        start = checks.concrete("mean", mean, floating=True).cpu()
        if start.numel() != 784:
            raise BadValue(f"mean has shape {list(mean.shape)}: it must be an image's, [1, 28, 28]")
    return vae(
        encoder=lambda: BurdaEncoder(latent),
        decoder=lambda: BurdaDecoder(latent, start),
        posterior=heads.normal_logsigma,
        likelihood=heads.bernoulli,
        latent=latent,
    )


def burda_schedule(steps_per_epoch: int) -> Schedule:
    """The paper's learning rate: for i = 1 … 8, 3^(i-1) epochs at 1e-4 · round(10^(1 - (i-1)/7), 1); 3,280 in all."""
    checks.integer("steps_per_epoch", steps_per_epoch, 1, _MOST_STEPS)
    rates = [1e-4 * round(10 ** (1 - i / 7), 1) for i in range(8)]
    ends = list(accumulate(3**i for i in range(8)))  # 1, 4, 13, … 3280 epochs

    def lr(step: Tensor) -> Tensor:
        if checks.tensor("step", step).is_complex():
            raise BadValue(f"step is {step.dtype}: it must be a number of steps")
        rate = torch.full((), rates[-1], dtype=torch.float64, device=step.device)
        for end, earlier in reversed(list(zip(ends, rates, strict=True))):
            rate = torch.where(step < end * steps_per_epoch, earlier, rate)
        return rate

    return lr


_MOST_STEPS = 2**48  # an epoch; 3,280 times as many fit in an int64


def _glorot(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


RECIPES = (
    Recipe(
        name="burda_vae",
        about="784-200-200-50, Bernoulli on dynamically binarized MNIST: the published yardstick",
        model=lambda train: burda_vae(mean=train.mean(0)),
        shape=(1, 28, 28),
        data="mnist",
        observe=binarize,
        lr=burda_schedule,
        eps=1e-4,
        epochs=3280,
        batch=20,
    ),
)
