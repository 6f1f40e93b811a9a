"""Distributions over finitely many values."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae._support.reprs import short_repr

__all__ = ["Bernoulli", "Categorical", "gumbel", "minus_log_u", "uniform"]


@short_repr
class Bernoulli(NamedTuple):
    """Independent Bernoullis with p(x = 1) = sigmoid(logits).

    For grey values, x strictly between 0 and 1, `log_prob` is minus the cross-entropy and not a log-likelihood.
    """

    logits: Tensor
    """log p(1) - log p(0) of each variable."""

    @property
    def reparameterised(self) -> bool:
        """Samples are 0 or 1: their derivatives are not those of their values."""
        return False

    @property
    def support(self) -> tuple[float, float]:
        """The least and the greatest x."""
        return (0.0, 1.0)

    @property
    def mean(self) -> Tensor:
        """p(x = 1) = sigmoid(logits)."""
        return self.logits.sigmoid()

    @property
    def loc(self) -> Tensor:
        """The mean."""
        return self.mean

    def values(self) -> Tensor:
        """The values of one latent: 0 and 1, as [2, 1]."""
        return torch.arange(2, dtype=self.logits.dtype, device=self.logits.device).unsqueeze(1)

    @classmethod
    def of_mean(cls, mean: Tensor) -> "Bernoulli":
        """The Bernoulli with this mean."""
        return cls(mean.logit())

    def log_prob(self, x: Tensor) -> Tensor:
        """x log p + (1 - x) log(1 - p) = x · logits - log(1 + exp(logits)), elementwise, in nats."""
        a = self.logits
        if torch.compiler.is_compiling():
            # The compiler cannot `vmap` an autograd.Function, so it differentiates the formula of _BernoulliLogProb. It
            # would store the results of exp in memory, because they are used twice, but does not store those of exp2.
            # (The second derivative is 0 at a = 0.)
            size = a.abs()
            return x * a - (a + size) / 2 - (1 + torch.exp2(size * -math.log2(math.e))).log()
        return _BernoulliLogProb.apply(a, x)

    def sample(self, eps: Tensor) -> Tensor:
        """1 where the uniform number u = Φ(eps) is below the mean, else 0."""
        # The odds u/(1 - u) are compared with exp(logits), because the mean and u may round to 1.
        return (uniform(eps) < self.logits.exp() * uniform(-eps)).to(self.logits.dtype)


class _BernoulliLogProb(torch.autograd.Function):
    """x a - log(1 + exp a) for logits a, and its derivatives x - sigmoid(a) and a.

    Apart from matrix products, most of a step's time is spent here. So log(1 + exp a) is computed as
    max(a, 0) + log(1 + exp(-|a|)). Its log(1 + ·) has an absolute error of half a unit in the last place of 1 and takes
    a tenth of the time of log1p. Autograd would derive less simple derivatives from this.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, x: Tensor) -> Tensor:
        rest = a.abs().neg_().exp_().add_(1).log_()
        return (x * a).sub_(rest.add_(a.relu()))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, along_a: Tensor, along_x: Tensor | None) -> Tensor:
        a, x = ctx.saved_tensors
        out = (x - a.sigmoid()) * along_a
        return out if along_x is None else out + a * along_x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor | None]:
        a, x = ctx.saved_tensors
        along_x = (g * a).sum_to_size(x.shape) if ctx.needs_input_grad[1] else None
        return ((x - a.sigmoid()) * g).sum_to_size(a.shape), along_x


@short_repr
class Categorical(NamedTuple):
    """Independent variables of C classes each, as one-hot vectors: x has V·C elements, those of a variable adjacent."""

    logits: Tensor
    """Unnormalised log-probabilities [..., V, C]."""

    @property
    def reparameterised(self) -> bool:
        """Samples are one-hot: their derivatives are not those of their values."""
        return False

    @property
    def mean(self) -> Tensor:
        """The probabilities [..., V·C]: the softmax of the logits of each variable."""
        return self.logits.softmax(-1).flatten(-2)

    @property
    def loc(self) -> Tensor:
        """The mean."""
        return self.mean

    def values(self) -> Tensor:
        """The values of one variable: the one-hot vectors, as [C, C]."""
        return torch.eye(self.logits.shape[-1], dtype=self.logits.dtype, device=self.logits.device)

    def of_mean(self, mean: Tensor) -> "Categorical":
        """The Categorical with this mean."""
        return Categorical(mean.unflatten(-1, self.logits.shape[-2:]).log())

    def log_prob(self, x: Tensor) -> Tensor:
        """x log p of each element, in nats; their sum over a variable is the log-probability of its class."""
        return x * self.logits.log_softmax(-1).flatten(-2)

    def sample(self, eps: Tensor) -> Tensor:
        """One-hot vectors of argmax_c (logits_c + g_c), with Gumbel noise g_c = -log(-log u_c) from u_c = Φ(eps_c).

        Each class has its own noise. Reference: Maddison, Tarlow & Minka (2014), "A* sampling".
        """
        scores = self.logits + gumbel(eps).unflatten(-1, self.logits.shape[-2:])
        classes = torch.arange(scores.shape[-1], device=scores.device)
        return (classes == scores.argmax(-1, keepdim=True)).to(scores.dtype).flatten(-2)


def uniform(eps: Tensor) -> Tensor:
    """The uniform number u = Φ(eps) = erfc(-eps/√2)/2. (`torch.special.ndtr` is not accurate near 0.)"""
    return 0.5 * torch.erfc(eps * -math.sqrt(0.5))


def minus_log_u(eps: Tensor) -> Tensor:
    """-log u, accurate where u rounds to 1. (`torch.special.log_ndtr` has no rule for `vmap`.)"""
    tail = uniform(-eps.abs())
    return -torch.where(eps > 0, torch.log1p(-tail), tail.log())


def gumbel(eps: Tensor) -> Tensor:
    """Gumbel noise -log(-log u)."""
    return -minus_log_u(eps).log()
