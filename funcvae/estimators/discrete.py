"""Gradient estimators for posteriors over finitely many values.

They evaluate the model at further points than `q.sample(eps)`, and weigh each latent apart. Notation: f = log w at a
point, N noises, u = Φ(eps) uniform. Of a Bernoulli latent, a is the logit, p = sigmoid(a), b = 1[u < p], and
b~ = 1[1-u < p] is its antithetic value. s(z) = ∇ log q(z|x) of one latent, ∂a/∂phi · (z - p) for a Bernoulli.

The docstring of every factory has a line with its gradient of the encoder, which `funcvae list estimators` prints. That
of decoder and prior is the mean of ∇f over the draws from q, or, for L_K, its self-normalised mean.
"""

from functools import partial
from typing import cast

import torch
from einops import rearrange, repeat
from torch import Tensor

from funcvae import bounds
from funcvae._support import checks
from funcvae._support.checks import Finite, Positive
from funcvae._support.pickling import remembered
from funcvae.distributions import Bernoulli, Categorical, FinitePosterior, Posterior, RelaxedBernoulli
from funcvae.distributions.discrete import uniform
from funcvae.errors import BadValue
from funcvae.estimators.engine import from_points
from funcvae.estimators.leave_one_out import others_logsumexp
from funcvae.estimators.types import Claims, Estimator, Points, Seen, Weights, spell

__all__ = ["arm", "disarm", "disarm_local", "local_expectation", "rebar", "reinmax", "straight_through"]


@remembered
def arm() -> Estimator:
    """Augment-REINFORCE-merge: the gradient of the ELBO over the uniform numbers of Bernoulli latents.

        Σ_n (f(b~) - f(b)) (u - ½) ∂a/∂phi / N, for each latent

    Unbiased. Two decodes for each noise.

    Reference: Yin & Zhou (2019), arXiv:1807.11143.
    """

    def arm(f: Tensor, seen: Seen) -> Weights:
        (f_b, f_other), (b, _) = _pairs(f), _pairs(seen.z)
        along_logits = (f_other - f_b).unsqueeze(-1) * (uniform(seen.eps) - 0.5) / len(b)
        # The score weight times s = b - p. Where s is too small to divide by, the mean over u is 0 to rounding.
        s = b - _bernoulli("arm", seen.q).mean
        score = torch.where(s.abs() < torch.finfo(s.dtype).eps ** 2, 0, along_logits / s)
        return Weights(torch.zeros_like(f), _joined(score, torch.zeros_like(score)), _mean(f))

    claims = Claims("ELBO", True, True, ("arXiv:1807.11143",), "normal", "discrete", "Bernoulli")
    return from_points(ANTITHETIC, arm, bound=bounds.elbo, claims=claims)


@remembered
def disarm() -> Estimator:
    """The expectation of `arm` over u, given b and b~; also for categorical latents.

        Σ_n ½ (f(z) - f(z~)) c (s(z) - s(z~)) / N, for each latent; Bernoulli: c = sigmoid(|a|) 1[b ≠ b~]

    c = q(z) q(z~)/p(z, z~) is the importance weight of an antithetic pair against an independent one, with which this
    would be `rloo` at K = 2. A categorical variable is C - 1 Bernoulli variables by stick-breaking, in the order of
    increasing probability, so that each pair of different classes has positive probability. Unbiased; for Bernoulli
    latents the variance is at most that of `arm`. Two decodes for each noise.

    References: Dong, Mnih & Tucker (2020), arXiv:2006.10680; Yin, Ho, Yan, Qian & Zhou (2020), who call it U2G; for
    categorical latents, Dong, Mnih & Tucker (2021), arXiv:2106.08056 (DisARM-IW).
    """

    def disarm(f: Tensor, seen: Seen) -> Weights:
        (f_z, f_other), (z, other) = _pairs(f), _pairs(seen.z)
        score = 0.5 * (f_z - f_other).unsqueeze(-1) * _coupling(seen.q, z, other) / len(z)
        return Weights(torch.zeros_like(f), _joined(score, -score), _mean(f))

    claims = Claims("ELBO", True, True, ("arXiv:2006.10680", "arXiv:2106.08056"), "normal", "discrete")
    return from_points(ANTITHETIC, disarm, bound=bounds.elbo, claims=claims)


@remembered
def disarm_local() -> Estimator:
    """`disarm` for L_K: each latent of each sample is flipped alone. K is the number N of noises.

        Σ_k ¼ (L(z) - L(z; z~_k) - L(z~) + L(z~; z_k)) c_k (s(z_k) - s(z~_k)) - ½ (v_k s(z_k) + v~_k s(z~_k))

    z holds the first draws and z~ the second draws of all noises, and v and v~ are their normalised weights. L(z) is
    L_K at the points z, and L(z; z~_k) that with z~_k in place of z_k. The last term is the derivative of L_K at fixed
    points. Unbiased. Two decodes for each noise.

    Reference: Dong, Mnih & Tucker (2020), arXiv:2006.10680.
    """

    def disarm_local(f: Tensor, seen: Seen) -> Weights:
        (f_z, f_other), (z, other) = _pairs(f - f.max(0).values), _pairs(seen.z)
        change = _change(f_z, f_other) - _change(f_other, f_z)
        local = 0.25 * change.unsqueeze(-1) * _coupling(seen.q, z, other)
        v, v_other = _softmax(f_z) / 2, _softmax(f_other) / 2
        score = _joined(local - v.unsqueeze(-1), -local - v_other.unsqueeze(-1))
        return Weights(torch.zeros_like(f), score, _joined(v, v_other))

    claims = Claims("L_K", True, True, ("arXiv:2006.10680",), posterior="discrete")
    return from_points(ANTITHETIC, disarm_local, bound=bounds.iwae, claims=claims)


@remembered
@checks.arguments
def rebar(eta: Finite, temperature: Positive) -> Estimator:
    """The score-function gradient of the ELBO with a relaxed control variate ζ = sigmoid((a - logit u)/λ).

        Σ_n [(f(b) - η f(ζ)) s(b) + η f'(ζ) ζ(1-ζ)/λ r ∂a/∂phi] / N, r = (1-p)/(1-u) if b, else p/u

    The control variate takes the relaxed sample given b at the same u, as the authors' code does. Then both relaxed
    samples have the value ζ, and the difference of their derivatives is r times that of ζ. So each noise takes two
    decodes, not three. Unbiased for every η and temperature λ.

    Reference: Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein (2017), arXiv:1703.07370.
    """

    def rebar(f: Tensor, seen: Seen) -> Weights:
        f_b, f_relaxed = _pairs(f)
        zero, each = torch.zeros_like(f_b), _mean(f_b)
        path, score, theta = (zero, eta * each), ((f_b - eta * f_relaxed) * each, zero), (each, zero)
        return Weights(_joined(*path), _joined(*score), _joined(*theta))

    points = Points(partial(_relaxed_pair, temperature), breaks=_steps_of_one)
    claims = Claims("ELBO", True, True, ("arXiv:1703.07370",), "normal", "discrete", "Bernoulli")
    name = spell("rebar", eta, temperature)
    return from_points(points, rebar, bound=bounds.elbo, claims=claims, name=name, two_pulls=True)


@remembered
def straight_through() -> Estimator:
    """The path derivative of the ELBO, as if the derivatives of z were those of its mean.

        Σ_n f'(z) ∂E[z]/∂phi / N

    Biased, unless f is linear.

    Reference: Bengio, Léonard & Courville (2013), arXiv:1308.3432.
    """
    claims = Claims("ELBO", False, True, ("arXiv:1308.3432",), "normal", "discrete")
    return from_points(_STRAIGHT_THROUGH, _path, bound=bounds.elbo, claims=claims, name="straight_through")


@remembered
def reinmax() -> Estimator:
    """`straight_through` of second order: Heun's method in place of Euler's.

        Σ_n f'(z) (2 ∂m/∂phi - ½ ∂E[z]/∂phi) / N, m = (z + E[z])/2 as a mean whose logits move with those of q

    Biased, unless f is quadratic in each variable.

    Reference: Liu, Dong, Liu, Yu & Gao (2023), arXiv:2304.08612.
    """
    claims = Claims("ELBO", False, True, ("arXiv:2304.08612",), "normal", "discrete")
    return from_points(_REINMAX, _path, bound=bounds.elbo, claims=claims, name="reinmax")


@remembered
def local_expectation() -> Estimator:
    """The gradient of the ELBO with the sum over the values of each variable, given a sample of the others.

        Σ_n Σ_c q(z_v = c) f(z; z_v = c) s(c) / N, for each variable z_v

    Unbiased: the score-function gradient, with the expectation over the variable itself exact. Each noise takes
    1 + V (S - 1) decodes for V variables of S values, at once even in chunks of one noise.

    Reference: Titsias & Lázaro-Gredilla (2015), "Local expectation gradients for black box variational inference".
    """

    def local_expectation(f: Tensor, seen: Seen) -> Weights:
        n = len(seen.eps)
        f = rearrange(f, "(n m) b -> n m b", n=n)
        q = cast(FinitePosterior, seen.q)
        log_q, values = q.log_prob(seen.z.detach()), q.values()
        width = values.shape[-1]
        log_q = rearrange(log_q, "(n m) b (v w) -> n m b v w", n=n, w=width).sum(-1)[:, 1:]
        # q(c) (f(c) - f(z)) on the latents of the variable that takes the value c; Σ_c q(c) s(c) = 0
        own = _own_variable(log_q.shape[-1], values)
        score = log_q.exp() * rearrange((f[:, 1:] - f[:, :1]) / n, "n m b -> n m b 1") * rearrange(own, "m v -> m 1 v")
        score = repeat(torch.cat([torch.zeros_like(score[:, :1]), score], 1), "n m b v -> (n m) b (v w)", w=width)
        theta = torch.cat([torch.full_like(f[:, :1], 1 / n), torch.zeros_like(f[:, 1:])], 1).flatten(0, 1)
        return Weights(torch.zeros_like(theta), score, theta)

    claims = Claims("ELBO", True, True, ("Titsias & Lázaro-Gredilla 2015",), "normal", "discrete")
    return from_points(_LOCAL, local_expectation, bound=bounds.elbo, claims=claims)


# Points.


def _antithetic(q: Posterior, eps: Tensor) -> Tensor:
    """The pairs (z, z~) of u and 1 - u: [2N, B, Z]."""
    if isinstance(q, Categorical):
        order, logits = _sticks(q)
        return _joined(*(_broken(order, logits, each) for each in (eps, -eps)))
    q = _bernoulli("an antithetic pair", q)
    return _joined(q.sample(eps), q.sample(-eps))


def _antithetic_steps(q: Posterior) -> Tensor:
    """The u at which z or z~ changes: [2, B, Z]."""
    p = q.mean
    if isinstance(q, Categorical):  # the last noise of a variable is not used
        _, logits = _sticks(q)
        p = torch.nn.functional.pad(logits.sigmoid(), (0, 1)).flatten(-2)
    return torch.stack([p, 1 - p])


def _steps_of_one(q: Posterior) -> Tensor:
    """The u at which z changes: [1, B, Z]."""
    return q.mean.unsqueeze(0)


def _coupling(q: Posterior, z: Tensor, other: Tensor) -> Tensor:
    """q(z) q(z~)/p(z, z~) of each latent [N, B, Z], and 0 where the two values are equal."""
    if isinstance(q, Categorical):
        order, logits = _sticks(q)
        shape = z.unflatten(-1, order.shape[-2:]).shape
        taken = [each.view(shape).gather(-1, order.expand(shape))[..., :-1].cumsum(-1) for each in (z, other)]
        p, stopped = logits.sigmoid(), taken[0] + taken[1] > 0  # the positions from the first that either has taken
        here = stopped.to(p.dtype).diff(dim=-1, prepend=torch.zeros_like(p[..., :1]).expand(*shape[:-1], 1))
        # before it both have gone on, with probability 1 - 2p in place of (1 - p)²
        both = torch.nn.functional.pad(((1 - p) ** 2 / (1 - 2 * p))[..., :-1], (0, 1), value=1)
        ratio = torch.where(stopped, 1, both).prod(-1) * (here * (1 - p)).sum(-1)
        ratio = torch.where((z != other).view(shape).any(-1), ratio, 0)
        return repeat(ratio, "n b v -> n b (v c)", c=shape[-1])
    logits = _bernoulli("an antithetic pair", q).logits
    return torch.where(z != other, logits.abs().sigmoid(), 0)


def _sticks(q: Categorical) -> tuple[Tensor, Tensor]:
    """The classes in the order of increasing probability [B, V, C], and the logits [B, V, C-1] with which each is taken
    if no earlier one is."""
    ascending, order = q.logits.sort(-1)
    rest = ascending.flip(-1).logcumsumexp(-1).flip(-1)
    return order, ascending[..., :-1] - rest[..., 1:]


def _broken(order: Tensor, logits: Tensor, eps: Tensor) -> Tensor:
    """The one-hot vectors [N, B, V·C] of the first class in order whose u is below its probability."""
    u = uniform(eps).unflatten(-1, order.shape[-2:])
    taken = torch.nn.functional.pad(u[..., :-1] < logits.sigmoid(), (0, 1), value=True)
    first = taken & (taken.cumsum(-1) == 1)
    return first.to(eps.dtype).gather(-1, order.argsort(-1).expand(first.shape)).flatten(-2)


def _relaxed_pair(temperature: float, q: Posterior, eps: Tensor) -> Tensor:
    """The pairs (b, ζ); the derivative of ζ in the logits is r times that of the relaxed sample."""
    q = _bernoulli("rebar", q)
    p, b = q.mean, q.sample(eps)
    r = torch.where(b > 0, (1 - p) / uniform(-eps), p / uniform(eps)).detach()
    constant = q.logits.detach()
    heat = checks.constant("temperature", temperature, constant)
    relaxed = RelaxedBernoulli(constant + r * (q.logits - constant), heat)
    return _joined(b, relaxed.sample(eps))


def _straight_through(q: Posterior, eps: Tensor) -> Tensor:
    return _with_derivative(q.sample(eps), q.mean)


def _reinmax(q: Posterior, eps: Tensor) -> Tensor:
    if not isinstance(q, Bernoulli | Categorical):
        raise BadValue(f"reinmax requires a Bernoulli or Categorical posterior, and this is a {type(q).__name__}")
    z = q.sample(eps)
    halfway = q.of_mean((z + q.mean) / 2).logits.detach()
    halfway_mean = type(q)(_with_derivative(halfway, q.logits)).mean
    return _with_derivative(z, 2 * halfway_mean - q.mean / 2)


def _flipped(q: Posterior, eps: Tensor) -> Tensor:
    """A draw z, and z with one variable set to each of its other values: [N (1 + V (S - 1)), B, Z]."""
    if not hasattr(q, "values"):
        raise BadValue(f"local_expectation requires a posterior with finitely many values, not a {type(q).__name__}")
    values = cast(FinitePosterior, q).values()
    z = rearrange(q.sample(eps), "n b (v w) -> n b v w", w=values.shape[-1])
    index = (z.unsqueeze(-2) == values).all(-1).int().argmax(-1)
    others = torch.stack([values[(index + i) % len(values)] for i in range(1, len(values))], 1)
    own = _own_variable(z.shape[2], values).bool()
    flipped = torch.where(
        rearrange(own, "(v c) u -> 1 v c 1 u 1", c=len(values) - 1), others.unsqueeze(1), z[:, None, None]
    )
    return torch.cat([z.unsqueeze(1), flipped.flatten(1, 2)], 1).flatten(0, 1).flatten(-2)


def _own_variable(variables: int, values: Tensor) -> Tensor:
    """1 where a flipped point changes a variable, else 0: [V (S - 1), V]."""
    return torch.eye(variables, dtype=values.dtype, device=values.device).repeat_interleave(len(values) - 1, 0)


ANTITHETIC = Points(_antithetic, draws=2, breaks=_antithetic_steps)
"""The antithetic pairs of `arm` and `disarm`, which share a forward pass."""
_STRAIGHT_THROUGH, _REINMAX, _LOCAL = Points(_straight_through), Points(_reinmax), Points(_flipped)


# Weights.


def _path(f: Tensor, seen: Seen) -> Weights:
    mean = _mean(f)
    return Weights(path=mean, score=torch.zeros_like(mean), theta=mean)


def _change(f: Tensor, other: Tensor) -> Tensor:
    """L_K minus its value with f_k replaced by other_k, for each k: [K, B]."""
    return f.logsumexp(0) - torch.logaddexp(_others_logsumexp(f), other)


def _pairs(values: Tensor) -> Tensor:
    """Splits the values of adjacent pairs of points [2N, ...] into [2, N, ...]."""
    return rearrange(values, "(n pair) ... -> pair n ...", pair=2)


def _joined(first: Tensor, second: Tensor) -> Tensor:
    """The inverse of `_pairs`."""
    return torch.stack([first, second], 1).flatten(0, 1)


def _mean(f: Tensor) -> Tensor:
    return torch.full_like(f, 1 / len(f))


def _with_derivative(value: Tensor, of: Tensor) -> Tensor:
    """A value with the derivatives of another."""
    return value.detach() + (of - of.detach())


def _bernoulli(name: str, q: Posterior) -> Bernoulli:
    if not isinstance(q, Bernoulli):
        raise BadValue(
            f"{name} requires a Bernoulli posterior, and this is a {type(q).__name__}: use rloo, score or "
            "local_expectation, or disarm for a Categorical"
        )
    return q


_softmax, _others_logsumexp = checks.unchecked(bounds.softmax), checks.unchecked(others_logsumexp)
