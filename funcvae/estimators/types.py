"""The types of estimators: weights, claims, results, and the parts that the work can be divided into."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from funcvae._support import checks, examples
from funcvae._support.autograd import Pull
from funcvae._support.checks import Count, Floats
from funcvae._support.examples import Data
from funcvae._support.pickling import by_call
from funcvae._support.reprs import short_repr
from funcvae.distributions import Distribution, Posterior
from funcvae.errors import BadType, BadValue
from funcvae.model import VAE, LogWeight, check_prior, check_trained, noise_dtype, unchanged
from funcvae.modules import Params, State
from funcvae.noise import Noise, is_independent, name_of

__all__ = [
    "SAMPLES", "Claims", "Closed", "ClosedForm", "Estimate", "Estimator", "EstimatorAt", "FromPass",
    "GradientEstimator", "PartialBound", "PartialLogWeights", "Parts", "Pass", "Points", "Sample", "Seen", "Share",
    "Weights", "by_step", "check_arguments", "check_claims", "check_estimator", "check_noise", "check_posterior",
    "digits", "spell", "with_posterior_of",
]  # fmt: skip


@short_repr
class Weights(NamedTuple):
    """The three weight arrays of an estimator, each [N, B].

    With `from_points` they are [M, B], and path and score may be [M, B, Z].

    `path` must be zero wherever `theta` is, and path/theta must not be large; otherwise `weighted` needs `two_pulls`.
    """

    path: Tensor
    """The weights of d_k, the derivative of log w_k through z_k."""
    score: Tensor
    """The weights of s_k, the gradient of log q(z_k|x) with z_k fixed."""
    theta: Tensor
    """The weights of the gradient of log w_k in decoder and prior."""


@short_repr
class Seen(NamedTuple):
    """What weights may depend on besides the log-weights."""

    q: Posterior
    z: Tensor
    """The points [M, B, Z]."""
    eps: Tensor
    """The noise [N, B, Z]."""


Sample = Callable[[Posterior, Tensor], Tensor]
"""Maps (q, eps [N, B, Z]) to points z [M, B, Z]; the m = M/N points of each noise are adjacent."""


@dataclass(frozen=True)
class Points:
    """The points at which an estimator evaluates the model.

    Raises:
        BadType, BadValue: a field has another type, or draws is below one.
    """

    sample: Sample
    draws: Count = 1
    """The number of the first points of each noise that are draws from q, from which the bound is computed."""
    breaks: Callable[[Posterior], Tensor] | None = None
    """If the points are steps in the uniform numbers u = Φ(eps): the u [S, B, Z] of the steps, for exact moments."""

    def __post_init__(self) -> None:
        checks.fields(self)

    def at(self, q: Posterior, eps: Tensor) -> Tensor:
        """The points for noise [N, B, Z]. Their shape is checked, because another one might broadcast."""
        if self.sample is _sample:
            return q.sample(eps)
        z, (n, *rest) = checks.floats("the result of points", self.sample(q, eps)), eps.shape
        if list(z.shape[1:]) != rest or len(z) % n or len(z) < n * self.draws:
            must = f"[m·{n}, {', '.join(map(str, rest))}], with m at least {self.draws}"
            raise BadValue(f"the points have shape {list(z.shape)}: it must be {must}")
        return z


def _sample(q: Posterior, eps: Tensor) -> Tensor:
    return q.sample(eps)


SAMPLES = Points(_sample)
"""One draw from q for each noise: `q.sample(eps)`."""

ClosedForm = Callable[[Posterior, Distribution], Tensor]
"""Maps q(z|x) and p(z) to a term [B] of a bound, in nats."""


class Closed(NamedTuple):
    """A term of a bound in closed form, and its gradients to descend."""

    value: Tensor
    """[B], in nats."""
    q_grads: Any
    """Like q."""
    prior_grads: Params


@short_repr
class Claims(NamedTuple):
    """The properties of an estimator, provided that log w of one example does not depend on the noise of another.

    BatchNorm in training mode couples examples: the same formula is used, but the claims do not hold. They
    also fail for a posterior that is not a proper density, such as a SignedNormal.
    """

    target: str
    """The name of the bound in `Estimate.bound`, whose gradient is estimated."""
    unbiased_encoder: bool
    """Whether the expectation of the encoder's gradient is the gradient of the expected target."""
    unbiased_decoder: bool
    """The same for decoder and prior."""
    papers: tuple[str, ...] = ()
    """Where the estimator was published."""
    noise: Literal["independent", "normal", "any"] = "independent"
    """What the claims require of the samples of one datum. "independent": they are independent standard normals.
    "normal": each is standard normal, and they may depend on one another. "any": they may have any distribution, but
    the target's expectation is then the one under that distribution."""
    posterior: Literal["reparameterised", "factorised", "discrete", "any"] = "reparameterised"
    """What the claims require of q(z|x). "reparameterised": samples have derivatives in the fields of q, which a path
    weight multiplies. "factorised": `log_prob` is elementwise. "discrete": factorised, with finitely many `values`.
    "any": no more than a `log_prob`. Training and the lab compare the derivatives of a posterior that does not say what
    its samples are; a direct call trusts it."""
    note: str = ""
    """Further properties, in a few words."""


@short_repr
class Estimate(NamedTuple):
    """The result of an estimator for data [B, ...] and noise [N, B, Z]."""

    grads: Params
    """The gradient to descend, a tree like params: minus the gradient of the target's batch mean, in nats."""
    bound: Tensor
    """The value of the target bound [B], in nats; never a surrogate."""
    log_w: Tensor
    """The log-weights log p(x, z_k) - log q(z_k|x) [N, B], in nats; log p(x|z_k) if q is a Delta (no density). Of
    several points for each noise, those of the first."""
    state: State
    """The new state."""
    reconstruction: Tensor | None = None
    """mean_k log p(x|z_k) [B], in nats; None if an estimator does not report it."""
    kl: Tensor | None = None
    """mean_k log q(z_k|x) - log p(z_k) [B], in nats, or KL(q ‖ p) in closed form if the estimator uses that."""

    def means(self) -> Tensor:
        """The batch means [3] of bound, reconstruction and KL; NaN for what is not reported."""
        mean = self.bound.mean()
        rest = [mean.new_full((), torch.nan) if v is None else v.mean() for v in (self.reconstruction, self.kl)]
        return torch.stack([mean, *rest])


class GradientEstimator(Protocol):
    """An `Estimator`, or any function of the same arguments that returns an `Estimate`."""

    def __call__(self, model: VAE, params: Params, state: State, x: Data, eps: Tensor, *, train: bool) -> Estimate:
        """The estimate for x [B, ...] from noise eps [N, B, Z]."""
        ...


class Share(Protocol):
    """The contribution of n of the N samples to gradient, bound and state; its `state` is a `StateShare`."""

    def __call__(
        self, model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool, samples: int, *w: Tensor
    ) -> Estimate:
        """The share of eps [n, B, Z]; `samples` is N, and each w [m·n, B, ...] holds weights of their points."""
        ...


class PartialLogWeights(Protocol):
    """What is pulled back, usually the log-weights, of some samples."""

    def __call__(self, model: VAE, params: Params, state: State, x: Data, eps: Tensor, train: bool) -> Tensor:
        """The log-weights [m·n, B] of eps [n, B, Z]."""
        ...


class PartialBound(Protocol):
    """The contribution of some samples to the bound, in evaluation mode."""

    def __call__(self, model: VAE, params: Params, state: State, x: Data, eps: Tensor, samples: int) -> Tensor:
        """The contribution [B] of eps [n, B, Z]; `samples` is N."""
        ...


class Parts(NamedTuple):
    """The work of an estimator on some samples of each datum: the shares of all samples add up to the estimate."""

    share: Share
    log_w: PartialLogWeights | None = None
    """The log-weights, if the weights of a share depend on those of all samples."""
    weigh: Callable[..., tuple[Weights, Tensor]] | None = None
    """Maps log w [M, B] of all points, and what `see` returns, to the weights and the bound [B] to add to the bounds of
    the shares."""
    see: Callable[[VAE, Params, State, Data, Tensor, bool], Seen] | None = None
    """What the weights depend on besides the log-weights, if anything, from the noise of all samples."""
    at_draws: Callable[[VAE, Params, State, Data, Tensor], Tensor] | None = None
    """What is pulled back [d·n, B] at the draws from q of eps [n, B, Z], in evaluation mode; None without `weigh`."""
    of_draws: Callable[[Tensor, VAE, Params, State, Data, int], Tensor] | None = None
    """The bound [B] from all of it [d·N, B], (model, params, state, x) and N."""
    bound: PartialBound | None = None
    """The bound, if there is no `weigh`."""


class Pass(NamedTuple):
    """One forward pass, which can be pulled back with the weights of several estimators."""

    pulled: Tensor
    """What is pulled back [M, B]: the log-weights, or log p(x|z)."""
    log_w: Tensor
    """The log-weights [M, B]."""
    terms: LogWeight
    """Their terms."""
    state: State
    """The new state."""
    pull_draw: Pull
    """Maps cotangents of z, and of log q(z|x) at fixed z, to the encoder's gradient."""
    pull_weight: Pull
    """Maps a cotangent of `pulled` to (the gradient of decoder and prior, the gradient along z)."""
    seen: Seen
    closed: Closed | None


class FromPass(Protocol):
    """The work of an estimator after the forward pass, which several estimators can share."""

    def __call__(self, passed: Pass, *, retain_graph: bool) -> Estimate:
        """The estimate; set `retain_graph` to pull back the same pass again."""
        ...


@short_repr
@by_call
@dataclass(frozen=True)
class Estimator:
    """A gradient estimator: call it with (model, params, state, x [B, ...], eps [N, B, Z], train=...).

    The call checks its arguments once and then runs `estimate`, which trusts them.

    Raises:
        BadValue: (from the call) eps is not [N, B, Z] for this x and model, or the estimator does not allow this N.
        BadType: (from the call) the posterior has no density, and the estimator requires log q.
    """

    name: str
    claims: Claims
    weights: Callable[[Tensor], Weights] | None
    """Maps log-weights [N, B] to weights; None unless they determine the weights and the estimator is `weighted`."""
    estimate: Callable[[VAE, Params, State, Data, Tensor, bool], Estimate]
    """The estimate of (model, params, state, x, eps, train), without checks."""
    evaluate: Callable[[VAE, Params, State, Data, Tensor], Tensor]
    """The target bound [B] of (model, params, state, x, eps), without checks."""
    points: Points = SAMPLES
    """Where the model is evaluated."""
    from_pass: FromPass | None = None
    """The estimate of a forward pass at these points; None for estimators that need more than a `Pass` holds."""
    _parts: Parts | None = None

    def __call__(self, model: VAE, params: Params, state: State, x: Data, eps: Tensor, *, train: bool) -> Estimate:
        """The estimate for x [B, ...] from noise eps [N, B, Z]."""
        if torch.compiler.is_compiling():
            return self.estimate(model, params, state, x, eps, train)
        check_arguments(model, params, state, x, eps, train=train)
        model = with_posterior_of(model.unchecked(), self)
        return unchanged(MODEL, lambda x, eps: self.estimate(model, params, state, x, eps, train), x, eps)

    def bound(self, model: VAE, params: Params, state: State, x: Data, eps: Tensor) -> Tensor:
        """The value of the target bound [B] in nats, in evaluation mode, at half the cost of a call."""
        if torch.compiler.is_compiling():
            return self.evaluate(model, params, state, x, eps)
        check_arguments(model, params, state, x, eps)
        model = model.unchecked()
        if self.claims.posterior == "discrete":  # the points of others do not depend on the posterior's kind
            model = with_posterior_of(model, self)
        return unchanged(MODEL, lambda x, eps: self.evaluate(model, params, state, x, eps), x, eps)

    @property
    def parts(self) -> Parts:
        """The work on some samples at a time."""
        if self._parts is None:
            raise BadType(f"{self.name} is already in chunks")
        return self._parts

    def claims_under(self, noise: Noise) -> Claims:
        """The claims that hold if this scheme draws eps.

        Raises:
            BadValue: the estimator requires independent samples, and the scheme's are not.
        """
        checks.function("noise", noise)
        if is_independent(noise) or self.claims.noise == "normal":
            return self.claims
        if self.claims.noise == "any":
            return self.claims._replace(target=f"{self.claims.target} under {name_of(noise)} noise")
        raise BadValue(
            f"{self.name} requires independent samples; {name_of(noise)} noise is not independent (or not marked by "
            "noise.independent), so its gradient would be biased; use iid noise, or iwae or elbo_mc"
        )


EstimatorAt = Callable[[Tensor], Estimator]
"""Maps the number of steps made, an int64 tensor without axes, to the estimator of the next step."""


def by_step(estimator: Estimator | EstimatorAt) -> EstimatorAt:
    """The estimator as a function of the step: the given function, or a constant one.

    Raises:
        BadType: it is neither an Estimator nor a function of the step that returns one.
    """
    if isinstance(estimator, Estimator):
        return lambda step: estimator
    check_estimator("estimator", estimator)
    try:
        inspect.signature(estimator).bind(0)
    except (TypeError, ValueError):
        what = "an Estimator, or a function of the step that returns one"
        raise BadType(f"estimator is {checks.describe(estimator)}: it must be {what}") from None
    checks.instance("the result of estimator(step)", estimator(torch.zeros((), dtype=torch.int64)), Estimator)
    return estimator


MODEL = "a distribution of the model"


def check_claims(claims: Claims) -> None:
    """Raises BadValue if the claims name an unknown requirement on noise or posterior."""
    checks.known("noise of claims", claims.noise, ("independent", "normal", "any"))
    checks.known("posterior of claims", claims.posterior, ("reparameterised", "factorised", "discrete", "any"))


def spell(name: str, *arguments: float | Tensor) -> str:
    """The name from which `parse` makes the same estimator."""
    return ":".join([name, *map(digits, arguments)])


def digits(number: float | Tensor) -> str:
    """A number without a decimal point if it is whole; "scheduled" for a tensor, which a schedule returns."""
    return "scheduled" if isinstance(number, Tensor) else str(number).removesuffix(".0")


def check_estimator(name: str, estimator: Any) -> None:
    """Raises BadType for an object that is not an estimator, such as the factory of one."""
    checks.function(name, estimator)
    if getattr(estimator, "__module__", None) in _OF_FACTORIES:
        factory = estimator.__name__
        raise BadType(f"{name} is the factory {factory}: call it, as in estimators.{factory}()")


_OF_FACTORIES = tuple(f"funcvae.estimators.{name}" for name in ("table", "quadratic", "discrete"))


def check_posterior(
    estimator: GradientEstimator, q: Posterior, is_reparameterised: Callable[[Posterior], bool]
) -> None:
    """Raises BadValue if the claims of an estimator do not hold for the posterior q."""
    claims = getattr(estimator, "claims", None)
    name, kind = getattr(estimator, "name", "the estimator"), type(q).__name__
    if not isinstance(claims, Claims):
        return
    if claims.posterior == "reparameterised" and not is_reparameterised(q):
        of_elbo = "rloo, disarm or score" if hasattr(q, "values") else "rloo or score"
        raise BadValue(
            f"{name} requires a posterior with reparameterised samples; those of the {kind} posterior do not have the "
            f"derivatives of their values, so its gradient would be wrong; use {of_elbo} for the ELBO, vimco or ovis:0 "
            "for L_K, rws or tvo (or set the posterior's attribute reparameterised if they do, or posterior='any' in "
            "the claims of an estimator of your own without path weights)"
        )
    if claims.posterior == "discrete" and not hasattr(q, "values"):
        raise BadValue(
            f"{name} requires a posterior that lists its values(), such as a Bernoulli, and this is a {kind}: use rloo "
            "or score for the ELBO, vimco for L_K, or elbo_mc or dreg if its samples are reparameterised"
        )
    if claims.posterior in ("factorised", "discrete") and q.log_prob(q.loc.unsqueeze(0)).ndim != 3:
        raise BadValue(
            f"{name} requires a posterior of independent latents, whose log_prob is elementwise, and this is a {kind}: "
            "use rloo, elbo_mc or dreg"
        )


def with_posterior_of(model: VAE, *estimators: GradientEstimator) -> VAE:
    """The same model, whose posterior is refused if it says that these estimators do not allow it, and whose prior is
    refused if its latents take other values."""
    if torch.compiler.is_compiling():
        return model
    drawn: list[Posterior] = []

    def encode(params: Params, state: State, x: Data, train: bool = False) -> tuple[Posterior, State]:
        q, state = model.encode(params, state, x, train)
        for estimator in estimators:
            check_posterior(estimator, q, lambda q: getattr(q, "reparameterised", not hasattr(q, "values")))
        drawn[:] = [q]
        return q, state

    def prior(
        params: Params, state: State, z: Tensor, train: bool = False, condition: Data | None = None
    ) -> tuple[Distribution, State]:
        p, state = model.prior(params, state, z, train, *(() if condition is None else (condition,)))
        if drawn and not torch.compiler.is_compiling():
            check_prior(drawn[0], p)
        return p, state

    return model._replace(encode=encode, prior=prior)


def check_noise(model: VAE, params: Params, x: Data, eps: Tensor, samples: int | None = None) -> None:
    """Raises unless eps is [N, B, Z] and of the dtype of the parameters; others might broadcast or be promoted."""
    shape = checks.floats("eps", eps).shape
    if len(shape) != 3 or shape != (samples or len(eps), examples.count(x), model.latent) or eps.numel() == 0:
        want = f"[{samples or 'N'}, {examples.count(x)}, {model.latent}]" + ", with N >= 1" * (samples is None)
        raise BadValue(f"eps has shape {list(shape)}: it must be {want}")
    if eps.dtype != (dtype := noise_dtype(params)):
        raise BadValue(f"eps is {eps.dtype} and the parameters are {dtype}: draw eps with dtype={dtype}")


@checks.arguments
def check_arguments(model: VAE, params: Params, state: State, x: Data, eps: Floats, *, train: bool = False) -> None:
    """Raises BadType or BadValue unless an estimator can be called with these."""
    checks.unchecked(check_trained)(model, params, state)
    check_noise(model, params, x, eps)
    examples.same_device(x, eps=eps)
