"""What an estimator is: its weights, its claims, what it returns, and how its work divides into parts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

from torch import Tensor

from funcvae._support import checks
from funcvae._support.autograd import Pull
from funcvae.errors import BadType, BadValue
from funcvae.model import VAE, check_trained
from funcvae.modules import Params, State
from funcvae.noise import Noise, is_independent, name_of

__all__ = [
    "Claims", "Estimate", "Estimator", "FromPass", "GradientEstimator", "LogWeights", "PartialBound", "Parts", "Pass",
    "Share", "Weights", "check_arguments", "check_declaration", "check_estimator", "checked_estimate",
    "checked_estimator",
]  # fmt: skip


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


class GradientEstimator(Protocol):
    """A gradient estimator: an `Estimator`, or any function of the same arguments that returns an `Estimate`."""

    def __call__(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, *, train: bool) -> Estimate:
        """The estimate for x [B, ...] from noise eps [N, B, Z]."""
        ...


class Share(Protocol):
    """What n of a datum's N samples add to the estimate: gradient, bound, and the floating-point part of the state."""

    def __call__(
        self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool, samples: int, *w: Tensor
    ) -> Estimate:
        """The share of eps [n, B, Z], where N is `samples`, with these samples' part of the weights, w [n, B] each."""
        ...


class LogWeights(Protocol):
    """The log-weights of some samples."""

    def __call__(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, train: bool) -> Tensor:
        """log w [n, B] of eps [n, B, Z]."""
        ...


class PartialBound(Protocol):
    """What some samples add to the bound, in evaluation mode."""

    def __call__(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, samples: int) -> Tensor:
        """[B], from eps [n, B, Z], where N is `samples`."""
        ...


class Parts(NamedTuple):
    """An estimator's work on some of a datum's samples: the shares of all of them add up to the estimate."""

    share: Share
    log_w: LogWeights | None = None
    """Where a share's weights depend on the log-weights of all samples."""
    weigh: Callable[[Tensor], tuple[Weights, Tensor]] | None = None
    """From log w [N, B] of all samples to their weights, and to the bound [B] that these add to that of the shares."""
    bound: PartialBound | None = None
    """The bound without `weigh`."""


class Pass(NamedTuple):
    """One forward pass, ready to be pulled back with the weights of one estimator after another."""

    log_w: Tensor
    """[N, B]."""
    state: State
    pull_draw: Pull
    """`Draw.pull`."""
    pull_weight: Pull
    """From a cotangent of log w to (the gradient of decoder and prior, the gradient along z)."""


class FromPass(Protocol):
    """An estimator's work after the forward pass, which several can share."""

    def __call__(self, passed: Pass, *, retain_graph: bool) -> Estimate:
        """The estimate; `retain_graph` where the pass is to be pulled back again."""
        ...


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
    _estimate: Callable[[VAE, Params, State, Tensor, Tensor, bool], Estimate]
    """(model, params, state, x, eps, train)."""
    _bound: Callable[[VAE, Params, State, Tensor, Tensor], Tensor]
    """(model, params, state, x, eps)."""
    _from_pass: FromPass | None = None
    """None for those that need more of the forward pass than a `Pass` keeps."""
    _parts: Parts | None = None

    def __call__(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor, *, train: bool) -> Estimate:
        """The estimate for x [B, ...] from noise eps [N, B, Z]."""
        check_arguments(model, params, state, x, eps)
        return self._estimate(model, params, state, x, eps, train)

    def bound(self, model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> Tensor:
        """The value of the target bound [B] in nats, in evaluation mode: half the work of a call."""
        check_arguments(model, params, state, x, eps)
        return self._bound(model, params, state, x, eps)

    @property
    def parts(self) -> Parts:
        """How it works on some of the samples at a time."""
        if self._parts is None:
            raise BadType(f"{self.name} is in chunks already")
        return self._parts

    def claims_under(self, noise: Noise) -> Claims:
        """The claims where eps is drawn by this scheme.

        Raises:
            BadValue: the estimator requires independent samples; those of the scheme are not.
        """
        checks.function("noise", noise, "a scheme, such as noise.iid")
        if is_independent(noise) or self.claims.noise == "normal":
            return self.claims
        if self.claims.noise == "any":
            return self.claims._replace(target=f"{self.claims.target} under {name_of(noise)} noise")
        raise BadValue(
            f"{self.name} requires independent samples; {name_of(noise)} noise is not independent (or not marked by "
            "noise.independent), so its gradient would be biased; use iid noise, or iwae or elbo_mc"
        )


def check_estimator(name: str, estimator: GradientEstimator) -> None:
    """Raises BadType for what can be no estimator, or is the factory of one."""
    checks.function(name, estimator, "an estimator, such as estimators.iwae()")
    if getattr(estimator, "__module__", "") == "funcvae.estimators.table":
        raise BadType(f"{name} is a factory: call it, as in estimators.iwae()")


def checked_estimator(estimator: Estimator) -> Estimator:
    """The estimator itself, if it is an Estimator: raises BadType where it is not."""
    check_estimator("estimator", estimator)
    if not isinstance(estimator, Estimator):
        raise BadType(f"estimator is {checks.describe(estimator)}: it must be an Estimator, such as estimators.iwae()")
    return estimator


def checked_estimate(out: Estimate) -> Estimate:
    """What an estimator returned, if it is an estimate: raises BadType where it is not."""
    if not isinstance(out, Estimate):
        raise BadType(f"the estimator returned {checks.describe(out)}: it must be an Estimate")
    return out


def check_declaration(name: str | None, claims: Claims, **functions: Callable[..., Any]) -> None:
    """Raises BadType unless these are what an estimator is declared with."""
    if name is not None:
        checks.text("name", name)
    if not isinstance(claims, Claims):
        raise BadType(f"claims is {checks.describe(claims)}: it must be Claims")
    for what, function in functions.items():
        checks.function(what, function, "a function of log_w [N, B]")


def check_arguments(model: VAE, params: Params, state: State, x: Tensor, eps: Tensor) -> None:
    """Raises BadType or BadValue unless an estimator can be called with these."""
    check_trained(model, params, state)
    checks.tensor("x", x, "B ...")
    checks.tensor("eps", eps, floating=True)
    if eps.ndim != 3 or eps.shape[1:] != (len(x), model.latent) or eps.numel() == 0:
        want = f"[N, {len(x)}, {model.latent}]"
        raise BadValue(f"eps has shape {list(eps.shape)}: for this x and model it must be {want}, with N >= 1")
    if x.is_floating_point() and eps.dtype != x.dtype:
        raise BadValue(f"eps is {eps.dtype} and x {x.dtype}: draw eps with dtype={x.dtype}")
    if eps.device != x.device:
        checks.same_device(eps=eps, x=x)
