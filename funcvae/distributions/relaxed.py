"""Continuous relaxations of discrete distributions, with a temperature λ.

Their samples are reparameterised, and tend to those of the discrete distribution as λ -> 0. A bound with a relaxed
posterior takes its density, not the probabilities of the discrete one, and needs a prior with a density on (0, 1), such
as `priors.concrete`. Reference: Maddison, Mnih & Teh (2017), arXiv:1611.00712.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from funcvae.distributions.discrete import gumbel, minus_log_u

__all__ = ["RelaxedBernoulli", "RelaxedCategorical"]


class RelaxedBernoulli(NamedTuple):
    """z = sigmoid((logits + l)/λ) in (0, 1), with logistic noise l."""

    logits: Tensor
    temperature: Tensor
    """λ, without axes."""

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def mean(self) -> Tensor:
        """The median sigmoid(logits/λ), near the mean, which has no closed form."""
        return (self.logits / self.temperature).sigmoid()

    @property
    def loc(self) -> Tensor:
        """The median."""
        return self.mean

    def log_prob(self, z: Tensor) -> Tensor:
        """log λ - l - 2 log(1 + exp(-l)) - log z(1 - z) with l = λ logit(z) - logits, elementwise, in nats."""
        l = self.temperature * z.logit() - self.logits  # noqa: E741
        return self.temperature.log() - l - 2 * torch.nn.functional.softplus(-l) - z.log() - torch.log1p(-z)

    def sample(self, eps: Tensor) -> Tensor:
        """sigmoid((logits + logit(u))/λ) with u = Φ(eps), clipped to the open interval that the dtype can express."""
        logistic = minus_log_u(-eps) - minus_log_u(eps)
        return _inside(((self.logits + logistic) / self.temperature).sigmoid())


class RelaxedCategorical(NamedTuple):
    """z = softmax((logits + g)/λ) on the simplex of each variable, with Gumbel noise g; z has V·C elements."""

    logits: Tensor
    """[..., V, C]: unnormalised log-probabilities."""
    temperature: Tensor
    """λ, without axes."""

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def mean(self) -> Tensor:
        """softmax(logits/λ) [..., V·C], near the mean, which has no closed form."""
        return (self.logits / self.temperature).softmax(-1).flatten(-2)

    @property
    def loc(self) -> Tensor:
        """The same."""
        return self.mean

    def log_prob(self, z: Tensor) -> Tensor:
        """The log-densities of the variables' first C - 1 elements, summed over the variables, in nats.

        Of each it is log (C-1)! + (C-1) log λ + sum_c (l_c - log z_c) - C log sum_c exp(l_c), with
        l_c = logits_c - λ log z_c.
        """
        log_z = z.unflatten(-1, self.logits.shape[-2:]).log()
        classes, l = log_z.shape[-1], self.logits - self.temperature * log_z  # noqa: E741
        constant = math.lgamma(classes) + (classes - 1) * self.temperature.log()
        return (constant + (l - log_z).sum(-1) - classes * l.logsumexp(-1)).sum(-1)

    def sample(self, eps: Tensor) -> Tensor:
        """softmax((logits + g)/λ) with g = -log(-log u) and u = Φ(eps), clipped as in `RelaxedBernoulli`."""
        scores = self.logits + gumbel(eps).unflatten(-1, self.logits.shape[-2:])
        return _inside((scores / self.temperature).softmax(-1).flatten(-2))


def _inside(z: Tensor) -> Tensor:
    """Numbers clipped to the open interval (0, 1): on its ends, where rounding may put them, there is no density."""
    return z.clamp(torch.finfo(z.dtype).tiny, 1 - torch.finfo(z.dtype).eps / 2)
