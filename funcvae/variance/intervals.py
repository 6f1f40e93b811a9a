"""Estimates with standard errors and 95% intervals, from independent values, and flags of unreliable intervals."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from funcvae.evaluate import psis
from funcvae.variance import online_moments

__all__ = [
    "Floats", "Measured", "hall_quantiles", "kurtosis_of", "later_replicates", "mean_interval", "ratio_interval",
    "root_interval", "tail_shape", "unreliable_because",
]  # fmt: skip

Floats = NDArray[np.float64]
Z95 = 1.959963984540054  # the normal distribution's 97.5% quantile
MIN_EFFECTIVE_REPLICATES = 30.0
"""An interval for a variance is unreliable with fewer replicates than this, after a correction for kurtosis."""
MAX_TAIL_SHAPE = 0.7
"""An interval for a variance is unreliable if the squared deviations have a Pareto k̂ above this: see
`psis.threshold`."""
HEAVY_WEIGHT_TAIL = 0.25
"""Importance weights with this Pareto k̂ or more have no fourth moment, which the error of a variance requires."""


class Measured(NamedTuple):
    """An estimate with its standard error and its 95% interval."""

    value: float
    se: float
    low: float
    high: float
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


def mean_interval(values: Floats, value: float | None = None, flag: str = "") -> Measured:
    """The mean of independent values, which may be skewed.

    The interval inverts Hall's transformation of the studentised mean t = √n (x̄ - μ)/s, which removes its skewness γ
    and has a closed-form inverse:

        h(t) = t + γ t²/(3√n) + γ² t³/(27 n) + γ/(6√n)

    Args:
        values: [n].
        value: the estimate, if it is not the mean of the values.
        flag: why the interval is unreliable, if that is known.

    Reference: Hall (1992), "On the removal of skewness by transformation".
    """
    if len(values) < 2:
        center = value if value is not None else float(values.mean()) if len(values) else math.nan
        return Measured(center, math.inf, math.nan, math.nan, flag or "too few replicates")
    center = float(values.mean()) if value is None else value
    spread = float(values.std(ddof=1))
    se = spread / math.sqrt(len(values))
    if not se > 0:
        return Measured(center, se, center, center, flag)
    below, above = hall_quantiles(values)
    return Measured(center, se, max(center - se * above, 0.0) if values.min() >= 0 else center - se * above,
                    center - se * below, flag)  # fmt: skip


def hall_quantiles(values: Floats) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of √n (x̄ - μ)/s, by Hall's transformation: see `mean_interval`."""
    n = len(values)
    deviation = values - values.mean()
    skew = float((deviation**3).mean() / (deviation**2).mean() ** 1.5) / math.sqrt(n)
    if abs(skew) < 1e-6:
        return -Z95, Z95
    low, high = (3 / skew * (float(np.cbrt(1 + skew * (z - skew / 6))) - 1) for z in (-Z95, Z95))
    return low, high


def ratio_interval(a: Floats, b: Floats, value: float, flag: str = "") -> Measured:
    """The ratio of two means on common random numbers, from paired values [n].

    By the delta method the standard error of ln(ā/b̄) is that of the mean of a_r/ā - b_r/b̄. The interval for ln(ā/b̄) is
    1.96 standard errors on both sides; the skewness of a and b mostly cancels.
    """
    if len(a) < 2 or not b.mean() > 0:
        return Measured(value, math.inf, math.nan, math.nan, flag)
    if not a.mean() > 0:
        return Measured(value, 0.0, value, value, flag)  # all a are zero, so the ratio is certain
    se = float((a / a.mean() - b / b.mean()).std(ddof=1)) / math.sqrt(len(a))
    return Measured(value, value * se, value * math.exp(-Z95 * se), value * math.exp(Z95 * se), flag)


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


def unreliable_because(u: Floats, kurtosis: float, k_hat: float) -> str:
    """Why an interval for the mean of u is unreliable: too few replicates for its kurtosis, or a heavy tail; or ""."""
    if len(u) + 1 < MIN_EFFECTIVE_REPLICATES:
        return f"fewer than {MIN_EFFECTIVE_REPLICATES:.0f} replicates" if not len(u) or u.max() > 0 else ""
    if (len(u) + 1) / kurtosis < MIN_EFFECTIVE_REPLICATES:
        return f"kurtosis {kurtosis:.3g}: {len(u) + 1} replicates count as {int((len(u) + 1) / kurtosis)}"
    if k_hat > MAX_TAIL_SHAPE:
        return f"Pareto k̂ {k_hat:.2f} of the gradient's squared deviations"
    return ""


def later_replicates(replicates: int) -> slice:
    """The slice of the last half or more of the replicates. Their centres are means of at least a quarter of all."""
    return slice(online_moments.replicates_in_center(replicates // 2) if replicates > 1 else 1, None)


def se_of_mean(values: Floats, replicates: int) -> float:
    """The standard error of the mean over all replicates, from the values of some of them."""
    return float(values.std(ddof=1)) / math.sqrt(replicates) if len(values) > 1 else math.inf
