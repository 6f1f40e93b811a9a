"""The engine that turns a function of the log-weights into a gradient estimator.

The docstring of `funcvae.estimators` has the formula, in which path, score and theta are held constant. (The total
derivative of log w_k is d_k - s_k.) They are functions of the log-weights alone (`weighted`), or also of the points
z_k, which an estimator may choose (`from_points`). These functions are in `estimators.table` and `estimators.discrete`.
An estimator is a pure function of (model, params, state, x, eps). It works under `vmap` over eps, in float32 and
float64, and under `torch.compile(fullgraph=True)`. A transform cannot read values, so the estimators return non-finite
numbers unchecked: callers test for them.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funcvae import bounds, tree
from funcvae._support import checks
from funcvae._support.autograd import Pull, vjp
from funcvae._support.examples import Data
from funcvae._support.pickling import remembered
from funcvae.batching import of_points
from funcvae.distributions import Distribution, Posterior
from funcvae.errors import BadType, BadValue
from funcvae.estimators.types import (
    SAMPLES,
    Claims,
    Closed,
    ClosedForm,
    Estimate,
    Estimator,
    Parts,
    Pass,
    Points,
    Sample,
    Seen,
    Weights,
    check_claims,
)
from funcvae.model import VAE, LogWeight, log_prob_terms, log_weight, running
from funcvae.modules import Params, State, advance

__all__ = [
    "StateShare", "add_trees", "forward", "from_points", "log_p_x", "log_w", "scale_tree", "share_of_state",
    "state_of_shares", "weighted",
]  # fmt: skip


def log_w(terms: LogWeight) -> Tensor:
    """log w [M, B]: what most estimators pull back."""
    return terms.log_w


def log_p_x(terms: LogWeight) -> Tensor:
    """log p(x|z) [M, B]: what an estimator with the KL in closed form pulls back."""
    return terms.log_p_x


@remembered
@checks.arguments
def weighted(
    weights: Callable[[Tensor], Weights],
    *,
    bound: bounds.Bound,
    claims: Claims,
    name: str | None = None,
    two_pulls: bool = False,
) -> Estimator:
    """Makes an estimator from a function of the log-weights.

    It decodes once and pulls back through the decoder once. Pulling back log w with theta yields the gradient of
    decoder and prior, and theta_k ∂ log w_k/∂z_k. The latter times path/theta is the path term's gradient along z_k.

    Args:
        weights: log_w [N, B] -> Weights of the same shape, with path zero wherever theta is. (Values are not checked:
            where theta is zero, path counts as zero; where theta is much smaller than path, path/theta overflows.)
        bound: the value of the target, log_w [N, B] -> [B].
        claims: what the estimator promises.
        name: shown in tables; the name of the function unless given.
        two_pulls: pull back log w a second time, with path. Needed if theta can be tiny or zero where path is not.

    Raises:
        BadType, BadValue: (from the estimator) `weights` or `bound` returns a wrong type or shape.
    """
    called = str(name or getattr(weights, "__name__", "weighted"))
    estimator = _estimator(_Target(SAMPLES, bound), weights, False, claims, called, two_pulls)
    return replace(estimator, weights=weights)


@remembered
@checks.arguments
def from_points(
    points: Points | Sample,
    weights: Callable[[Tensor, Seen], Weights],
    *,
    bound: bounds.Bound,
    claims: Claims,
    name: str | None = None,
    two_pulls: bool = False,
    closed: ClosedForm | None = None,
    pulls: Callable[[LogWeight], Tensor] = log_w,
) -> Estimator:
    """Makes an estimator that chooses the points z [M, B, Z] at which the model is evaluated, and sees them.

    The m = M/N points of each noise are adjacent. The first is a draw from q. A term of the bound in closed form, with
    its derivatives in encoder and prior, can be added.

    Args:
        points: (q, eps [N, B, Z]) -> z [M, B, Z], or a `Points`.
        weights: (log_w [M, B], seen) -> Weights, where path and score may be [M, B, Z] instead of [M, B]: weights for
            each latent. Such score weights require a posterior whose `log_prob` is elementwise. What they multiply is
            as in `weighted`; log_w stands for what `pulls` returns.
        bound: the value of the target, log_w [N, B] -> [B]. If each noise has several draws from q, the bounds of the
            first draws, the second draws, … are averaged.
        claims: what the estimator promises.
        name: shown in tables; the name of `weights` unless given.
        two_pulls: pull back a second time, with path. Needed if theta can be tiny or zero where path is not.
        closed: (q, p(z)) -> [B], a term of the bound that is known in closed form, such as -KL(q ‖ p).
        pulls: what is pulled back, and what `weights` and `bound` take: `log_w` or `log_p_x`.

    Raises:
        BadType, BadValue: (from the estimator) a function returns a wrong type or shape.
    """
    points = points if isinstance(points, Points) else Points(checks.function("points", points))
    called = str(name or getattr(weights, "__name__", "from_points"))
    return _estimator(_Target(points, bound, pulls, closed), weights, True, claims, called, two_pulls)


class _Target(NamedTuple):
    """The bound at points of the posterior: bound(pulls(terms)) + closed(q, p)."""

    points: Points
    bound: bounds.Bound
    pulls: Callable[[LogWeight], Tensor] = log_w
    closed: ClosedForm | None = None

    def pulled(self, terms: LogWeight) -> Tensor:
        """What is pulled back [M, B]; the shape of a function of the user's is checked."""
        if self.pulls is log_w:
            return terms.log_w
        f = checks.floats("the result of pulls", self.pulls(terms))
        if f.shape != terms.log_p_x.shape:
            raise BadValue(f"the result of pulls has shape {list(f.shape)}: it must be {list(terms.log_p_x.shape)}")
        return f

    def closed_form(self, q: Posterior, p: Distribution) -> Tensor:
        """The term in closed form [B]."""
        value = checks.floats("the closed form", self.closed(q, p) if self.closed else None)
        if value.shape != q.loc.shape[:1]:
            raise BadValue(f"the closed form has shape {list(value.shape)}: it must be [B], here [{len(q.loc)}]")
        return value


def _estimator(
    target: _Target, weights: Callable[..., Weights], sees: bool, claims: Claims, name: str, two_pulls: bool
) -> Estimator:
    check_claims(claims)
    points, bound = target.points, checks.unchecked(target.bound)

    # What the user's functions return is checked here, because other shapes might broadcast.
    def weigh(f: Tensor, seen: Seen | None) -> Weights:
        given = weights(f.detach(), seen) if sees else weights(f.detach())
        if not (isinstance(given, tuple) and len(given) == 3 and all(isinstance(weight, Tensor) for weight in given)):
            raise BadType(f"the weights are {checks.describe(given)}: they must be a Weights of three tensors")
        path, score, theta = shapes = [weight.shape for weight in given]
        allowed = [f.shape, seen.z.shape] if sees and seen else [f.shape]
        if theta != f.shape or path not in allowed or score not in allowed:
            must = " or ".join(str(list(shape)) for shape in allowed)
            raise BadValue(f"the weights have shapes {[list(shape) for shape in shapes]}: each must be {must}")
        return Weights(*given)

    def bound_of(f: Tensor, n: int) -> Tensor:
        """The bound [B] from f [M, B]: the mean over the draws of each of n noises."""
        values = [bound(f)] if len(f) == n else [bound(each) for each in _draws(f, n, points).unbind(1)]
        if checks.tensor("the bound", values[0]).shape != f.shape[1:]:
            raise BadValue(f"the bound has shape {list(values[0].shape)}: it must be [B], here [{f.shape[1]}]")
        return values[0] if len(values) == 1 else torch.stack(values).mean(0)

    def drawn(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool, share: float = 1) -> Draw:
        return _draw(model, params, state, x, eps, train, target, share)

    def pulled(draw: Draw, weigh: Weigh) -> Pulled:
        return _pull_twice(draw, weigh) if two_pulls else _pull_once(_weigh(draw), weigh, retain_graph=False)

    def finished(grads: Params, passed: Pass) -> Estimate:
        n = len(passed.seen.eps)
        value = bound_of(passed.pulled, n)
        value = value if passed.closed is None else value + passed.closed.value
        return Estimate(grads, value, _first(passed.log_w, n), passed.state, *_split(passed))

    def estimate(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Estimate:
        return finished(*pulled(drawn(model, params, state, x, eps, train), weigh))

    def from_pass(passed: Pass, *, retain_graph: bool) -> Estimate:
        return finished(*_pull_once(passed, weigh, retain_graph=retain_graph))

    def see(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Seen:
        q, _ = model.encode(params, state, x, train)
        return Seen(q, points.at(q, eps), eps)

    def terms(model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Tensor:
        q, state = model.encode(params, state, x, train)
        z = points.at(q, eps)
        return target.pulled(log_weight(model, params, of_points(state, len(z) // len(eps)), x, q, z, train)[0])

    def at_draws(model: VAE, params: Params, state: State, x: Data, eps: Tensor) -> Tensor:
        q, state = model.encode(params, state, x)
        z = points.at(q, eps)
        z = z if len(z) == len(eps) else _draws(z, len(eps), points).flatten(0, 1)
        return target.pulled(log_weight(model, params, state, x, q, z, False)[0])

    def of_draws(f: Tensor, model: VAE, params: Params, state: State, x: Data, n: int) -> Tensor:
        value = bound_of(f, n)
        if target.closed is None:
            return value
        q, state = model.encode(params, state, x)
        return value + target.closed_form(q, model.prior(params, state, q.loc, **model.given(x))[0])

    def evaluate(model: VAE, params: Params, state: State, x: Data, eps: Tensor) -> Tensor:
        return of_draws(at_draws(model, params, state, x, eps), model, params, state, x, len(eps))

    def share(
        model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool, samples: int, *w: Tensor
    ) -> Estimate:
        part = len(eps) / samples
        grads, passed = pulled(drawn(model, params, state, x, eps, train, part), lambda f, seen: Weights(*w))
        value = torch.zeros_like(passed.log_w[0]) if passed.closed is None else passed.closed.value * part
        new = share_of_state(model, passed.state, state, part)
        reconstruction, kl = _split(passed)
        return Estimate(grads, value, _first(passed.log_w, len(eps)), new, reconstruction * part, kl * part)

    def weigh_all(f: Tensor, seen: Seen | None = None) -> tuple[Weights, Tensor]:
        return weigh(f, seen), bound_of(f, len(f) if seen is None else len(seen.eps))

    parts = Parts(share, terms, weigh_all, see if sees else None, at_draws=at_draws, of_draws=of_draws)
    can_share = not two_pulls and target.closed is None and target.pulls is log_w
    return Estimator(name, claims, None, estimate, evaluate, points, from_pass if can_share else None, parts)


def _draws(values: Tensor, n: int, points: Points) -> Tensor:
    """Those of the values [M, ...] that belong to draws from q: [N, d, ...]."""
    return values.unflatten(0, (n, -1))[:, : points.draws]


def _first(values: Tensor, n: int) -> Tensor:
    """The values [N, B] of the first point of each noise, from those [M, B] of all points."""
    return values if len(values) == n else values.unflatten(0, (n, -1))[:, 0]


def _split(passed: Pass) -> tuple[Tensor, Tensor]:
    """mean_k log p(x|z_k) and the KL, each [B]: minus the closed form, or mean_k log q(z_k|x) - log p(z_k)."""
    log_p_x, log_p_z, log_q = [_first(each, len(passed.seen.eps)) for each in passed.terms]
    kl = (log_q - log_p_z).mean(0) if passed.closed is None else -passed.closed.value
    return log_p_x.mean(0), kl


class Draw(NamedTuple):
    """Points drawn from the posterior, and the functions for the rest of the pass."""

    seen: Seen
    pull: Pull
    """Maps cotangents of z, and of log q(z|x) at fixed z, to the encoder's gradient."""
    theta: Params
    """The parameters of decoder and prior."""
    weigh: Callable[[Params, Tensor], tuple[Tensor, tuple[Tensor, LogWeight, State]]]
    """Maps (theta, z) to what is pulled back [M, B] and (log w [M, B], its terms, state), with the parameters of q
    constant."""
    closed: Closed | None


Weigh = Callable[[Tensor, Seen], Weights]
Pulled = tuple[Params, Pass]
"""The gradient to descend, and the pass that it comes from."""


def forward(
    model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool, points: Points = SAMPLES
) -> Pass:
    """The forward pass, which several estimators can share."""
    return _weigh(_draw(model, params, state, x, eps, train, _Target(points, bounds.elbo), 1))


def _draw(
    model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool, target: _Target, share: float
) -> Draw:
    def draw(phi: Params) -> Any:  # the compiler cannot evaluate a more precise annotation
        q, new = model.encode({**params, "encoder": phi}, state, x, train)
        z = target.points.at(q, eps)
        return (z, log_prob_terms(q, z.detach()), () if target.closed is None else q), (q, z, new)

    def weigh(theta: Params, z: Tensor) -> Any:
        at_z = of_points(encoded, len(z) // len(eps))
        terms, new = log_weight(model, {**params, **theta}, at_z, x, q, z, train)
        pulled = target.pulled(terms)
        return pulled, (pulled if target.pulls is log_w else terms.log_w, terms, new)

    (_, log_q, _), pull, (q, z, encoded) = vjp(draw, params["encoder"], has_aux=True)
    closed = None if target.closed is None else _closed(target, model, params, encoded, x, q, train, share)

    def pull_draw(cotangent: Any, retain_graph: bool = True) -> Any:  # see draw
        z_grads, score = cotangent
        if score.ndim > log_q.ndim:
            raise BadValue(
                f"log_prob of the {type(q).__name__} posterior sums over the latents, and the estimator has a score "
                "weight for each: use a posterior whose log_prob is elementwise"
            )
        score = score if score.ndim == log_q.ndim else score.unsqueeze(-1).expand_as(log_q)
        return pull((z_grads, score, () if closed is None else closed.q_grads), retain_graph=retain_graph)

    theta = {name: params[name] for name in ("decoder", "prior")}
    return Draw(Seen(q, z, eps), pull_draw, theta, weigh, closed)


def _closed(
    target: _Target, model: VAE, params: Params, state: State, x: Data, q: Any, train: bool, share: float
) -> Closed:
    """The closed-form term [B] of the bound, and its gradients to descend, times a share."""

    def value_of(q: Any, prior: Params) -> Any:
        p, _ = model.prior({**params, "prior": prior}, state, q.loc, train, **model.given(x))
        return target.closed_form(q, p)

    value, pull = vjp(value_of, q, params["prior"])
    q_grads, prior_grads = pull(torch.full_like(value, -share / len(value)), retain_graph=False)
    return Closed(value, q_grads, prior_grads)


def _weigh(draw: Draw) -> Pass:
    pulled, pull_weight, (log_w, terms, state) = vjp(draw.weigh, draw.theta, draw.seen.z, has_aux=True)
    return Pass(pulled, log_w, terms, state, draw.pull, pull_weight, draw.seen, draw.closed)


def _pull_once(passed: Pass, weigh: Weigh, *, retain_graph: bool) -> Pulled:
    """Pulls back once, with theta; the gradient along z times path/theta is that of the path term."""
    w = _to_descend(weigh(passed.pulled, passed.seen))
    theta_grads, z_grads = passed.pull_weight(w.theta, retain_graph=retain_graph)
    theta = w.theta if w.path.ndim == 2 else w.theta.unsqueeze(-1)
    z_grads = z_grads * _for_latents(torch.where(theta == 0, 0, w.path / theta))
    (phi_grads,) = passed.pull_draw((z_grads, w.score), retain_graph=retain_graph)
    return _gradient(phi_grads, theta_grads, passed.closed), passed


def _pull_twice(draw: Draw, weigh: Weigh) -> Pulled:
    """Pulls back twice: with theta to the parameters of decoder and prior, and with path to z."""

    def along_z(theta: Params) -> Any:
        pulled, pull, rest = vjp(lambda z: draw.weigh(theta, z), draw.seen.z, has_aux=True)
        w = _to_descend(weigh(pulled, draw.seen))
        with torch.no_grad():  # the result is not differentiated again
            if w.path.ndim == 2:
                (z_grads,) = pull(w.path, retain_graph=True)
            else:
                z_grads = w.path * pull(torch.ones_like(pulled), retain_graph=True)[0]
        return pulled, (w, z_grads, rest)

    pulled, pull, (w, z_grads, rest) = vjp(along_z, draw.theta, has_aux=True)
    (theta_grads,) = pull(w.theta, retain_graph=False)
    (phi_grads,) = draw.pull((z_grads, w.score), retain_graph=False)
    log_w, terms, state = rest
    passed = Pass(pulled, log_w, terms, state, draw.pull, pull, draw.seen, draw.closed)
    return _gradient(phi_grads, theta_grads, draw.closed), passed


def _gradient(phi_grads: Params, theta_grads: Params, closed: Closed | None) -> Params:
    if closed is not None:
        theta_grads = {**theta_grads, "prior": add_trees(theta_grads["prior"], closed.prior_grads)}
    return {"encoder": phi_grads, **theta_grads}


def _for_latents(weight: Tensor) -> Tensor:
    """Weights [M, B] or [M, B, Z] as factors of z [M, B, Z]."""
    return weight if weight.ndim == 3 else weight.unsqueeze(-1)


def _to_descend(w: Weights) -> Weights:
    """The weights whose gradient descends: those of minus the batch mean."""
    return Weights(*(weight / -weight.shape[1] for weight in w))


def scale_tree(tree_: Any, share: float) -> Any:
    """Multiplies a tree by a number."""
    return tree.map(lambda t: t * share, tree_)


def add_trees(sum_: Any, new: Any) -> Any:
    """Adds two trees, or returns the second if the first is None."""
    return new if sum_ is None else tree.map(torch.add, sum_, new)


StateShare = dict[str, tuple[Tensor, Tensor]]
"""For each buffer by path, its new value times a weight, and the weight again if the value has changed, otherwise 0. Of
an integer, such as BatchNorm's count of batches, the increase takes the place of the value."""


def share_of_state(model: VAE, new: State, old: State, weight: float) -> StateShare:
    """The share of a new state in a weighted mean. Frozen parameters and keys have no share."""
    before, shares = running(model, old), {}
    for path, n in running(model, new).items():
        value = n if n.is_floating_point() else n.long() - before[path].long()
        shares[path] = value * weight, (n != before[path]).any() * weight
    return shares


def state_of_shares(total: StateShare, old: State) -> State:
    """The mean state from the sum of all shares. A buffer that no share has changed keeps its bits; keys advance."""
    named = tree.named_leaves(advance(old))
    for path, (value, changed) in total.items():
        before = named[path]
        mean = value if before.is_floating_point() else before + value.round().long()
        named[path] = torch.where(changed > 0, mean.to(before.dtype), before)
    return _from_named(named, old)


_from_named = checks.unchecked(tree.from_named)
