"""The interfaces of distributions."""

from typing import Protocol

from torch import Tensor

__all__ = ["Distribution", "FinitePosterior", "Posterior"]


class Distribution(Protocol):
    """The interface of a distribution over x: a pytree of tensors with these methods.

    The first tensor of a likelihood has the shape of the data, after any leading axes of z. If a likelihood also has a
    `support`, the least and the greatest x, the data are checked against it.
    """

    @property
    def mean(self) -> Tensor:
        """E[x]."""

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density of x in nats, elementwise."""

    def sample(self, eps: Tensor) -> Tensor:
        """A draw, as a function of standard normal noise."""


class Posterior(Distribution, Protocol):
    """A distribution over z with a centre `loc`, which figures of the latent space show.

    It may have an attribute `reparameterised`: whether the derivatives of `sample` in the fields are those of its
    values. Without it, `is_reparameterised` compares them.
    """

    @property
    def loc(self) -> Tensor:
        """The centre [B, Z]."""


class FinitePosterior(Posterior, Protocol):
    """A posterior of independent variables of W adjacent latents each, with finitely many values.

    `log_prob` is elementwise. It must be summed over the latents of a variable.
    """

    def values(self) -> Tensor:
        """The values of a variable [S, W]."""
