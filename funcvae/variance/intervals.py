"""Estimates with standard errors and 95% intervals, from independent values, and flags of unreliable intervals."""

import math
from typing import NamedTuple

import numpy as np
import torch

from funcvae._support.reprs import short_repr
from funcvae.evaluate import psis
from funcvae.evaluate.psis import Floats
from funcvae.variance import online_moments

__all__ = [
    "Floats", "Measured", "hall_quantiles", "kurtosis_of", "later_replicates", "mean_interval", "ratio_interval",
    "root_interval", "se_of_mean", "tail_excess", "tail_shape", "unreliable_because",
]  # fmt: skip

Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile
MIN_REPLICATES = 30  # an interval for a variance is unreliable with fewer replicates than this
MAX_TAIL_SHAPE = 0.9  # the largest Pareto shape that `tail_excess` assumes. A tail of shape 1 has no mean.


@short_repr
class Measured(NamedTuple):
    """An estimate with its standard error and its 95% interval."""

    value: float
    """The estimate."""
    se: float
    """Its standard error."""
    low: float
    """The lower end of the 95% interval."""
    high: float
    """The upper end."""
    flag: str = ""
    """Why the interval is unreliable; "" if it is reliable."""

    @property
    def trusted(self) -> bool:
        """Whether the interval has no flag."""
        return not self.flag

    def sqrt(self) -> "Measured":
        """The square root of the estimate, with its standard error by the delta method."""
        value, low, high = (math.sqrt(max(x, 0.0)) for x in (self.value, self.low, self.high))
        return Measured(value, self.se / (2 * value) if value > 0 else math.inf, low, high, self.flag)


def mean_interval(values: Floats, value: float | None = None, flag: str = "", excess: float = 0.0) -> Measured:
    """The mean of independent values, which may be skewed.

    The interval inverts Hall's transformation of the studentised mean t = √n (x̄ - μ)/s, which removes its skewness γ
    and has a closed-form inverse:

        h(t) = t + γ t²/(3√n) + γ² t³/(27 n) + γ/(6√n)

    `value` is the estimate, if it is not the mean of the values [n]; `flag` is why the interval is unreliable, if that
    is known; `excess`, from `tail_excess`, widens the interval upwards.

    Reference: Hall (1992), "On the removal of skewness by transformation".
    """
    center = value if value is not None else float(values.mean()) if len(values) else math.nan
    if len(values) < 2:
        return Measured(center, math.inf, math.nan, math.nan, flag or "too few replicates")
    se = se_of_mean(values, len(values))
    if not se > 0:
        return Measured(center, se, center, center, flag)
    below, above = hall_quantiles(values)
    low = center - se * above
    return Measured(center, se, max(low, 0.0) if values.min() >= 0 else low, center - se * below + excess, flag)


def hall_quantiles(values: Floats) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of √n (x̄ - μ)/s, by Hall's transformation: see `mean_interval`."""
    deviation = values - values.mean()
    skew = float((deviation**3).mean() / (deviation**2).mean() ** 1.5) / math.sqrt(len(values))
    if abs(skew) < 1e-6:
        return -Z95, Z95
    low, high = (3 / skew * (float(np.cbrt(1 + skew * (z - skew / 6))) - 1) for z in (-Z95, Z95))
    return low, high


def ratio_interval(a: Floats, b: Floats, value: float, flag: str = "") -> Measured:
    """The ratio of the means of two positive sums on common random numbers, from paired values [n, L] of their terms.

    For sums divided by their means, u and v, the relative standard error is that of the mean of u - v (delta method).
    If u - v has positive skewness, a has the heavier tail. Then the interval is linear in the ratio: Hall's quantiles
    of the mean of u - v, see `mean_interval`. Otherwise it is that of b's ratio to a, inverted. The upper end has the
    `tail_excess` of a, and the lower end that of b. The pairing reduces both as much as it reduces the standard error.

    Over 2,000 keys on the linear-Gaussian toy (K = 2, 1,000 replicates) the interval holds the ratio of five estimators
    to `elbo_mc` in 97 to 100%, and that of `vimco` in 91% where the replicates that make its variance are rare. The
    coverage is largest where the tails are similar.
    """
    n = len(a)
    a_mean, b_mean = a.sum() / max(n, 1), b.sum() / max(n, 1)
    if n < 2 or not b_mean > 0:
        return Measured(value, math.inf, math.nan, math.nan, flag)
    if not a_mean > 0:
        return Measured(value, 0.0, value, value, flag)  # all a are zero, so the ratio is certain
    a, b = a / a_mean, b / b_mean
    difference = a.sum(1) - b.sum(1)
    se = se_of_mean(difference, n)
    if not se > 0:
        return Measured(value, 0.0, value, value, flag)
    paired = se / math.hypot(*(se_of_mean(terms.sum(1), n) for terms in (a, b)))
    inverted = (difference**3).mean() < 0
    if inverted:
        a, b, difference = b, a, -difference
    above, below = (paired * tail_excess(terms, _BOTH_ENDS) for terms in (a, b))
    least, most = hall_quantiles(difference)
    low, high = max(min(1 - se * most, 1 / (1 + se * most + below)), 0.0), 1 - se * least + above
    if inverted:
        low, high = 1 / high, 1 / low if low > 0 else math.inf
    return Measured(value, value * se, value * low, value * high, flag)


def tail_excess(terms: Floats, level: float = 0.975) -> float:
    """How much the mean of a positive sum may exceed the sample's, because the sample has too few large values.

    Generalised Pareto distributions of shape k and scale σ are fitted to the m largest values above the next one. The
    mean of these excesses is then σ/(1-k) instead of the sample's x̄, so that the mean is larger by

        (m/n) (σ/(1-k) - x̄)

    at the fit's quantile `level`, with k at most `MAX_TAIL_SHAPE`; 0 if that is negative. The result is the largest of
    those of the sum and of its terms: a light term may hide a heavy one in the sum.

    Over 2,000 keys, the intervals without a flag for the variance of Student's t (2.5 to 30 degrees of freedom, 300 and
    1,000 replicates) hold it in 94 to 97%, and those for the variances of seven estimators on the linear-Gaussian toy
    (K = 2, weights with and without a variance) in 95 to 99%. Without the excess, all intervals hold them in 73 to 95%
    and 79 to 96%. The excess cannot cover what leaves no trace in the sample: the variance of t with 2.2 degrees of
    freedom is held in 83%, and that of a mixture with three large values expected among the replicates in 82%.

    `terms` [n, L] are those of n sums; `level` is the probability that the tail is not heavier than assumed.
    """
    columns = [terms.sum(1), *terms.T] if terms.shape[1] > 1 else [*terms.T]
    return max(_excess(column, level) for column in columns)


def _excess(values: Floats, level: float) -> float:
    m = psis.tail_length(len(values))
    if m < _LEAST_TAIL:
        return 0.0
    largest = np.sort(np.partition(values, -m - 1)[-m - 1 :])
    x = (largest - largest[0])[largest > largest[0]]
    if len(x) < _LEAST_TAIL:
        return 0.0
    b, k, weight = psis.pareto_fits(x)
    mean = -k / b / (1 - np.minimum(k, MAX_TAIL_SHAPE))
    order = mean.argsort()
    limit = mean[order][np.searchsorted(weight[order].cumsum(), level * weight.sum())]
    return max(float(limit - x.mean()), 0.0) * len(x) / len(values)


def root_interval(square: float, se: float, flag: str = "") -> Measured:
    """The square root of an estimate. For a negative estimate the value is 0; the interval may still have width."""
    if math.isnan(square):
        return Measured(math.nan, math.inf, math.nan, math.nan, flag)
    value = math.sqrt(max(square, 0.0))
    low, high = (math.sqrt(max(square + z * se, 0.0)) if math.isfinite(se) else math.nan for z in (-Z95, Z95))
    return Measured(value, se / (2 * value) if value > 0 else (math.inf if math.isinf(se) else high), low, high, flag)


def kurtosis_of(u: Floats) -> float:
    """E u²/(E u)²; NaN if u is empty or zero."""
    return float((u**2).mean() / u.mean() ** 2) if len(u) and u.mean() > 0 else math.nan


def tail_shape(u: Floats) -> float:
    """Pareto k̂ of u [n]; NaN if u is empty or zero."""
    if not len(u) or not u.max() > 0:
        return math.nan
    with np.errstate(divide="ignore"):
        return float(psis.k_hat(torch.from_numpy(np.log(u)).unsqueeze(1))[0])


def unreliable_because(u: Floats, k_hat: float) -> str:
    """Why an interval for the mean of u is unreliable: too few replicates, or a tail too heavy for a mean; or ""."""
    if not len(u) or u.max() > 0:
        if len(u) + 1 < MIN_REPLICATES:
            return f"fewer than {MIN_REPLICATES} replicates"
        if k_hat >= 1:
            return f"Pareto k̂ {k_hat:.2f} of the gradient's squared deviations: their mean may be infinite"
    return ""


def later_replicates(replicates: int) -> slice:
    """The slice of the last half or more of the replicates. Their centres are means of at least a quarter of all."""
    return slice(online_moments.replicates_in_center(replicates // 2) if replicates > 1 else 1, None)


def se_of_mean(values: Floats, replicates: int) -> float:
    """The standard error of the mean over all replicates, from the values of some of them."""
    return float(values.std(ddof=1)) / math.sqrt(replicates) if len(values) > 1 else math.inf


_LEAST_TAIL = 5  # fewest values to fit, as in `psis.k_hat`
_BOTH_ENDS = 1 - 0.025 / 2  # the level of `tail_excess` at each end of an interval with a tail at both
