"""Gradient estimators: one engine, and a table of short functions from log-weights to weights.

With z_k = z(eps_k, x), log w_k = log p(x, z_k) - log q(z_k|x), and

    d_k = (∂ log w_k / ∂z_k) · ∂z_k/∂phi      q's parameters held constant in log w_k,
    s_k = ∇_phi log q(z_k|x)                   at fixed z_k,

every estimator here but the analytic-KL ones goes up in the direction

    encoder              sum_k path_k d_k + score_k s_k
    decoder and prior    sum_k theta_k ∇ log w_k

where path, score and theta are functions of the log-weights alone, held constant. (The total derivative of log w_k is
d_k - s_k.) An estimator is a pure function of (model, params, state, x, eps); it works under `vmap` over eps, in
float32 and float64, and under `torch.compile(fullgraph=True)`. It checks shapes only: values cannot be looked at inside
a transform, so numbers that are not finite pass through, and whoever calls it tests for them outside.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vjp

from funcvae import bounds, tree
from funcvae.distributions import Delta, Distribution, kl
from funcvae.errors import BadValue, unknown
from funcvae.module import Params, State
from funcvae.vae import VAE, log_likelihood, log_prob


class Weights(NamedTuple):
    """The three weight arrays of an estimator, each [N, B]. `path` must be zero wherever `theta` is."""

    path: Tensor
    score: Tensor
    theta: Tensor


class Claims(NamedTuple):
    """What an estimator promises, where one example's log w does not depend on another's noise.

    BatchNorm in training mode couples examples: there the per-example formula is used, and the claims are not made.
    """

    target: str
    """The bound whose gradient is meant."""
    unbiased_encoder: bool
    unbiased_decoder: bool
    papers: tuple[str, ...]


class Estimate(NamedTuple):
    """What an estimator returns."""

    grads: Params
    """Like params: minus the gradient of the target's batch mean, in nats. The direction to descend."""
    bound: Tensor
    """[B]: the value of the target bound, in nats; never a surrogate."""
    log_w: Tensor
    """[N, B]: log p(x, z_k) - log q(z_k|x), in nats; log p(x|z_k) where q is a Delta and has no density."""
    state: State


@dataclass(frozen=True)
class Estimator:
    """A gradient estimator: call it with (model, params, state, x [B, ...], eps [N, B, Z], train=...).

    Raises:
        BadValue: (from the call) eps is not [N, B, Z] for this x and model.
        BadType: (from the call) the posterior has no density where log q is needed.
    """

    name: str
    claims: Claims
    _estimate: Callable[..., Estimate]
    _bound: Callable[..., Tensor]

    def __call__(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, *, train: bool) -> Estimate:
        """The estimate for x [B, ...] from noise eps [N, B, Z]."""
        _check_noise(model, x, eps)
        return self._estimate(model, params, state, x, eps, train)

    def bound(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> Tensor:
        """The target bound [B] in nats in evaluation mode, without a gradient."""
        _check_noise(model, x, eps)
        return self._bound(model, params, state, x, eps)


def weighted(
    weights: Callable[[Tensor], Weights], *, bound: bounds.Bound, claims: Claims, name: str | None = None
) -> Estimator:
    """An estimator from a function of the log-weights.

    One decode and one pull-back through the decoder: log w is pulled back with theta, which gives the decoder's and the
    prior's gradient, and theta_k ∂ log w_k/∂z_k for every latent; times path/theta, that is the encoder's path term.

    Args:
        weights: log_w [N, B] -> Weights of the same shape, with path zero wherever theta is. (Values cannot be checked
            here; where theta is zero, path counts as zero.)
        bound: the target's value, log_w [N, B] -> [B].
        claims: what the estimator promises.
        name: shown in tables; the function's own name unless given.
    """

    def estimate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Estimate:
        def draw(phi: Params) -> Any:  # the compiler cannot evaluate a longer annotation
            q, new = model.encode({**params, "encoder": phi}, state, x, train)
            z = q.sample(eps)
            return (z, log_prob(q, z.detach())), (q, z, new)

        def log_weight(theta: Params, z: Tensor) -> Any:
            return _log_weight(model, {**params, **theta}, encoded, x, q, z, train)

        theta = {name: params[name] for name in ("decoder", "prior")}
        _, pull_draw, (q, z, encoded) = vjp(draw, params["encoder"], has_aux=True)  # type: ignore[misc]
        log_w, pull_log_w, new_state = vjp(log_weight, theta, z, has_aux=True)  # type: ignore[misc]

        w = Weights(*(weight / -len(x) for weight in weights(log_w.detach())))  # minus, to descend; the batch's mean
        if any(weight.shape != log_w.shape for weight in w):
            raise BadValue(
                f"weights of shapes {[list(weight.shape) for weight in w]}: each must be {list(log_w.shape)}"
            )
        theta_grads, z_pull = pull_log_w(w.theta, retain_graph=False)
        ratio = torch.where(w.theta == 0, 0, w.path / w.theta)
        (phi_grads,) = pull_draw((z_pull * ratio.unsqueeze(-1), w.score), retain_graph=False)
        return Estimate({"encoder": phi_grads, **theta_grads}, bound(log_w), log_w, new_state)

    def evaluate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> Tensor:
        q, _ = model.encode(params, state, x)
        return bound(_log_weight(model, params, state, x, q, q.sample(eps), False)[0])

    return Estimator(str(name or getattr(weights, "__name__", "weighted")), claims, estimate, evaluate)


def _log_weight(
    model: VAE, params: Params, state: State, x: Tensor, q: Distribution, z: Tensor, train: bool
) -> tuple[Tensor, State]:
    """log w = log p(x|z) + log p(z) - log q(z|x)  [N, B]."""
    p_x, state = model.decode(params, state, z, train)
    p_z, state = model.prior(params, state, z, train)
    return log_likelihood(p_x, x) + log_prob(p_z, z) - log_prob(q, z), state


def elbo() -> Estimator:
    """The reparameterised ELBO with its KL in closed form.

        mean_k log p(x|z_k) - KL(q(z|x) ‖ p(z))

    Unbiased. Usually of lower variance than `elbo_mc`, but not always: its gradient lacks a term that can cancel noise.
    With a Delta posterior the KL counts as 0, and this is the plain autoencoder's objective.

    Reference: Kingma & Welling (2014), arXiv:1312.6114.
    """
    return _analytic_kl("elbo", 1.0, Claims("ELBO", True, True, ("arXiv:1312.6114",)))


def beta_elbo(beta: float) -> Estimator:
    """The beta-VAE's objective, ELBO with beta times the KL: beta_elbo:BETA on the command line.

        mean_k log p(x|z_k) - beta KL(q(z|x) ‖ p(z))

    A bound on log p(x) for beta >= 1 only.

    Reference: Higgins et al. (2017), "beta-VAE".
    """
    if not 0 <= beta < math.inf:
        raise BadValue(f"beta is {beta}: the KL's weight is not negative, and finite")
    claims = Claims(f"ELBO with {beta:g} KL", True, True, ("Higgins et al. 2017", "arXiv:1312.6114"))
    return _analytic_kl(f"beta_elbo:{str(beta).removesuffix('.0')}", beta, claims)


def elbo_mc() -> Estimator:
    """The reparameterised ELBO with its KL sampled: the total derivative of mean_k log w_k.

        path 1/K, score -1/K, theta 1/K

    Unbiased. Works for every posterior with a density and every prior.

    Reference: Kingma & Welling (2014), arXiv:1312.6114.
    """

    def elbo_mc(log_w: Tensor) -> Weights:
        mean = torch.full_like(log_w, 1 / len(log_w))
        return Weights(path=mean, score=-mean, theta=mean)

    return weighted(elbo_mc, bound=bounds.elbo, claims=Claims("ELBO", True, True, ("arXiv:1312.6114",)))


def stl() -> Estimator:
    """Sticking the landing: `elbo_mc` without its score term, whose mean is zero.

        path 1/K, score 0, theta 1/K

    Unbiased. Its encoder gradient is zero for every eps when q(z|x) = p(z|x).

    Reference: Roeder, Wu & Duvenaud (2017), arXiv:1703.09194.
    """

    def stl(log_w: Tensor) -> Weights:
        mean = torch.full_like(log_w, 1 / len(log_w))
        return Weights(path=mean, score=torch.zeros_like(mean), theta=mean)

    return weighted(stl, bound=bounds.elbo, claims=Claims("ELBO", True, True, ("arXiv:1703.09194",)))


def iwae() -> Estimator:
    """The total derivative of the importance-weighted bound L_K.

    With v = softmax_k(log w):

        path v, score -v, theta v

    Unbiased for L_K. The signal-to-noise ratio of its encoder gradient falls as K^-½.

    References: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519; Rainforth et al. (2018), arXiv:1802.04537.
    """

    def iwae(log_w: Tensor) -> Weights:
        v = log_w.softmax(0)
        return Weights(path=v, score=-v, theta=v)

    papers = ("arXiv:1509.00519", "arXiv:1802.04537")
    return weighted(iwae, bound=bounds.iwae, claims=Claims("L_K", True, True, papers))


def dreg() -> Estimator:
    """The doubly reparameterised gradient of L_K.

    With v = softmax_k(log w):

        path v², score 0, theta v

    Unbiased for L_K: the encoder's score term is reparameterised once more. Its signal-to-noise ratio grows as K^½. At
    K = 1 it is `stl`. The decoder's gradient is `iwae`'s.

    Reference: Tucker, Lawson, Gu & Maddison (2019), arXiv:1810.04152.
    """

    def dreg(log_w: Tensor) -> Weights:
        v = log_w.softmax(0)
        return Weights(path=v**2, score=torch.zeros_like(v), theta=v)

    return weighted(dreg, bound=bounds.iwae, claims=Claims("L_K", True, True, ("arXiv:1810.04152",)))


TABLE: dict[str, Callable[..., Estimator]] = {
    factory.__name__: factory for factory in (elbo, beta_elbo, elbo_mc, stl, iwae, dreg)
}
"""The factories by name."""


def parse(spec: str) -> Estimator:
    """The estimator that a string names: "dreg", or with an argument "beta_elbo:4".

    Raises:
        BadValue: no such name, a missing or needless argument, or an argument that is no number.
    """
    name, colon, argument = spec.partition(":")
    if name not in TABLE:
        raise unknown("estimator", name, TABLE)
    factory = TABLE[name]
    wanted = list(signature(factory).parameters)
    if bool(wanted) != bool(colon):
        form = f"{name}:{wanted[0].upper()}" if wanted else name
        raise BadValue(f"estimator {spec!r}: write {form}")
    try:
        return factory(float(argument)) if colon else factory()
    except ValueError as error:
        if isinstance(error, BadValue):
            raise
        raise BadValue(f"estimator {spec!r}: {argument!r} is not a number") from None


def surrogate(estimator: Estimator) -> Callable[..., Tensor]:
    """A scalar loss whose first gradient in params is the estimator's `grads`: a bridge to any other optimiser.

    Takes the estimator's arguments. Its value is minus the batch mean of the target bound, in nats. Only the first
    derivative, and only in params, means anything: the gradient enters as a constant slope, so higher derivatives are
    zero. To differentiate a bound itself, at will, use `funcvae.bounds` on the log-weights.
    """

    def loss(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, *, train: bool) -> Tensor:
        here = tree.map(torch.Tensor.detach, params)
        out = estimator(model, here, state, x, eps, train=train)
        rise = tree.map(lambda g, p, p_here: (g * (p - p_here)).sum(), out.grads, params, here)
        return sum(tree.leaves(rise)) - out.bound.mean()

    return loss


def _analytic_kl(name: str, beta: float, claims: Claims) -> Estimator:
    """mean_k log p(x|z_k) - beta KL(q(z|x) ‖ p(z)), differentiated as it stands."""

    def forward(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> tuple[Any, ...]:
        q, state = model.encode(params, state, x, train)
        z = q.sample(eps)
        p_x, state = model.decode(params, state, z, train)
        p_z, state = model.prior(params, state, z, train)
        log_p_x = log_likelihood(p_x, x)
        bound = (log_p_x - beta * kl(q, p_z).sum(-1)).mean(0)
        return bound, log_p_x, q, p_z, z, state

    def estimate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Estimate:
        def loss(params: Params) -> Any:
            bound, *rest = forward(model, params, state, x, eps, train)
            return -bound.mean(), (bound, *rest)

        value, pull, (bound, log_p_x, q, p_z, z, new_state) = vjp(loss, params, has_aux=True)  # type: ignore[misc]
        (grads,) = pull(torch.ones_like(value), retain_graph=False)
        log_w = log_p_x if isinstance(q, Delta) else log_p_x + log_prob(p_z, z) - log_prob(q, z)
        return Estimate(grads, bound, log_w, new_state)

    def evaluate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> Tensor:
        return forward(model, params, state, x, eps, False)[0]

    return Estimator(name, claims, estimate, evaluate)


def _check_noise(model: VAE, x: Tensor, eps: Tensor) -> None:
    if eps.ndim != 3 or eps.shape[1:] != (len(x), model.latent) or eps.numel() == 0:
        want = f"[N, {len(x)}, {model.latent}]"
        raise BadValue(f"eps has shape {list(eps.shape)}: for this x and model it must be {want}, with N >= 1")
