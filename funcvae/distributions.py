"""Distributions as NamedTuples of tensors, which `vmap`, `vjp` and `torch.compile` accept.

`log_prob` is elementwise; `funcvae.model` sums it over the axes of a datum. `sample` is a function of standard normal
noise.
"""

import math
from typing import Any, NamedTuple, Protocol

import torch
from numpy.polynomial.legendre import leggauss
from torch import Tensor

from funcvae import random, tree
from funcvae._support import checks
from funcvae.errors import BadType

__all__ = [
    "Bernoulli", "Delta", "Distribution", "Normal", "Posterior", "SignedNormal", "is_reparameterised", "kl",
]  # fmt: skip


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


class Normal(NamedTuple):
    """Independent normals N(loc, sigma²)."""

    loc: Tensor
    sigma: Tensor

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def support(self) -> tuple[float, float]:
        """The least and the greatest x."""
        return (-math.inf, math.inf)

    @property
    def mean(self) -> Tensor:
        """The mean: loc."""
        return self.loc

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; loc, sigma²) = -½ ((x - loc)/sigma)² - log sigma - ½ log 2π, elementwise, in nats."""
        return -0.5 * ((x - self.loc) / self.sigma) ** 2 - self.sigma.log() - 0.5 * math.log(2 * math.pi)

    def sample(self, eps: Tensor) -> Tensor:
        """loc + sigma · eps."""
        return self.loc + self.sigma * eps


class SignedNormal(NamedTuple):
    """A normal whose sigma may have any sign or be zero, as in code that does not exponentiate the network's output.

    Samples are loc + sigma · eps, with variance sigma². `log_prob` and the logarithm in `kl` use sigma² + 1e-8, which
    keeps them finite at sigma = 0. So `log_prob` is not the density of the samples, and no estimator's claims hold.
    """

    loc: Tensor
    sigma: Tensor

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def mean(self) -> Tensor:
        """The mean: loc."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """sigma² + 1e-8, the variance in `log_prob` and in the logarithm of `kl`."""
        return self.sigma**2 + 1e-8

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; loc, sigma² + 1e-8), elementwise, in nats."""
        return -0.5 * ((x - self.loc) ** 2 / self.variance + self.variance.log() + math.log(2 * math.pi))

    def sample(self, eps: Tensor) -> Tensor:
        """loc + sigma · eps."""
        return self.loc + self.sigma * eps


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


class Delta(NamedTuple):
    """All mass at one point: the posterior of a plain autoencoder. It has no density, and `kl` returns 0 for it."""

    loc: Tensor

    @property
    def reparameterised(self) -> bool:
        """Samples have the derivatives of their values."""
        return True

    @property
    def support(self) -> tuple[float, float]:
        """The least and the greatest x."""
        return (-math.inf, math.inf)

    @property
    def mean(self) -> Tensor:
        """The mean: loc."""
        return self.loc

    def log_prob(self, x: Tensor) -> Tensor:
        """Raises BadType: a point has no density."""
        raise BadType("a Delta posterior has no density log q(z|x): use an estimator without one, such as elbo")

    def sample(self, eps: Tensor) -> Tensor:
        """loc, expanded to the shape of eps."""
        return self.loc.expand_as(eps)


def kl(q: Distribution, p: Distribution) -> Tensor:
    """KL(q ‖ p) in closed form, elementwise, in nats.

    For normals it is ½ (r² + d² - 1) - log r, with r = σ_q/σ_p and d = (μ_q - μ_p)/σ_p. For a SignedNormal q, only the
    logarithm uses the variance σ_q² + 1e-8: ½ (r² + d² - 1 - log((σ_q² + 1e-8)/σ_p²)), which is not exactly zero at
    r = 1. For a Delta q it is zero, because an autoencoder's loss has no such term.

    Raises:
        BadType: no closed form is known for this pair.
    """
    match q, p:
        case Normal(), Normal():
            r, d = q.sigma / p.sigma, (q.loc - p.loc) / p.sigma
            return 0.5 * (r * r + d * d - 1) - r.log()
        case SignedNormal(), Normal():
            r, d = q.sigma / p.sigma, (q.loc - p.loc) / p.sigma
            return 0.5 * (r * r + d * d - 1 - (q.variance / p.sigma**2).log())
        case Delta(), _:
            return torch.zeros_like(q.loc)
        case _:
            pair = f"{type(q).__name__} and {type(p).__name__}"
            raise BadType(f"no closed-form KL for {pair}: use an estimator that samples it, such as elbo_mc")


def is_reparameterised(q: Posterior) -> bool:
    """Whether the derivatives of `q.sample(eps)` in the fields of q are those of its values.

    This is `q.reparameterised` if q has that attribute. Otherwise each field f is moved, to half of its values or,
    where they are close to zero, by 0.1, and the change of the sample is compared with the integral of its derivative:

        sample(f + m) - sample(f) = ∫_0^1 d/dt sample(f + t m) dt

    A sample that has steps (a threshold, `round`) or that is detached from a field does not satisfy this.

    Raises:
        BadType: q is not a tree of tensors, or its samples cannot be compared.
    """
    if hasattr(q, "reparameterised"):
        return bool(q.reparameterised)
    try:
        return all(_has_derivative(q, i) for i, field in enumerate(tree.leaves(q)) if field.is_floating_point())
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise BadType(
            f"the samples of the {type(q).__name__} posterior cannot be compared with their derivatives: set its "
            f"attribute reparameterised to True or False ({checks.one_line(str(error))})"
        ) from error


@torch.inference_mode(False)
@torch.enable_grad()
def _has_derivative(q: Posterior, i: int) -> bool:
    """Whether the change of a sample with field i of q equals the integral of its derivative."""
    fields, kind = tree.flatten(q)
    fields = [field.detach().to(torch.float64, copy=True) if field.is_floating_point() else field for field in fields]
    move = torch.where(fields[i].abs() < 0.2, 0.1 * torch.where(fields[i] < 0, -1, 1), fields[i] / -2)
    noise_key, *keys = random.split(random.key(_CHECK_SEED, device=move.device), 5)
    shape = (-(-_CHECK_NUMBERS // q.loc.numel()), *q.loc.shape)
    eps = random.normal(noise_key, shape, torch.float64)
    directions = [random.normal(key, shape, torch.float64) for key in keys]  # an error is orthogonal to none of them

    def sample(t: Tensor) -> Tensor:
        return kind.unflatten([*fields[:i], fields[i] + t * move, *fields[i + 1 :]]).sample(eps.clone())

    def slopes(t: Tensor) -> Tensor:
        """The derivative of the sample in t along each of the directions."""
        z = sample(t.requires_grad_())
        if not z.requires_grad:
            return torch.zeros(len(directions), dtype=t.dtype, device=t.device)
        grads = [torch.autograd.grad(z, t, along, retain_graph=True, materialize_grads=True)[0] for along in directions]
        return torch.stack(grads)

    change = (sample(move.new_ones(())) - sample(move.new_zeros(()))).detach()
    changes = torch.stack([(change * along).sum() for along in directions])
    for nodes in (8, 128):  # a steep function or one with kinks takes more
        points, weights = (move.new_tensor(each) / 2 for each in leggauss(nodes))
        integral = sum(weight * slopes(0.5 + point) for point, weight in zip(points, weights, strict=True))
        if not (changes.isfinite().all() and integral.isfinite().all()):
            raise ValueError("they are not finite")
        if ((changes - integral).abs() <= 0.03 * change.norm() + 1e-9).all():
            return True
    return False


_CHECK_SEED, _CHECK_NUMBERS = 2**63 + 2, 2**16
