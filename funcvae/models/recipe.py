"""Recipes: what a named system trains with."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from funcvae import random
from funcvae.optim import Optimizer, Schedule, adam
from funcvae.train import Observe, as_is
from funcvae.vae import VAE


@dataclass(frozen=True)
class Recipe:
    """How a named system is trained, unless one says otherwise."""

    name: str
    about: str
    model: Callable[[Tensor], VAE]
    """Makes the model, from the training data (whose mean an output bias may start at)."""
    shape: tuple[int, ...]
    """Of one datum; images have pixels in [0, 1]."""
    data: str
    epochs: int
    batch: int = 128
    samples: int = 1
    estimator: str = "elbo"
    observe: Observe = as_is
    lr: Callable[[int], float | Schedule] = lambda steps_per_epoch: 1e-3
    eps: float = 1e-8
    compile: bool = True
    """Whether the command line compiles its step: a short run is over before the compiler would be done."""

    def optimizer(self, steps_per_epoch: int, lr: float | None = None) -> Optimizer:
        """The recipe's Adam, with its own learning rate or schedule unless one is given."""
        return adam(self.lr(steps_per_epoch) if lr is None else lr, eps=self.eps)


def binarize(key: random.Key, x: Tensor) -> Tensor:
    """Dynamic binarization: each pixel of x in [0, 1] is 1 with its grey value as probability, drawn anew each time."""
    return random.bernoulli(key, x).to(x.dtype)
