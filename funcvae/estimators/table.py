"""The gradient estimators: a table of short functions from log-weights to weights, which one engine runs.

The docstring of `funcvae.estimators` has the notation.

Weights are finite and accurate for log-weights that are thousands of nats apart, and where v rounds to 1. A log-weight
of -inf, an impossible sample, has weight 0. Then weights are non-finite only where they are infinite in exact
arithmetic: those of `score`, of `rloo` and of the first term of `tvo`, whose target is -inf; of `vimco` and `ovis` at
K = 2; of `renyi` for alpha > 1; of `miwae` and `piwae` in a group without another sample.
"""

import math
from itertools import pairwise
from typing import Annotated, Any

import torch
from einops import rearrange
from torch import Tensor

from funcvae import bounds
from funcvae._support import checks
from funcvae._support.checks import Count, Fraction, Only, at_least
from funcvae._support.pickling import remembered
from funcvae.bounds import Partition
from funcvae.errors import BadValue
from funcvae.estimators.closed_form_kl import analytic_kl, floored, scaled
from funcvae.estimators.engine import weighted
from funcvae.estimators.leave_one_out import others_logsumexp, others_mean
from funcvae.estimators.types import Claims, Estimator, Weights, digits, spell

__all__ = [
    "beta_elbo", "ciwae", "dreg", "elbo", "elbo_mc", "free_bits", "iwae", "iwae_stl", "miwae", "ovis", "piwae",
    "renyi", "rloo", "rws", "rws_dreg", "score", "stl", "tvo", "vimco", "vimco_am", "vimco_star", "vr_iwae_dreg",
]  # fmt: skip


@remembered
def elbo() -> Estimator:
    """The reparameterised ELBO with the KL in closed form.

        mean_k log p(x|z_k) - KL(q(z|x) ‖ p(z))

    Unbiased. Its variance is usually lower than that of `elbo_mc`, but not always: the gradient lacks a term that can
    cancel noise. With a Delta posterior the KL counts as 0, and this is the objective of the plain autoencoder.

    Reference: Kingma & Welling (2014), arXiv:1312.6114.
    """
    return analytic_kl("elbo", scaled(1.0), Claims("ELBO", True, True, ("arXiv:1312.6114",), "normal"))


def _weight(name: str, value: Any) -> float | Tensor:
    if isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point():  # its value is not read
        return value
    in_float32 = checks.that(lambda value: value <= torch.finfo(torch.float32).max, "finite in float32")
    return at_least(0)(name, in_float32(name, checks.number(name, value)))


Weight = Annotated[float | Tensor, Only(_weight)]  # a number, 0 or more, or a floating-point tensor without axes


@remembered
@checks.arguments
def beta_elbo(beta: Weight) -> Estimator:
    """The objective of the beta-VAE: the ELBO with beta times the KL in closed form.

        mean_k log p(x|z_k) - beta KL(q(z|x) ‖ p(z))

    Unbiased. It is a bound on log p(x) only for beta >= 1. For KL annealing, give `funcvae.train.fit` a function of the
    step, such as `lambda step: beta_elbo(optim.linear(0, 1, 10_000)(step))`.

    Args:
        beta: a number, or a floating-point tensor without axes, as a schedule returns it.

    Reference: Higgins et al. (2017), "beta-VAE".
    """
    claims = Claims(f"ELBO with {digits(beta)} KL", True, True, ("Higgins et al. 2017",), "normal")
    return analytic_kl(spell("beta_elbo", beta), scaled(beta), claims)


@remembered
@checks.arguments
def free_bits(least: Weight) -> Estimator:
    """The ELBO with free bits: the KL of each latent counts as at least λ nats, on average over the batch.

        mean_k log p(x|z_k) - Σ_j max(λ, batch mean of KL(q(z_j|x) ‖ p(z_j)))

    A latent whose mean KL is below λ has no KL gradient, so the KL does not push it towards the prior.

    In `bound` [B], the KL of such a latent is λ for each datum, and that of another is its own, so the batch mean of
    `bound` is the objective. It depends on the batch: each shard of `by_rows`, and each batch of a test set, compares
    the mean over its own data with λ. `funcvae.variance.exact` takes each datum as a batch. Unbiased, for the objective
    of the batch.

    Args:
        least: λ in nats for each latent; a number, or a floating-point tensor without axes, as a schedule returns it.

    Reference: Kingma et al. (2016), arXiv:1606.04934, appendix C.8, with one latent in each group.
    """
    claims = Claims(
        f"ELBO with {digits(least)} free nats", True, True, ("arXiv:1606.04934",), "normal",
        note="the KL of each latent is compared with its free nats by its mean over the batch or shard",
    )  # fmt: skip
    return analytic_kl(spell("free_bits", least), floored(least), claims)


@remembered
def elbo_mc() -> Estimator:
    """The reparameterised ELBO with a sampled KL: the total derivative of mean_k log w_k.

        path 1/K, score -1/K, theta 1/K

    Unbiased, for every prior and every posterior with a density.

    Reference: Kingma & Welling (2014), arXiv:1312.6114.
    """

    def elbo_mc(log_w: Tensor) -> Weights:
        mean = _mean(log_w)
        return Weights(path=mean, score=-mean, theta=mean)

    return weighted(elbo_mc, bound=bounds.elbo, claims=Claims("ELBO", True, True, ("arXiv:1312.6114",), "normal"))


@remembered
def stl() -> Estimator:
    """Sticking the landing: `elbo_mc` without its score term, whose mean is zero.

        path 1/K, score 0, theta 1/K

    Unbiased. Its encoder gradient is zero for every eps when q(z|x) = p(z|x).

    Reference: Roeder, Wu & Duvenaud (2017), arXiv:1703.09194.
    """

    def stl(log_w: Tensor) -> Weights:
        mean = _mean(log_w)
        return Weights(path=mean, score=torch.zeros_like(mean), theta=mean)

    return weighted(stl, bound=bounds.elbo, claims=Claims("ELBO", True, True, ("arXiv:1703.09194",), "normal"))


@remembered
def iwae() -> Estimator:
    """The total derivative of the importance-weighted bound L_K.

        path v, score -v, theta v

    Unbiased. The signal-to-noise ratio of its encoder gradient decreases as K^-½.

    References: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519; Rainforth et al. (2018), arXiv:1802.04537.
    """

    def iwae(log_w: Tensor) -> Weights:
        v = _softmax(log_w)
        return Weights(path=v, score=-v, theta=v)

    return weighted(iwae, bound=bounds.iwae, claims=Claims("L_K", True, True, ("arXiv:1509.00519",), "any"))


@remembered
def iwae_stl() -> Estimator:
    """`iwae` without its score term, whose mean is not zero for K > 1: the encoder's gradient is biased.

        path v, score 0, theta v

    For every eps its encoder gradient is the sum of those of `iwae` and `rws`. Its expectation is that of `ovis(1)`.

    References: Roeder, Wu & Duvenaud (2017), arXiv:1703.09194; for the bias, Tucker et al. (2019), arXiv:1810.04152.
    """

    def iwae_stl(log_w: Tensor) -> Weights:
        v = _softmax(log_w)
        return Weights(path=v, score=torch.zeros_like(v), theta=v)

    claims = Claims("L_K", False, True, ("arXiv:1703.09194",), "any", note="unbiased at K = 1")
    return weighted(iwae_stl, bound=bounds.iwae, claims=claims)


@remembered
def dreg() -> Estimator:
    """The doubly reparameterised gradient of L_K.

        path v², score 0, theta v

    Unbiased: the score term of the encoder is reparameterised once more. The signal-to-noise ratio of the encoder
    gradient increases as K^½. At K = 1 it is `stl`. The decoder's gradient is that of `iwae`.

    Reference: Tucker, Lawson, Gu & Maddison (2019), arXiv:1810.04152.
    """

    def dreg(log_w: Tensor) -> Weights:
        v = _softmax(log_w)
        return Weights(path=v**2, score=torch.zeros_like(v), theta=v)

    return weighted(dreg, bound=bounds.iwae, claims=Claims("L_K", True, True, ("arXiv:1810.04152",)))


@remembered
@checks.arguments
def renyi(alpha: float) -> Estimator:
    """The total derivative of the variational Rényi bound (1/(1-α)) log mean_k w_k^(1-α), with u = softmax_k((1-α) f).

        path u, score -u, theta u

    Unbiased. It is `iwae` at α = 0, and `elbo_mc` in the limit α -> 1.

    Reference: Li & Turner (2016), arXiv:1602.02311.
    """

    def renyi(log_w: Tensor) -> Weights:
        u, _ = _tempered_mean(log_w, 1 - alpha)
        return Weights(path=u, score=-u, theta=u)

    claims = Claims(f"Rényi({digits(alpha)})", True, True, ("arXiv:1602.02311",), "any")
    return weighted(renyi, bound=bounds.renyi(alpha), claims=claims, name=spell("renyi", alpha))


@remembered
@checks.arguments
def vr_iwae_dreg(alpha: float) -> Estimator:
    """The doubly reparameterised gradient of the variational Rényi bound, with u = softmax_k((1-α) f).

        path αu + (1-α)u², score 0, theta u

    Unbiased. It is `dreg` at α = 0, and `stl` in the limit α -> 1.

    Reference: Daudel, Benton, Shi & Doucet (2023), arXiv:2210.06226.
    """
    if not 0 <= alpha < 1:
        raise BadValue(f"alpha is {alpha}: it must lie in [0, 1); use stl for 1")

    def vr_iwae_dreg(log_w: Tensor) -> Weights:
        u, _ = _tempered_mean(log_w, 1 - alpha)
        return Weights(path=alpha * u + (1 - alpha) * u**2, score=torch.zeros_like(u), theta=u)

    claims = Claims(f"Rényi({digits(alpha)})", True, True, ("arXiv:2210.06226",))
    return weighted(vr_iwae_dreg, bound=bounds.renyi(alpha), claims=claims, name=spell("vr_iwae_dreg", alpha))


@remembered
def score() -> Estimator:
    """The score-function gradient of the ELBO (REINFORCE), without a baseline and without a derivative of z.

        path 0, score f/K, theta 1/K

    Unbiased.

    Reference: Williams (1992), "Simple statistical gradient-following algorithms".
    """

    def score(log_w: Tensor) -> Weights:
        return Weights(path=torch.zeros_like(log_w), score=log_w / len(log_w), theta=_mean(log_w))

    claims = Claims("ELBO", True, True, ("Williams 1992",), "normal", "any")
    return weighted(score, bound=bounds.elbo, claims=claims)


@remembered
def rloo() -> Estimator:
    """The score-function gradient of the ELBO; the baseline is the mean over the other samples.

        path 0, score (f_k - mean_{j≠k} f_j)/K, theta 1/K

    Unbiased, because the others do not depend on sample k. K >= 2.

    Reference: Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!".
    """

    def rloo(log_w: Tensor) -> Weights:
        f = _from_the_top(_two_or_more("rloo", log_w))
        score = (f - _others_mean(f)) / len(f)
        return Weights(path=torch.zeros_like(log_w), score=score, theta=_mean(log_w))

    claims = Claims("ELBO", True, True, ("Kool et al. 2019",), posterior="any", note="K >= 2")
    return weighted(rloo, bound=bounds.elbo, claims=claims)


@remembered
def vimco() -> Estimator:
    """The score-function gradient of L_K; the baseline is L_K with w_k replaced by the geometric mean of the others.

        path 0, score L_K - L_{-k} - v, theta v

    Unbiased. K >= 2.

    Reference: Mnih & Rezende (2016), arXiv:1602.06725.
    """

    def vimco(log_w: Tensor) -> Weights:
        f = _from_the_top(_two_or_more("vimco", log_w))
        v, total, others = _softmax(f), f.logsumexp(0), _others_mean(f)
        # L_K - L_{-k} = -log(1 - v + g), where g is the geometric mean of the others over the sum. This form is
        # accurate, except where v is close to 1: there log-sums are.
        g = (others - total).exp()
        by_sums = total - torch.logaddexp(_others_logsumexp(f), others) - v
        score = torch.where(g - v > -0.5, -g - _log1p_minus(g - v), by_sums)
        return Weights(path=torch.zeros_like(v), score=score, theta=v)

    claims = Claims("L_K", True, True, ("arXiv:1602.06725",), posterior="any", note="K >= 2")
    return weighted(vimco, bound=bounds.iwae, claims=claims)


@remembered
def vimco_am() -> Estimator:
    """`vimco` with the arithmetic mean of the other weights as the replacement of w_k.

        path 0, score -log(1-v) - v + log(1-1/K), theta v

    Unbiased. K >= 2.

    Reference: Mnih & Rezende (2016), arXiv:1602.06725.
    """

    def vimco_am(log_w: Tensor) -> Weights:
        v, score = _without_own_weight("vimco_am", log_w)
        return Weights(path=torch.zeros_like(v), score=score + math.log1p(-1 / len(v)), theta=v)

    claims = Claims("L_K", True, True, ("arXiv:1602.06725",), posterior="any", note="K >= 2")
    return weighted(vimco_am, bound=bounds.iwae, claims=claims)


@remembered
def vimco_star() -> Estimator:
    """VIMCO-★ for L_K: `vimco` with 0 as the replacement of w_k. The same as `ovis(0)`.

        path 0, score -log(1-v) - v, theta v

    Unbiased. The score weight is of order v², so the signal-to-noise ratio of the encoder's gradient increases as K^½.
    Those of `vimco` and `vimco_am` decrease as K^-½. K >= 2.

    Reference: Daudel (2026), "Importance Weighted Variational Inference without the Reparameterization Trick",
    arXiv:2602.01412.
    """

    def vimco_star(log_w: Tensor) -> Weights:
        v, score = _without_own_weight("vimco_star", log_w)
        return Weights(path=torch.zeros_like(v), score=score, theta=v)

    claims = Claims("L_K", True, True, ("arXiv:2602.01412",), posterior="any", note="K >= 2")
    return weighted(vimco_star, bound=bounds.iwae, claims=claims)


@remembered
@checks.arguments
def ovis(gamma: Fraction) -> Estimator:
    """The score-function gradient of L_K with a baseline that is optimal for many samples.

        path 0, score -log(1-v) - (1-γ)v + γ log(1-1/K), theta v

    The score weight is L_K - v - c with c = L_K - log[(1-1/K)/(1-v)] - γv + (1-γ) log(1-1/K). Unbiased only at γ = 0;
    at γ = 1 the mean is that of `iwae_stl`. K >= 2.

    Reference: Liévin, Dittadi, Christensen & Winther (2020), arXiv:2008.01998.
    """

    def ovis(log_w: Tensor) -> Weights:
        v, score = _without_own_weight("ovis", log_w)
        score = score + gamma * (v + math.log1p(-1 / len(v)))
        return Weights(path=torch.zeros_like(v), score=score, theta=v)

    note = "K >= 2; unbiased only at γ = 0" if gamma else "K >= 2"
    claims = Claims("L_K", gamma == 0, True, ("arXiv:2008.01998",), posterior="any", note=note)
    return weighted(ovis, bound=bounds.iwae, claims=claims, name=spell("ovis", gamma))


@remembered
def rws() -> Estimator:
    """Reweighted wake-sleep with the wake update of q: the encoder descends KL(p(z|x) ‖ q(z|x)), which is not a bound.

        path 0, score v, theta v

    The encoder's gradient is self-normalised: it is biased for that KL, and less so with more samples. The decoder's is
    that of `iwae`.

    Reference: Bornschein & Bengio (2015), arXiv:1406.2751.
    """

    def rws(log_w: Tensor) -> Weights:
        v = _softmax(log_w)
        return Weights(path=torch.zeros_like(v), score=v, theta=v)

    claims = Claims("L_K", False, True, ("arXiv:1406.2751",), "any", "any", "encoder: wake-phi, KL(p‖q)")
    return weighted(rws, bound=bounds.iwae, claims=claims)


@remembered
def rws_dreg() -> Estimator:
    """The doubly reparameterised gradient of the wake update of q in `rws`, with less variance.

        path v - v², score 0, theta v

    Its mean is that of `rws`, whose score term it reparameterises.

    Reference: Tucker, Lawson, Gu & Maddison (2019), arXiv:1810.04152.
    """

    def rws_dreg(log_w: Tensor) -> Weights:
        f = _from_the_top(log_w)
        v, rest = _softmax(f), (_others_logsumexp(f) - f.logsumexp(0)).exp()  # 1 - v, also where v rounds to 1
        return Weights(path=v * rest, score=torch.zeros_like(v), theta=v)

    claims = Claims("L_K", False, True, ("arXiv:1810.04152",), note="encoder: wake-phi, KL(p‖q)")
    return weighted(rws_dreg, bound=bounds.iwae, claims=claims)


@remembered
@checks.arguments
def miwae(m: Count) -> Estimator:
    """The total derivative of the mean of M bounds L_K, with v_g the softmax within each group of K = N/M samples.

        path v_g/M, score -v_g/M, theta v_g/M

    Unbiased. It is `iwae` at M = 1, and `elbo_mc` at M = N.

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """

    def miwae(log_w: Tensor) -> Weights:
        v = _grouped_softmax(log_w, m) / m
        return Weights(path=v, score=-v, theta=v)

    claims = Claims(f"mean of {m} bounds L_(K/{m})", True, True, ("arXiv:1802.04537",), "any", note=f"{m} divides K")
    return weighted(miwae, bound=bounds.miwae(m), claims=claims, name=spell("miwae", m))


@remembered
@checks.arguments
def ciwae(beta: Fraction) -> Estimator:
    """The total derivative of β ELBO + (1-β) L_K, with r = β/K + (1-β)v.

        path r, score -r, theta r

    Unbiased.

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """

    def ciwae(log_w: Tensor) -> Weights:
        r = beta * _mean(log_w) + (1 - beta) * _softmax(log_w)
        return Weights(path=r, score=-r, theta=r)

    claims = Claims(f"{digits(beta)} ELBO + {1 - beta:g} L_K", True, True, ("arXiv:1802.04537",), "any")
    return weighted(ciwae, bound=bounds.ciwae(beta), claims=claims, name=spell("ciwae", beta))


@remembered
@checks.arguments
def piwae(m: Count) -> Estimator:
    """The encoder of `miwae(m)` with the decoder of `iwae` for all N = MK samples.

        path v_g/M, score -v_g/M, theta v

    `bound` is L_{MK}, for which the decoder's gradient is unbiased. The encoder's is unbiased for the mean of M bounds
    L_K. theta can underflow where path does not, so this estimator pulls back through the decoder twice.

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """

    def piwae(log_w: Tensor) -> Weights:
        v = _grouped_softmax(log_w, m) / m
        return Weights(path=v, score=-v, theta=_softmax(log_w))

    # With one group this is `iwae`.
    note = f"encoder: unbiased for the mean of {m} bounds L_(K/{m}); {m} divides K" if m > 1 else ""
    claims = Claims("L_K", m == 1, True, ("arXiv:1802.04537",), "any", note=note)
    return weighted(piwae, bound=bounds.iwae, claims=claims, name=spell("piwae", m), two_pulls=True)


@remembered
@checks.arguments
def tvo(partition: Partition) -> Estimator:
    """The thermodynamic variational objective, with w̄_j = softmax_k(β_j f), f̄_j = sum_k w̄_j f, Δ_j = β_{j+1} - β_j.

        path 0, score Σ_j Δ_j w̄_j[(1-β_j)(f-f̄_j) - 1], theta Σ_j Δ_j w̄_j[1 + β_j(f-f̄_j)]

    These are self-normalised covariances under p(z|x)^β q(z|x)^(1-β): both gradients are biased for the TVO itself, and
    consistent as K increases. The decoder's gradient is the derivative of `bound`, whose means are self-normalised too,
    so it is unbiased for the expectation of `bound`. With the partition (0, 1) the target is the ELBO, the decoder's
    gradient is that of `elbo_mc`, and the encoder's is `score` with the mean of all K samples, k included, as its
    baseline: its expectation is too small by a factor 1 - 1/K.

    Args:
        partition: β_0 = 0 < … < β_P = 1.

    Reference: Masrani, Le & Wood (2019), arXiv:1907.00031.
    """

    def tvo(log_w: Tensor) -> Weights:
        score, theta = torch.zeros_like(log_w), torch.zeros_like(log_w)
        f = log_w.double()
        for beta, after in pairwise(partition):
            w, mean = _tempered_mean(f, beta)
            apart = torch.where(w > 0, f - mean, 0)  # where w is 0, w · apart -> 0 as log w -> -inf
            score += (after - beta) * w * ((1 - beta) * apart - 1)
            theta += (after - beta) * w * (1 + (beta * apart if beta else 0))
        return Weights(path=torch.zeros_like(log_w), score=score, theta=theta)

    note = "for the TVO itself, both are biased and consistent"
    claims = Claims("TVO, self-normalised", False, True, ("arXiv:1907.00031",), "any", "any", note)
    return weighted(tvo, bound=bounds.tvo(partition), claims=claims, name=spell("tvo", *partition))


def _from_the_top(log_w: Tensor) -> Tensor:
    """The log-weights minus their maximum, so that differences of them and of their log-sums are accurate."""
    return log_w - log_w.max(0).values


def _mean(log_w: Tensor) -> Tensor:
    return torch.full_like(log_w, 1 / len(log_w))


def _grouped_softmax(log_w: Tensor, m: int) -> Tensor:
    return rearrange(torch.vmap(_softmax)(_groups(log_w, m)), "m k b -> (m k) b")


def _log1p_minus(x: Tensor) -> Tensor:
    """log(1 + x) - x, in float64 because the terms cancel for small x."""
    return (x.double().log1p() - x).to(x.dtype)


def _without_own_weight(name: str, log_w: Tensor) -> tuple[Tensor, Tensor]:
    """v, and L_K - v minus its baseline with w_k replaced by 0, which is -log(1 - v) - v."""
    f = _from_the_top(_two_or_more(name, log_w))
    v = _softmax(f)
    # log1p(-v) is -inf where v rounds to 1, and the log-sums lose digits where v is small.
    by_sums = f.logsumexp(0) - _others_logsumexp(f) - v
    return v, torch.where(v < 0.5, -_log1p_minus(-v), by_sums)


def _two_or_more(name: str, log_w: Tensor) -> Tensor:
    if len(log_w) < 2:
        raise BadValue(f"samples is {len(log_w)}: {name} compares the samples of a datum, so it must be at least 2")
    return log_w


_softmax, _groups = checks.unchecked(bounds.softmax), checks.unchecked(bounds.groups)
_tempered_mean = checks.unchecked(bounds.tempered_mean)
_others_mean, _others_logsumexp = checks.unchecked(others_mean), checks.unchecked(others_logsumexp)
