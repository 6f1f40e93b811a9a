"""Continuous relaxations of discrete distributions, with a temperature λ.

Their samples are reparameterised, and tend to those of the discrete distribution from the same noise as λ -> 0. A bound
with a relaxed posterior takes its density, not the probabilities of the discrete one, and needs a prior with a density
on (0, 1), such as `funcvae.priors.concrete`.

Samples are clipped to numbers between 0 and 1 that the dtype can express. Where that moves them, `log_prob` is not
their log-density. It moves a RelaxedBernoulli's samples with logit(z) above 16.6 in float32, and 36.7 in float64. If
those are frequent (at low temperatures), use float64.

Reference: Maddison, Mnih & Teh (2017), arXiv:1611.00712.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from funcvae._support.reprs import short_repr
from funcvae.distributions.discrete import gumbel, minus_log_u

__all__ = ["RelaxedBernoulli", "RelaxedCategorical"]


@short_repr
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
        """sigmoid(logits/√(1 + λ²)), within 0.011 of the mean, which has no closed form."""
        return (self.logits / (1 + self.temperature**2).sqrt()).sigmoid()

    @property
    def loc(self) -> Tensor:
        """The mean."""
        return self.mean

    def log_prob(self, z: Tensor) -> Tensor:
        """log λ + log sigmoid(l) + log sigmoid(-l) - log z(1 - z), l = λ logit(z) - logits, elementwise, in nats."""
        log_z, log_rest = z.log(), (-z).log1p()
        l = self.temperature * (log_z - log_rest) - self.logits  # noqa: E741
        return self.temperature.log() + logsigmoid(l) + logsigmoid(-l) - log_z - log_rest

    def sample(self, eps: Tensor) -> Tensor:
        """sigmoid((logits - logit u)/λ) with u = Φ(eps), as `Bernoulli.sample` is 1 where logit u < logits."""
        logistic = minus_log_u(eps) - minus_log_u(-eps)
        return _inside(((self.logits + logistic) / self.temperature).sigmoid())


@short_repr
class RelaxedCategorical(NamedTuple):
    """z = softmax((logits + g)/λ) on the simplex of each variable, with Gumbel noise g; z has V·C elements."""

    logits: Tensor
    """Unnormalised log-probabilities [..., V, C]."""
    temperature: Tensor
    """λ, without axes."""

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def mean(self) -> Tensor:
        """softmax(logits/√(1 + λ²)) [..., V·C], within 0.02 of the mean, which has no closed form."""
        return (self.logits / (1 + self.temperature**2).sqrt()).softmax(-1).flatten(-2)

    @property
    def loc(self) -> Tensor:
        """The mean."""
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
        """softmax((logits + g)/λ) with the Gumbel noise g = -log(-log u), u = Φ(eps), of `Categorical.sample`."""
        scores = self.logits + gumbel(eps).unflatten(-1, self.logits.shape[-2:])
        return _inside((scores / self.temperature).softmax(-1).flatten(-2))


def _inside(z: Tensor) -> Tensor:
    """Numbers clipped to an interval inside (0, 1), on which the derivatives of the density do not overflow."""
    info = torch.finfo(z.dtype)
    return z.clamp(info.tiny / info.eps, 1 - info.eps / 2)
