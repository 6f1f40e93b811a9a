"""Recipes: what a named system trains with."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from funcvae import random
from funcvae._support import checks
from funcvae.model import VAE, Observe, as_is
from funcvae.optim import Optimizer, Schedule, adam
from funcvae.train.settings import Scale, per_example

__all__ = ["Recipe", "binarize", "from_tanh_range", "to_tanh_range"]


@dataclass(frozen=True)
class Recipe:
    """How a named system is trained, unless one says otherwise."""

    name: str
    about: str
    model: Callable[[Tensor], VAE]
    """Makes the model for data such as the training set given, at whose mean an output bias may start."""
    shape: tuple[int | None, ...]
    """Of one datum, None where any length will do; images have pixels in [0, 1]."""
    data: str
    epochs: int
    batch: int = 128
    samples: int = 1
    estimator: str = "elbo"
    observe: Observe = as_is
    pixels: Callable[[Tensor], Tensor] = lambda x: x
    """From what the model sees or decodes to data again: pixels in [0, 1], where `observe` leaves that range."""
    scale: Scale = per_example
    offset: float = 0.0
    """With `scale`, makes the reported loss, scale(B) · (-bound - offset), the one that the system's source prints."""
    lr: Callable[[int], float | Schedule] = lambda steps_per_epoch: 1e-3
    eps: float = 1e-8
    compile: bool = True
    """Whether the command line compiles its step: not where a run is over before the compiler would be done, or where a
    step gains nothing."""

    def optimizer(self, steps_per_epoch: int, lr: float | None = None) -> Optimizer:
        """The recipe's Adam, with its own learning rate or schedule unless one is given."""
        checks.integer("steps_per_epoch", steps_per_epoch, 1)
        return adam(self.lr(steps_per_epoch) if lr is None else lr, eps=self.eps)


def binarize(key: random.Key, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Dynamic binarization: each pixel of x in [0, 1] is 1 with its grey value as probability, drawn anew each time.

    Args:
        key: used up.
        x: data [B, ...].
        rows: where in the batch they stand, unless they are the whole of it.
    """
    p = checks.tensor("x", x, floating=True)
    at = None if rows is None else random.flat_indices(tuple(p.shape), rows, device=p.device)
    return random.bernoulli(key, p, at=at).to(x.dtype)


def to_tanh_range(key: random.Key, x: Tensor, rows: Tensor | None = None) -> Tensor:
    """Pixels in [0, 1] scaled to [-1, 1], the range of a Tanh."""
    return 2 * checks.tensor("x", x, floating=True) - 1


def from_tanh_range(x: Tensor) -> Tensor:
    """The inverse of `to_tanh_range`."""
    return (checks.tensor("x", x, floating=True) + 1) / 2
