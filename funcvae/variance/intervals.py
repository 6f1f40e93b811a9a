"""Estimates with standard errors and intervals, from independent values, and why an interval may be unreliable.

All intervals are meant to hold the true value in 95 of 100 cases.
"""

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
"""Replicates, corrected for kurtosis, below which an interval for a variance is not to be trusted."""
MAX_TAIL_SHAPE = 0.7
"""Pareto k̂ of the squared deviations above which it is not, either: see `psis.threshold`."""
HEAVY_WEIGHT_TAIL = 0.25
"""Pareto k̂ of importance weights from which they have no fourth moment, as the error of a variance asks for."""


class Measured(NamedTuple):
    """An estimate with its standard error and its 95% interval."""

    value: float
    se: float
    low: float
    high: float
    flag: str = ""
    """Why the interval is not to be trusted; empty where it is."""

    @property
    def trusted(self) -> bool:
        """Whether the interval has no flag."""
        return not self.flag

    def sqrt(self) -> "Measured":
        """Its square root, as of a variance, with its error carried over."""
        value, low, high = (math.sqrt(max(x, 0.0)) for x in (self.value, self.low, self.high))
        return Measured(value, self.se / (2 * value) if value > 0 else math.inf, low, high, self.flag)


def mean_interval(values: Floats, value: float | None = None, flag: str = "") -> Measured:
    """The mean of independent values, which may be skewed, as squares are.

    The interval is the studentised mean's with its skewness γ taken off by a cubic that is its own inverse in closed
    form, with t = √n (x̄ - μ)/s:

        h(t) = t + γ t²/(3√n) + γ² t³/(27 n) + γ/(6√n)

    Args:
        values: [n].
        value: the estimate, where there is a better one than their mean.
        flag: why the interval is unreliable, if that is known.

    Reference: Hall (1992), "On the removal of skewness by transformation".
    """
    if len(values) < 2:
        center = value if value is not None else float(values.mean()) if len(values) else math.nan
        return Measured(center, math.inf, math.nan, math.nan, flag or "too few replicates to judge")
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

    By the delta method ln(ā/b̄) has the error of the mean of a_r/ā - b_r/b̄; the interval is 1.96 of it either way. (The
    skewness of a and b largely cancels.)
    """
    if len(a) < 2 or not b.mean() > 0:
        return Measured(value, math.inf, math.nan, math.nan, flag)
    if not a.mean() > 0:
        return Measured(value, 0.0, value, value, flag)  # no variance at all, and so none in the ratio
    se = float((a / a.mean() - b / b.mean()).std(ddof=1)) / math.sqrt(len(a))
    return Measured(value, value * se, value * math.exp(-Z95 * se), value * math.exp(Z95 * se), flag)


def root_interval(square: float, se: float, flag: str = "") -> Measured:
    """The square root of an estimate that may be below zero: 0 then, with an interval all the same."""
    if math.isnan(square):
        return Measured(math.nan, math.inf, math.nan, math.nan, flag)
    value = math.sqrt(max(square, 0.0))
    low, high = (math.sqrt(max(square + z * se, 0.0)) if math.isfinite(se) else math.nan for z in (-Z95, Z95))
    return Measured(value, se / (2 * value) if value > 0 else (math.inf if math.isinf(se) else high), low, high, flag)


def kurtosis_of(u: Floats) -> float:
    """E u²/(E u)²; NaN where there is nothing to judge."""
    return float((u**2).mean() / u.mean() ** 2) if len(u) and u.mean() > 0 else math.nan


def tail_shape(u: Floats) -> float:
    """Pareto k̂ of u [n]; NaN where there is nothing to judge."""
    if not len(u) or not u.max() > 0:
        return math.nan
    with np.errstate(divide="ignore"):
        return float(psis.k_hat(torch.from_numpy(np.log(u)).unsqueeze(1))[0])


def unreliable_because(u: Floats, kurtosis: float, k_hat: float) -> str:
    """Why an interval for the mean of u is unreliable: few replicates for its kurtosis, or a heavy tail; or ""."""
    if len(u) + 1 < MIN_EFFECTIVE_REPLICATES:
        return f"fewer than {MIN_EFFECTIVE_REPLICATES:.0f} replicates" if not len(u) or u.max() > 0 else ""
    if (len(u) + 1) / kurtosis < MIN_EFFECTIVE_REPLICATES:
        return f"kurtosis {kurtosis:.3g}: {len(u) + 1} replicates are worth {int((len(u) + 1) / kurtosis)}"
    if k_hat > MAX_TAIL_SHAPE:
        return f"Pareto k̂ {k_hat:.2f} of the gradient's squared deviations"
    return ""


def later_replicates(replicates: int) -> slice:
    """The later replicates, half of them or more: those with a centre of at least a quarter's mean."""
    return slice(online_moments.replicates_in_center(replicates // 2) if replicates > 1 else 1, None)


def se_of_mean(values: Floats, replicates: int) -> float:
    """The standard error of the mean over all replicates, from the values of some."""
    return float(values.std(ddof=1)) / math.sqrt(replicates) if len(values) > 1 else math.inf
