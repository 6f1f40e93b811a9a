"""The engine that turns a function of the log-weights into a gradient estimator.

With z_k = z(eps_k, x), log w_k = log p(x, z_k) - log q(z_k|x), and

    d_k = (∂ log w_k / ∂z_k) · ∂z_k/∂phi      q's parameters held constant in log w_k,
    s_k = ∇_phi log q(z_k|x)                   at fixed z_k,

an estimator goes up in the direction

    encoder              sum_k path_k d_k + score_k s_k
    decoder and prior    sum_k theta_k ∇ log w_k

where path, score and theta are functions of the log-weights alone, held constant. (The total derivative of log w_k is
d_k - s_k.) The functions themselves are in `funcvae.estimators`. An estimator is a pure function of (model, params,
state, x, eps); it works under `vmap` over eps, in float32 and float64, and under `torch.compile(fullgraph=True)`. It
checks shapes only: values cannot be looked at inside a transform, so numbers that are not finite pass through, and
whoever calls it tests for them outside.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from funcvae import bounds, checks, tree
from funcvae.autograd import vjp
from funcvae.distributions import Delta, Distribution, kl
from funcvae.errors import BadType, BadValue
from funcvae.module import Params, State
from funcvae.noise import Noise, is_independent, name_of
from funcvae.vae import VAE, check, check_model, log_likelihood, log_prob

Wrap = Callable[[Callable[..., Any]], Callable[..., Any]]


class Weights(NamedTuple):
    """The three weight arrays of an estimator, each [N, B].

    `path` must be zero wherever `theta` is, and path/theta of moderate size: for others see `two_pulls` of `weighted`.
    """

    path: Tensor
    score: Tensor
    theta: Tensor


class Claims(NamedTuple):
    """What an estimator promises, where one example's log w does not depend on another's noise.

    BatchNorm in training mode couples examples: there the per-example formula is used, and the claims are not made. Nor
    are they for a posterior that is no proper density, a SignedNormal.
    """

    target: str
    """The bound that `Estimate.bound` holds, whose gradient is meant."""
    unbiased_encoder: bool
    """Whether the encoder's gradient is in expectation the one of the target's expectation."""
    unbiased_decoder: bool
    """The same for decoder and prior."""
    papers: tuple[str, ...]
    noise: Literal["independent", "normal", "any"] = "independent"
    """What the claims need of the samples of one datum: that they are independent standard normals; or that each is
    standard normal by itself, however they depend on one another; or nothing, for the target's expectation is then the
    one under that noise (and for dependent samples another number than for independent ones)."""
    note: str = ""
    """What else is known, in a few words."""


class Estimate(NamedTuple):
    """What an estimator returns."""

    grads: Params
    """Like params: minus the gradient of the target's batch mean, in nats. The direction to descend."""
    bound: Tensor
    """[B]: the value of the target bound, in nats; never a surrogate."""
    log_w: Tensor
    """[N, B]: log p(x, z_k) - log q(z_k|x), in nats; log p(x|z_k) where q is a Delta and has no density."""
    state: State


class Parts(NamedTuple):
    """An estimator's work on some of a datum's samples: the shares of all of them add up to the estimate."""

    share: Callable[..., Estimate]
    """(model, params, state, x, eps [n, B, Z], train, N, *weights [n, B]) -> what these n of N samples add: gradient,
    bound, and the floating-point part of the state."""
    log_w: Callable[..., Tensor] | None = None
    """(model, params, state, x, eps, train) -> log w [n, B], where a share's weights hang on those of all samples."""
    weigh: Callable[[Tensor], tuple[Weights, Tensor]] | None = None
    """From log w [N, B] of all samples to their weights, and to the bound [B] that these add to that of the shares."""
    bound: Callable[..., Tensor] | None = None
    """(model, params, state, x, eps, N) -> the bound [B] that these samples add in evaluation mode, without `weigh`."""


@dataclass(frozen=True)
class Estimator:
    """A gradient estimator: call it with (model, params, state, x [B, ...], eps [N, B, Z], train=...).

    Raises:
        BadValue: (from the call) eps is not [N, B, Z] for this x and model, or N does not suit the estimator.
        BadType: (from the call) the posterior has no density where log q is needed.
    """

    name: str
    claims: Claims
    weights: Callable[[Tensor], Weights] | None
    """From log-weights [N, B] to weights; None for those with an analytic KL."""
    _estimate: Callable[..., Estimate]
    _bound: Callable[..., Tensor]
    _from_pass: Callable[..., Estimate] | None = None
    """From a `Pass`, which others may share; None for those that need more of the forward pass than it keeps."""
    _parts: Parts | None = None

    def __call__(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, *, train: bool) -> Estimate:
        """The estimate for x [B, ...] from noise eps [N, B, Z]."""
        _check(model, params, state, x, eps)
        return self._estimate(model, params, state, x, eps, train)

    def bound(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> Tensor:
        """The value of the target bound [B] in nats, in evaluation mode: half the work of a call."""
        _check(model, params, state, x, eps)
        return self._bound(model, params, state, x, eps)

    def in_chunks(self, chunk: int, wrap: Wrap = lambda f: f) -> "Estimator":
        """The same estimator in bounded memory: `chunk` samples at a time are decoded and pulled back.

        A sum over samples is one over chunks, once its weights are known. They take a forward pass over all samples
        before (not with an analytic KL, which has none), so a gradient costs up to a third more. It equals the
        other to rounding, and so does the new state: running statistics are averaged over all samples. What it returns
        is not to be differentiated.

        Args:
            chunk: samples at a time.
            wrap: what is done to the functions of one chunk, such as `machine.compiled`.
        """
        chunk = checks.whole("chunk", chunk, 1)
        checks.function("wrap", wrap)
        return _in_chunks(self, self.parts, chunk, wrap)

    @property
    def parts(self) -> Parts:
        """How it works on some of the samples at a time."""
        if self._parts is None:
            raise BadType(f"{self.name} is in chunks already")
        return self._parts

    def claims_under(self, noise: Noise) -> Claims:
        """The claims where eps is drawn by this scheme.

        Raises:
            BadValue: the estimator leans on independent samples, and the scheme's are not.
        """
        checks.function("noise", noise, "a scheme, such as noise.iid")
        if is_independent(noise) or self.claims.noise == "normal":
            return self.claims
        if self.claims.noise == "any":
            return self.claims._replace(target=f"{self.claims.target} under {name_of(noise)} noise")
        raise BadValue(
            f"{self.name} leans on independent samples, and {name_of(noise)} noise has none (or is not marked by "
            "noise.independent): its gradient would be biased; use iid noise, or an estimator such as iwae or elbo_mc"
        )


def weighted(
    weights: Callable[[Tensor], Weights],
    *,
    bound: bounds.Bound,
    claims: Claims,
    name: str | None = None,
    two_pulls: bool = False,
) -> Estimator:
    """An estimator from a function of the log-weights.

    One decode and one pull-back through the decoder: log w is pulled back with theta, which gives the decoder's and the
    prior's gradient, and theta_k ∂ log w_k/∂z_k for every latent; times path/theta, that is the encoder's path term.

    Args:
        weights: log_w [N, B] -> Weights of the same shape, with path zero wherever theta is. (Values cannot be checked
            here; where theta is zero, path counts as zero, and where it is tiny beside path, the ratio overflows.)
        bound: the target's value, log_w [N, B] -> [B].
        claims: what the estimator promises.
        name: shown in tables; the function's own name unless given.
        two_pulls: pull log w back a second time, with path, for weights of which theta can be tiny or zero where path
            is not.
    """

    _check_parts(name, claims, weights=weights, bound=bound)
    checks.flag("two_pulls", two_pulls)

    def checked_weights(log_w: Tensor) -> Weights:
        given = weights(log_w.detach())
        if not (isinstance(given, tuple) and len(given) == 3 and all(isinstance(weight, Tensor) for weight in given)):
            raise BadType(f"the weights are {checks.shown(given)}: they must be a Weights of three tensors")
        if any(weight.shape != log_w.shape for weight in given):
            shapes = [list(weight.shape) for weight in given]
            raise BadValue(f"weights of shapes {shapes}: each must be {list(log_w.shape)}")
        return Weights(*given)

    def scaled(log_w: Tensor) -> Weights:
        return Weights(*(weight / -log_w.shape[1] for weight in checked_weights(log_w)))  # to descend; batch's mean

    def checked_bound(log_w: Tensor) -> Tensor:
        value = bound(log_w)
        if checks.tensor("the bound", value).shape != log_w.shape[1:]:
            size = log_w.shape[1]
            raise BadValue(f"the bound has shape {list(value.shape)}: it must be one for each datum, [{size}]")
        return value

    def estimate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Estimate:
        if not two_pulls:
            return from_pass(_forward(model, params, state, x, eps, train), retain_graph=False)
        drawn = _draw(model, params, state, x, eps, train)
        log_w, score, theta_grads, z_grads, new_state = _pull_twice(drawn.weigh, scaled, drawn.theta, drawn.z)
        (phi_grads,) = drawn.pull((z_grads, score), retain_graph=False)
        return finished(phi_grads, theta_grads, log_w, new_state)

    def from_pass(passed: Pass, *, retain_graph: bool) -> Estimate:
        w = scaled(passed.log_w)
        theta_grads, z_grads = passed.pull_weight(w.theta, retain_graph=retain_graph)
        z_grads = z_grads * torch.where(w.theta == 0, 0, w.path / w.theta).unsqueeze(-1)
        (phi_grads,) = passed.pull_draw((z_grads, w.score), retain_graph=retain_graph)
        return finished(phi_grads, theta_grads, passed.log_w, passed.state)

    def finished(phi_grads: Params, theta_grads: Params, log_w: Tensor, new_state: State) -> Estimate:
        return Estimate({"encoder": phi_grads, **theta_grads}, checked_bound(log_w), log_w, new_state)

    def forward(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Tensor:
        q, state = model.encode(params, state, x, train)
        return log_weight(model, params, state, x, q, q.sample(eps), train)[0]

    def evaluate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> Tensor:
        return bound(forward(model, params, state, x, eps, False))

    def share(
        model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool, n: int, *w: Tensor
    ) -> Estimate:
        given = weighted(lambda log_w: Weights(*w), bound=bounds.elbo, claims=claims, two_pulls=two_pulls)
        out = given._estimate(model, params, state, x, eps, train)
        return out._replace(bound=torch.zeros_like(out.bound), state=times(out.state, len(eps) / n))

    def weigh(log_w: Tensor) -> tuple[Weights, Tensor]:
        return checked_weights(log_w), checked_bound(log_w)

    called = str(name or getattr(weights, "__name__", "weighted"))
    parts = Parts(share, forward, weigh)
    return Estimator(called, claims, weights, estimate, evaluate, None if two_pulls else from_pass, parts)


def analytic_kl(name: str, beta: float, claims: Claims) -> Estimator:
    """The estimator of mean_k log p(x|z_k) - beta KL(q(z|x) ‖ p(z)), differentiated as it stands."""

    _check_parts(name, claims)
    beta = checks.number("beta", beta)

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

        value, pull, (bound, log_p_x, q, p_z, z, new_state) = vjp(loss, params, has_aux=True)
        (grads,) = pull(torch.ones_like(value), retain_graph=False)
        log_w = log_p_x if isinstance(q, Delta) else log_p_x + log_prob(p_z, z) - log_prob(q, z)
        return Estimate(grads, bound, log_w, new_state)

    def evaluate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> Tensor:
        return forward(model, params, state, x, eps, False)[0]

    def share(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool, n: int) -> Estimate:
        out = estimate(model, params, state, x, eps, train)
        grads, bound, new_state = times((out.grads, out.bound, out.state), len(eps) / n)
        return Estimate(grads, bound, out.log_w, new_state)

    def bound(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, n: int) -> Tensor:
        return evaluate(model, params, state, x, eps) * (len(eps) / n)

    return Estimator(name, claims, None, estimate, evaluate, None, Parts(share, bound=bound))


def _in_chunks(whole: Estimator, parts: Parts, chunk: int, wrap: Wrap) -> Estimator:
    share_of = wrap(parts.share)
    log_w_of, bound_of = (None if f is None else wrap(f) for f in (parts.log_w, parts.bound))

    def weighed(*given: Any, eps: Tensor, train: bool) -> Any:
        if log_w_of is None or parts.weigh is None:
            return (), None, None
        log_w = torch.cat([log_w_of(*given, part, train) for part in eps.split(chunk)])
        return *parts.weigh(log_w), log_w

    @torch.no_grad()
    def estimate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Estimate:
        given = model, params, state, x
        w, bound, log_w = weighed(*given, eps=eps, train=train)
        total, seen = None, []
        for part, *weights in zip(eps.split(chunk), *(each.split(chunk) for each in w), strict=True):
            out = share_of(*given, part, train, len(eps), *weights)
            seen.append(out.log_w)
            total = added(total, (out.grads, out.bound, out.state))
        assert total is not None
        grads, more, new_state = total
        return Estimate(
            grads, more if bound is None else bound + more, torch.cat(seen) if log_w is None else log_w, new_state
        )

    def evaluate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> Tensor:
        given = model, params, state, x
        if bound_of is None:
            return weighed(*given, eps=eps, train=False)[1]
        return torch.stack([bound_of(*given, part, len(eps)) for part in eps.split(chunk)]).sum(0)

    return Estimator(whole.name, whole.claims, whole.weights, estimate, evaluate)


def together(
    estimators: Sequence[Callable[..., Estimate]],
    model: VAE,
    params: Params,
    state: State,
    x: Tensor,
    eps: Tensor,
    *,
    train: bool,
) -> list[Estimate]:
    """What each estimator gives for the same noise, in one forward pass for all that can share one.

    Those made by `weighted` share it, but for those with two pulls; the others, and functions of one's own, run by
    themselves. The numbers are those of separate calls.
    """
    _check(model, params, state, x, eps)
    if not isinstance(estimators, Iterable) or isinstance(estimators, Tensor):
        raise BadType(f"estimators is {checks.shown(estimators)}: it must be several, in a list or tuple")
    estimators = list(estimators)
    for estimator in estimators:
        check_estimator("an estimator", estimator)
    shared = [getattr(estimator, "_from_pass", None) for estimator in estimators]
    last = max((i for i, from_pass in enumerate(shared) if from_pass), default=-1)
    passed = _forward(model, params, state, x, eps, train) if last >= 0 else None
    return [
        from_pass(passed, retain_graph=i < last)
        if from_pass
        else checked_estimate(estimator(model, params, state, x, eps, train=train))
        for i, (from_pass, estimator) in enumerate(zip(shared, estimators, strict=True))
    ]


def surrogate(estimator: Estimator) -> Callable[..., Tensor]:
    """A scalar loss whose first gradient in params is the estimator's `grads`: a bridge to any other optimiser.

    Takes the estimator's arguments. Its value is minus the batch mean of the target bound, in nats. Only the first
    derivative, and only in params, means anything: the gradient enters as a constant slope, so higher derivatives are
    zero. To differentiate a bound itself, at will, use `funcvae.bounds` on the log-weights.
    """

    check_estimator("estimator", estimator)

    def loss(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, *, train: bool) -> Tensor:
        check(model, params, state)
        here = tree.map(torch.Tensor.detach, params)
        out = checked_estimate(estimator(model, here, state, x, eps, train=train))
        rise = tree.map(lambda g, p, p_here: (g * (p - p_here)).sum(), out.grads, params, here)
        return sum(tree.leaves(rise)) - out.bound.mean()

    return loss


def log_weight(
    model: VAE, params: Params, state: State, x: Tensor, q: Distribution, z: Tensor, train: bool
) -> tuple[Tensor, State]:
    """log w = log p(x|z) + log p(z) - log q(z|x) [N, B], for z [N, B, Z] from q(z|x); and the state."""
    checks.tensor("z", z, "N B Z")
    check_model(model)
    p_x, state = model.decode(params, state, z, train)
    p_z, state = model.prior(params, state, z, train)
    return log_likelihood(p_x, x) + _over_latents("prior", p_z, z) - _over_latents("posterior", q, z), state


class Draw(NamedTuple):
    """Latents drawn from the posterior, and what is to be done with them."""

    z: Tensor
    """[N, B, Z]."""
    pull: Callable[..., Any]
    """From the cotangents of z, and of log q(z|x) at fixed z, to the encoder's gradient."""
    theta: Params
    """The parameters of decoder and prior."""
    weigh: Callable[..., Any]
    """(theta, z) -> (log w [N, B], state), with q's parameters held constant."""


class Pass(NamedTuple):
    """One forward pass, ready to be pulled back with the weights of one estimator after another."""

    log_w: Tensor
    """[N, B]."""
    state: State
    pull_draw: Callable[..., Any]
    """`Draw.pull`."""
    pull_weight: Callable[..., Any]
    """From a cotangent of log w to (the gradient of decoder and prior, the gradient along z)."""


def _draw(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Draw:
    def draw(phi: Params) -> Any:  # the compiler cannot evaluate a longer annotation
        q, new = model.encode({**params, "encoder": phi}, state, x, train)
        z = q.sample(eps)
        return (z, log_prob(q, z.detach())), (q, z, new)

    def weigh(theta: Params, z: Tensor) -> Any:
        return log_weight(model, {**params, **theta}, encoded, x, q, z, train)

    _, pull, (q, z, encoded) = vjp(draw, params["encoder"], has_aux=True)
    return Draw(z, pull, {name: params[name] for name in ("decoder", "prior")}, weigh)


def _forward(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Pass:
    drawn = _draw(model, params, state, x, eps, train)
    log_w, pull_weight, new_state = vjp(drawn.weigh, drawn.theta, drawn.z, has_aux=True)
    return Pass(log_w, new_state, drawn.pull, pull_weight)


def _pull_twice(weigh: Any, weights: Any, theta: Params, z: Tensor) -> Any:
    """Two pull-backs: log w with theta along the parameters alone, and with path along z alone.

    Takes weigh(theta, z) -> (log w, state); returns (log w, score, the pull along theta, the pull along z, state).
    """

    def along_z(theta: Params) -> Any:
        log_w, pull, state = vjp(lambda z: weigh(theta, z), z, has_aux=True)
        w = weights(log_w)
        with torch.no_grad():  # it is not to be differentiated in its turn
            (z_grads,) = pull(w.path, retain_graph=True)
        return log_w, (w, z_grads, state)

    log_w, pull, (w, z_grads, state) = vjp(along_z, theta, has_aux=True)
    (theta_grads,) = pull(w.theta, retain_graph=False)
    return log_w, w.score, theta_grads, z_grads, state


def times(tree_: Any, share: float) -> Any:
    """A share in a weighted mean of trees; what is no floating-point number stays."""
    return tree.map(lambda t: t * share if t.is_floating_point() else t, tree_)


def added(sum_: Any, new: Any) -> Any:
    """The sum of two trees, if there is a first; of what is no floating-point number, the second."""
    return new if sum_ is None else tree.map(lambda s, t: s + t if t.is_floating_point() else t, sum_, new)


def check_estimator(name: str, estimator: Callable[..., Estimate]) -> None:
    """Raises BadType for what can be no estimator, or is the factory of one."""
    checks.function(name, estimator, "one, such as estimators.iwae()")
    if getattr(estimator, "__module__", "") == "funcvae.estimators":
        raise BadType(f"{name} is a factory: call it, as in estimators.iwae()")


def _over_latents(what: str, p: Distribution, z: Tensor) -> Tensor:
    """The log-density [N, B] of latents z [N, B, Z]."""
    value = log_prob(p, z)
    if value.shape != z.shape[:2]:
        raise BadValue(
            f"the {what} gives log-densities {list(value.shape)}: for this z they must be {list(z.shape[:2])}"
        )
    return value


def checked_estimate(out: Estimate) -> Estimate:
    """What an estimator returned, if it is an estimate: raises BadType where it is not."""
    if not isinstance(out, Estimate):
        raise BadType(f"the estimator returned {checks.shown(out)}: it must be an Estimate")
    return out


def _check_parts(name: str | None, claims: Claims, **functions: Callable[..., Any]) -> None:
    if name is not None:
        checks.text("name", name)
    if not isinstance(claims, Claims):
        raise BadType(f"claims is {checks.shown(claims)}: it must be Claims")
    for what, function in functions.items():
        checks.function(what, function, "a function of log_w [N, B]")


def _check(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> None:
    check(model, params, state)
    checks.tensor("x", x, "B ...")
    checks.tensor("eps", eps, floating=True)
    if eps.ndim != 3 or eps.shape[1:] != (len(x), model.latent) or eps.numel() == 0:
        want = f"[N, {len(x)}, {model.latent}]"
        raise BadValue(f"eps has shape {list(eps.shape)}: for this x and model it must be {want}, with N >= 1")
    if x.is_floating_point() and eps.dtype != x.dtype:
        raise BadValue(f"eps is {eps.dtype} and x {x.dtype}: draw eps with dtype={x.dtype}")
    if eps.device != x.device:
        checks.same_device(eps=eps, x=x)
