"""The gradient estimators: a table of short functions from log-weights to weights, all run by one engine.

Notation, as in `estimators.engine`: f = log w [K, B], v = softmax_k(f), L_K = log mean_k w_k. An estimator goes up
along

    encoder              sum_k path_k d_k + score_k s_k
    decoder and prior    sum_k theta_k ∇ log w_k

Every factory's docstring has a line of its three weights, which `funcvae list estimators` prints. "Unbiased" is said of
independent noise, in expectation, of the target that `Estimate.bound` holds.

Weights stay finite and right for log-weights that are thousands of nats apart, and where v rounds to 1. A log-weight of
-inf, an impossible sample, has weight 0. Only what is infinite in exact arithmetic is not finite then: the weights of
`score`, of `rloo` and of `tvo`'s first term, whose target is -inf; of `vimco` and `ovis` at K = 2; of `renyi` for
alpha > 1; of `miwae` and `piwae` in a group with no other sample.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from funcvae import bounds
from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.estimators.closed_form_kl import analytic_kl
from funcvae.estimators.engine import weighted
from funcvae.estimators.leave_one_out import others_logsumexp, others_mean
from funcvae.estimators.types import Claims, Estimator, Weights

__all__ = [
    "beta_elbo", "ciwae", "dreg", "elbo", "elbo_mc", "iwae", "iwae_stl", "miwae", "ovis", "piwae", "renyi", "rloo",
    "rws", "score", "stl", "tvo", "vimco", "vr_iwae_dreg",
]  # fmt: skip


def elbo() -> Estimator:
    """The reparameterised ELBO with its KL in closed form.

        mean_k log p(x|z_k) - KL(q(z|x) ‖ p(z))

    Unbiased. Usually of lower variance than `elbo_mc`, but not always: its gradient lacks a term that can cancel noise.
    With a Delta posterior the KL counts as 0, and this is the plain autoencoder's objective.

    Reference: Kingma & Welling (2014), arXiv:1312.6114.
    """
    return analytic_kl("elbo", 1.0, Claims("ELBO", True, True, ("arXiv:1312.6114",), "normal"))


def beta_elbo(beta: float) -> Estimator:
    """The beta-VAE's objective, ELBO with beta times the KL in closed form.

        mean_k log p(x|z_k) - beta KL(q(z|x) ‖ p(z))

    Unbiased. A bound on log p(x) for beta >= 1 only.

    Reference: Higgins et al. (2017), "beta-VAE".
    """
    beta = checks.number("beta", beta)
    if not 0 <= beta < math.inf:
        raise BadValue(f"beta is {beta}: the KL's weight is not negative, and finite")
    claims = Claims(f"ELBO with {_digits(beta)} KL", True, True, ("Higgins et al. 2017",), "normal")
    return analytic_kl(_spell("beta_elbo", beta), beta, claims)


def elbo_mc() -> Estimator:
    """The reparameterised ELBO with its KL sampled: the total derivative of mean_k log w_k.

        path 1/K, score -1/K, theta 1/K

    Unbiased. Works for every posterior with a density and every prior.

    Reference: Kingma & Welling (2014), arXiv:1312.6114.
    """

    def elbo_mc(log_w: Tensor) -> Weights:
        mean = _mean(log_w)
        return Weights(path=mean, score=-mean, theta=mean)

    return weighted(elbo_mc, bound=bounds.elbo, claims=Claims("ELBO", True, True, ("arXiv:1312.6114",), "normal"))


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


def iwae() -> Estimator:
    """The total derivative of the importance-weighted bound L_K.

        path v, score -v, theta v

    Unbiased. The signal-to-noise ratio of its encoder gradient falls as K^-½.

    References: Burda, Grosse & Salakhutdinov (2016), arXiv:1509.00519; Rainforth et al. (2018), arXiv:1802.04537.
    """

    def iwae(log_w: Tensor) -> Weights:
        v = log_w.softmax(0)
        return Weights(path=v, score=-v, theta=v)

    return weighted(iwae, bound=bounds.iwae, claims=Claims("L_K", True, True, ("arXiv:1509.00519",), "any"))


def iwae_stl() -> Estimator:
    """`iwae` without its score term, whose mean is not zero for K > 1: the encoder's gradient is biased.

        path v, score 0, theta v

    For every eps it is `iwae` plus the encoder's `rws`, and in expectation `ovis(1)`.

    Reference: Roeder, Wu & Duvenaud (2017), arXiv:1703.09194; the bias, Tucker et al. (2019), arXiv:1810.04152.
    """

    def iwae_stl(log_w: Tensor) -> Weights:
        v = log_w.softmax(0)
        return Weights(path=v, score=torch.zeros_like(v), theta=v)

    claims = Claims("L_K", False, True, ("arXiv:1703.09194",), "any", "unbiased at K = 1")
    return weighted(iwae_stl, bound=bounds.iwae, claims=claims)


def dreg() -> Estimator:
    """The doubly reparameterised gradient of L_K.

        path v², score 0, theta v

    Unbiased: the encoder's score term is reparameterised once more. Its signal-to-noise ratio grows as K^½. At K = 1 it
    is `stl`. The decoder's gradient is `iwae`'s.

    Reference: Tucker, Lawson, Gu & Maddison (2019), arXiv:1810.04152.
    """

    def dreg(log_w: Tensor) -> Weights:
        v = log_w.softmax(0)
        return Weights(path=v**2, score=torch.zeros_like(v), theta=v)

    return weighted(dreg, bound=bounds.iwae, claims=Claims("L_K", True, True, ("arXiv:1810.04152",)))


def renyi(alpha: float) -> Estimator:
    """The total derivative of the variational Rényi bound (1/(1-α)) log mean_k w_k^(1-α), with u = softmax_k((1-α) f).

        path u, score -u, theta u

    Unbiased. `iwae` at α = 0, `elbo_mc` in the limit α -> 1.

    Reference: Li & Turner (2016), arXiv:1602.02311.
    """
    bound, alpha = bounds.renyi(alpha), checks.number("alpha", alpha)

    def renyi(log_w: Tensor) -> Weights:
        u = ((1 - alpha) * log_w).softmax(0)
        return Weights(path=u, score=-u, theta=u)

    claims = Claims(f"Rényi({_digits(alpha)})", True, True, ("arXiv:1602.02311",), "any")
    return weighted(renyi, bound=bound, claims=claims, name=_spell("renyi", alpha))


def vr_iwae_dreg(alpha: float) -> Estimator:
    """The doubly reparameterised gradient of the variational Rényi bound, with u = softmax_k((1-α) f).

        path αu + (1-α)u², score 0, theta u

    Unbiased. `dreg` at α = 0, `stl` in the limit α -> 1.

    Reference: Daudel, Benton, Shi & Doucet (2023), arXiv:2210.06226.
    """
    alpha = checks.number("alpha", alpha)
    if not 0 <= alpha < 1:
        raise BadValue(f"alpha is {alpha}: it must lie in [0, 1); at 1 this would be stl")

    def vr_iwae_dreg(log_w: Tensor) -> Weights:
        u = ((1 - alpha) * log_w).softmax(0)
        return Weights(path=alpha * u + (1 - alpha) * u**2, score=torch.zeros_like(u), theta=u)

    claims = Claims(f"Rényi({_digits(alpha)})", True, True, ("arXiv:2210.06226",))
    return weighted(vr_iwae_dreg, bound=bounds.renyi(alpha), claims=claims, name=_spell("vr_iwae_dreg", alpha))


def score() -> Estimator:
    """The score-function gradient of the ELBO (REINFORCE), with no baseline and no derivative of z.

        path 0, score f/K, theta 1/K

    Unbiased.

    Reference: Williams (1992), "Simple statistical gradient-following algorithms".
    """

    def score(log_w: Tensor) -> Weights:
        return Weights(path=torch.zeros_like(log_w), score=log_w / len(log_w), theta=_mean(log_w))

    return weighted(score, bound=bounds.elbo, claims=Claims("ELBO", True, True, ("Williams 1992",), "normal"))


def rloo() -> Estimator:
    """The score-function gradient of the ELBO with the other samples' mean as its baseline.

        path 0, score (f_k - mean_{j≠k} f_j)/K, theta 1/K

    Unbiased, for the others do not depend on sample k. K >= 2.

    Reference: Kool, van Hoof & Welling (2019), "Buy 4 REINFORCE samples, get a baseline for free!".
    """

    def rloo(log_w: Tensor) -> Weights:
        f = _from_the_top(_two_or_more("rloo", log_w))
        score = (f - others_mean(f)) / len(f)
        return Weights(path=torch.zeros_like(log_w), score=score, theta=_mean(log_w))

    return weighted(rloo, bound=bounds.elbo, claims=Claims("ELBO", True, True, ("Kool et al. 2019",), note="K >= 2"))


def vimco() -> Estimator:
    """The score-function gradient of L_K; sample k's baseline is L_K with w_k replaced by the others' geometric mean.

        path 0, score L_K - L_{-k} - v, theta v

    Unbiased. K >= 2.

    Reference: Mnih & Rezende (2016), arXiv:1602.06725.
    """

    def vimco(log_w: Tensor) -> Weights:
        f = _from_the_top(_two_or_more("vimco", log_w))
        v, total, others = f.softmax(0), f.logsumexp(0), others_mean(f)
        # L_K - L_{-k} = -log(1 - v + g), g the others' geometric mean over the sum: so to keep digits, or by log-sums
        # where v is nearly all of it.
        change = (others - total).exp() - v
        by_sums = total - torch.logaddexp(others_logsumexp(f), others)
        score = torch.where(change > -0.5, -torch.log1p(change), by_sums) - v
        return Weights(path=torch.zeros_like(v), score=score, theta=v)

    return weighted(vimco, bound=bounds.iwae, claims=Claims("L_K", True, True, ("arXiv:1602.06725",), note="K >= 2"))


def ovis(gamma: float) -> Estimator:
    """The score-function gradient of L_K with a baseline that is optimal for many samples.

        path 0, score -log(1-v) - (1-γ)v + γ log(1-1/K), theta v

    That is L_K - v - c with c = L_K - log[(1-1/K)/(1-v)] - γv + (1-γ) log(1-1/K). Unbiased at γ = 0 alone; at γ = 1 the
    mean is `iwae_stl`'s. K >= 2.

    Reference: Liévin, Dittadi, Christensen & Winther (2020), arXiv:2008.01998.
    """
    gamma = checks.number("gamma", gamma)
    if not 0 <= gamma <= 1:
        raise BadValue(f"gamma is {gamma}: it must lie between 0 and 1")

    def ovis(log_w: Tensor) -> Weights:
        f = _from_the_top(_two_or_more("ovis", log_w))
        v = f.softmax(0)
        # log(1 - v): by itself it would be -inf where v rounds to 1, and the other way loses digits where v is small.
        log_rest = torch.where(v < 0.5, torch.log1p(-v), others_logsumexp(f) - f.logsumexp(0))
        score = -log_rest - (1 - gamma) * v + gamma * math.log1p(-1 / len(f))
        return Weights(path=torch.zeros_like(v), score=score, theta=v)

    note = "K >= 2; unbiased at γ = 0 alone" if gamma else "K >= 2"
    claims = Claims("L_K", gamma == 0, True, ("arXiv:2008.01998",), note=note)
    return weighted(ovis, bound=bounds.iwae, claims=claims, name=_spell("ovis", gamma))


def rws() -> Estimator:
    """Reweighted wake-sleep with the wake update of q: the encoder goes down KL(p(z|x) ‖ q(z|x)), which is no bound.

        path 0, score v, theta v

    The encoder's direction is self-normalised: biased for that KL too, less so with more samples. The decoder's is
    `iwae`'s.

    Reference: Bornschein & Bengio (2015), arXiv:1406.2751.
    """

    def rws(log_w: Tensor) -> Weights:
        v = log_w.softmax(0)
        return Weights(path=torch.zeros_like(v), score=v, theta=v)

    claims = Claims("L_K", False, True, ("arXiv:1406.2751",), "any", "encoder: wake-phi, KL(p‖q)")
    return weighted(rws, bound=bounds.iwae, claims=claims)


def miwae(m: int) -> Estimator:
    """The total derivative of the mean of M bounds L_K, with v_g the softmax within each group of K = N/M samples.

        path v_g/M, score -v_g/M, theta v_g/M

    Unbiased. `iwae` at M = 1, `elbo_mc` at M = N.

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """
    bound, m = bounds.miwae(m), checks.integer("m", m)

    def miwae(log_w: Tensor) -> Weights:
        v = _grouped_softmax(log_w, m) / m
        return Weights(path=v, score=-v, theta=v)

    claims = Claims(f"mean of {m} bounds L_(K/{m})", True, True, ("arXiv:1802.04537",), "any", f"{m} divides K")
    return weighted(miwae, bound=bound, claims=claims, name=_spell("miwae", m))


def ciwae(beta: float) -> Estimator:
    """The total derivative of β ELBO + (1-β) L_K, with r = β/K + (1-β)v.

        path r, score -r, theta r

    Unbiased.

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """
    bound, beta = bounds.ciwae(beta), checks.number("beta", beta)

    def ciwae(log_w: Tensor) -> Weights:
        r = beta * _mean(log_w) + (1 - beta) * log_w.softmax(0)
        return Weights(path=r, score=-r, theta=r)

    claims = Claims(f"{_digits(beta)} ELBO + {1 - beta:g} L_K", True, True, ("arXiv:1802.04537",), "any")
    return weighted(ciwae, bound=bound, claims=claims, name=_spell("ciwae", beta))


def piwae(m: int) -> Estimator:
    """The encoder of `miwae(m)` with the decoder of `iwae`, for all N = MK samples together.

        path v_g/M, score -v_g/M, theta v

    `bound` is L_{MK}, for which the decoder's gradient is unbiased; the encoder's is unbiased for the mean of M bounds
    L_K. The two weightings are not proportional in floating point, so this one pulls back through the decoder twice.

    Reference: Rainforth et al. (2018), arXiv:1802.04537.
    """
    m = checks.integer("m", m, 1)

    def piwae(log_w: Tensor) -> Weights:
        v = _grouped_softmax(log_w, m) / m
        return Weights(path=v, score=-v, theta=log_w.softmax(0))

    # With one group this is iwae.
    note = f"encoder: unbiased for the mean of {m} bounds L_(K/{m}); {m} divides K" if m > 1 else ""
    claims = Claims("L_K", m == 1, True, ("arXiv:1802.04537",), "any", note)
    return weighted(piwae, bound=bounds.iwae, claims=claims, name=_spell("piwae", m), two_pulls=True)


def tvo(partition: Sequence[float]) -> Estimator:
    """The thermodynamic variational objective, with w̄_j = softmax_k(β_j f), f̄_j = sum_k w̄_j f, Δ_j = β_{j+1} - β_j.

        path 0, score Σ_j Δ_j w̄_j[(1-β_j)(f-f̄_j) - 1], theta Σ_j Δ_j w̄_j[1 + β_j(f-f̄_j)]

    Covariances under p(z|x)^β q(z|x)^(1-β), self-normalised: both gradients are biased for the TVO itself, and
    consistent as K grows. For `bound`, whose means are self-normalised too, the decoder's is unbiased, being its
    derivative. With the partition (0, 1) the target is the ELBO, the decoder's gradient is `elbo_mc`'s, and the
    encoder's is `score` with the mean of all K as its baseline, sample k included: short by a factor 1 - 1/K.

    Args:
        partition: β_0 = 0 < … < β_P = 1.

    Reference: Masrani, Le & Wood (2019), arXiv:1907.00031.
    """
    betas = bounds.rising(partition)

    def tvo(log_w: Tensor) -> Weights:
        score, theta = torch.zeros_like(log_w), torch.zeros_like(log_w)
        for beta, after in pairwise(betas):
            w, mean = bounds.tempered_mean(log_w, beta)
            apart = torch.where(w > 0, log_w - mean, 0)  # where w is 0, w · apart -> 0 as log w -> -inf
            score += (after - beta) * w * ((1 - beta) * apart - 1)
            theta += (after - beta) * w * (1 + (beta * apart if beta else 0))
        return Weights(path=torch.zeros_like(log_w), score=score, theta=theta)

    note = "for the TVO itself, both biased and consistent"
    claims = Claims("TVO, self-normalised", False, True, ("arXiv:1907.00031",), "any", note)
    return weighted(tvo, bound=bounds.tvo(betas), claims=claims, name=_spell("tvo", *betas))


def _from_the_top(log_w: Tensor) -> Tensor:
    """Log-weights less their greatest: differences of them, and of their log-sums, then keep their digits."""
    return log_w - log_w.max(0).values


def _mean(log_w: Tensor) -> Tensor:
    return torch.full_like(log_w, 1 / len(log_w))


def _grouped_softmax(log_w: Tensor, m: int) -> Tensor:
    return bounds.groups(log_w, m).softmax(1).flatten(0, 1)


def _two_or_more(name: str, log_w: Tensor) -> Tensor:
    if len(log_w) < 2:
        raise BadValue(f"{name} sets each sample against the others: it needs samples >= 2")
    return log_w


def _spell(name: str, *arguments: float) -> str:
    """The name that `parse` reads back to the same estimator."""
    return ":".join([name, *map(_digits, arguments)])


def _digits(number: float) -> str:
    return str(number).removesuffix(".0")
