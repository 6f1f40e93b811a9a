"""Distributions over finitely many values."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Bernoulli"]


class Bernoulli(NamedTuple):
    """Independent Bernoullis with p(x = 1) = sigmoid(logits).

    For grey values, x strictly between 0 and 1, `log_prob` is minus the cross-entropy and not a log-likelihood.
    """

    logits: Tensor

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
        """1 where the uniform number Φ(eps) is below the mean, else 0."""
        return (torch.special.ndtr(eps) < self.mean).to(self.logits.dtype)


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
