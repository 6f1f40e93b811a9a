"""The engine that turns a function of the log-weights into a gradient estimator.

With z_k = z(eps_k, x), log w_k = log p(x, z_k) - log q(z_k|x), and

    d_k = (∂ log w_k / ∂z_k) · ∂z_k/∂phi      q's parameters held constant in log w_k,
    s_k = ∇_phi log q(z_k|x)                   at fixed z_k,

an estimator ascends along

    encoder              sum_k path_k d_k + score_k s_k
    decoder and prior    sum_k theta_k ∇ log w_k

where path, score and theta are functions of the log-weights alone and are held constant. (The total derivative of
log w_k is d_k - s_k.) These functions are in `estimators.table`. An estimator is a pure function of (model, params,
state, x, eps). It works under `vmap` over eps, in float32 and float64, and under `torch.compile(fullgraph=True)`.
A transform cannot read values, so the estimators return non-finite numbers unchecked: callers test for them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor

from funcvae import bounds, tree
from funcvae._support import checks
from funcvae._support.autograd import Pull, vjp
from funcvae._support.pickling import remembered
from funcvae.errors import BadType, BadValue
from funcvae.estimators.types import (
    Claims,
    Estimate,
    Estimator,
    Parts,
    Pass,
    Weights,
)
from funcvae.model import VAE, log_prob, log_weight, running
from funcvae.modules import Params, State

__all__ = ["StateShare", "add_trees", "forward", "scale_tree", "share_of_state", "state_of_shares", "weighted"]


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
    bound = checks.unchecked(bound)

    # What the user's functions return is checked here, because other shapes might broadcast.
    def checked_weights(log_w: Tensor) -> Weights:
        given = weights(log_w.detach())
        if not (isinstance(given, tuple) and len(given) == 3 and all(isinstance(weight, Tensor) for weight in given)):
            raise BadType(f"the weights are {checks.describe(given)}: they must be a Weights of three tensors")
        if any(weight.shape != log_w.shape for weight in given):
            shapes = [list(weight.shape) for weight in given]
            raise BadValue(f"the weights have shapes {shapes}: each must be {list(log_w.shape)}")
        return Weights(*given)

    def checked_bound(log_w: Tensor) -> Tensor:
        value = bound(log_w)
        if checks.tensor("the bound", value).shape != log_w.shape[1:]:
            raise BadValue(f"the bound has shape {list(value.shape)}: it must be [B], here [{log_w.shape[1]}]")
        return value

    def pulled(drawn: Draw, weigh: Callable[[Tensor], Weights]) -> Pulled:
        return _pull_twice(drawn, weigh) if two_pulls else _pull_once(_weigh(drawn), weigh, retain_graph=False)

    def finished(grads: Params, log_w: Tensor, new_state: State) -> Estimate:
        return Estimate(grads, checked_bound(log_w), log_w, new_state)

    def estimate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Estimate:
        return finished(*pulled(_draw(model, params, state, x, eps, train), checked_weights))

    def from_pass(passed: Pass, *, retain_graph: bool) -> Estimate:
        return finished(*_pull_once(passed, checked_weights, retain_graph=retain_graph))

    def log_weights(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Tensor:
        q, state = model.encode(params, state, x, train)
        return log_weight(model, params, state, x, q, q.sample(eps), train)[0]

    def evaluate(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> Tensor:
        return checked_bound(log_weights(model, params, state, x, eps, False))

    def share(
        model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool, samples: int, *w: Tensor
    ) -> Estimate:
        drawn = _draw(model, params, state, x, eps, train)
        grads, log_w, new_state = pulled(drawn, lambda log_w: Weights(*w))
        return Estimate(
            grads, torch.zeros_like(log_w[0]), log_w, share_of_state(model, new_state, state, len(eps) / samples)
        )

    def weigh(log_w: Tensor) -> tuple[Weights, Tensor]:
        return checked_weights(log_w), checked_bound(log_w)

    called = str(name or getattr(weights, "__name__", "weighted"))
    parts = Parts(share, log_weights, weigh)
    return Estimator(called, claims, weights, estimate, evaluate, None if two_pulls else from_pass, parts)


class Draw(NamedTuple):
    """Latents drawn from the posterior, and the functions for the rest of the pass."""

    z: Tensor
    """The latents [N, B, Z]."""
    pull: Pull
    """Maps cotangents of z, and of log q(z|x) at fixed z, to the encoder's gradient."""
    theta: Params
    """The parameters of decoder and prior."""
    weigh: Callable[[Params, Tensor], tuple[Tensor, State]]
    """Maps (theta, z) to (log w [N, B], state), with the parameters of q held constant."""


Pulled = tuple[Params, Tensor, State]
"""The gradient to descend, log w [N, B], and the new state."""


def forward(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Pass:
    """The forward pass, which several estimators can share."""
    return _weigh(_draw(model, params, state, x, eps, train))


def _draw(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Draw:
    def draw(phi: Params) -> Any:  # the compiler cannot evaluate a more precise annotation
        q, new = model.encode({**params, "encoder": phi}, state, x, train)
        z = q.sample(eps)
        return (z, log_prob(q, z.detach())), (q, z, new)

    def weigh(theta: Params, z: Tensor) -> Any:
        return log_weight(model, {**params, **theta}, encoded, x, q, z, train)

    _, pull, (q, z, encoded) = vjp(draw, params["encoder"], has_aux=True)
    return Draw(z, pull, {name: params[name] for name in ("decoder", "prior")}, weigh)


def _weigh(drawn: Draw) -> Pass:
    log_w, pull_weight, new_state = vjp(drawn.weigh, drawn.theta, drawn.z, has_aux=True)
    return Pass(log_w, new_state, drawn.pull, pull_weight)


def _pull_once(passed: Pass, weigh: Callable[[Tensor], Weights], *, retain_graph: bool) -> Pulled:
    """Pulls back log w once, with theta; the gradient along z times path/theta is that of the path term."""
    w = _to_descend(weigh(passed.log_w))
    theta_grads, z_grads = passed.pull_weight(w.theta, retain_graph=retain_graph)
    z_grads = z_grads * rearrange(torch.where(w.theta == 0, 0, w.path / w.theta), "n b -> n b 1")
    (phi_grads,) = passed.pull_draw((z_grads, w.score), retain_graph=retain_graph)
    return {"encoder": phi_grads, **theta_grads}, passed.log_w, passed.state


def _pull_twice(drawn: Draw, weigh: Callable[[Tensor], Weights]) -> Pulled:
    """Pulls back log w twice: with theta to the parameters of decoder and prior, and with path to z."""

    def along_z(theta: Params) -> Any:
        log_w, pull, state = vjp(lambda z: drawn.weigh(theta, z), drawn.z, has_aux=True)
        w = _to_descend(weigh(log_w))
        with torch.no_grad():  # the result is not differentiated again
            (z_grads,) = pull(w.path, retain_graph=True)
        return log_w, (w, z_grads, state)

    log_w, pull, (w, z_grads, state) = vjp(along_z, drawn.theta, has_aux=True)
    (theta_grads,) = pull(w.theta, retain_graph=False)
    (phi_grads,) = drawn.pull((z_grads, w.score), retain_graph=False)
    return {"encoder": phi_grads, **theta_grads}, log_w, state


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
    """The share of a new state in a weighted mean. Frozen parameters have no share."""
    before, shares = running(model, old), {}
    for path, n in running(model, new).items():
        value = n if n.is_floating_point() else n.long() - before[path].long()
        shares[path] = value * weight, (n != before[path]).any() * weight
    return shares


def state_of_shares(total: StateShare, old: State) -> State:
    """The mean state from the sum of all shares. A buffer that no share has changed keeps its bits."""
    named = tree.named_leaves(old)
    for path, (value, changed) in total.items():
        before = named[path]
        mean = value if before.is_floating_point() else before + value.round().long()
        named[path] = torch.where(changed > 0, mean.to(before.dtype), before)
    return _from_named(named, old)


_from_named = checks.unchecked(tree.from_named)
