"""Estimates with errors, from what each replicate gave: total variance, signal-to-noise ratios, and flags.

Notation: g_r is a gradient's part in a group of parameters, R the number of replicates, μ = E g, T = tr Cov g its total
variance; u_r estimates T from replicate r alone (see `online_moments`), so u_1 … u_{R-1} are what standard errors come
from. All intervals are meant to hold the true value in 95 of 100 cases.
"""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from funcvae.errors import unknown
from funcvae.evaluate import psis
from funcvae.variance import online_moments

__all__ = [
    "Floats", "Group", "Measured", "Series", "group_estimates", "hall_quantiles", "kurtosis_of", "later_replicates",
    "mean_interval", "parameter_groups", "ratio_interval", "root_interval", "scaled_squares", "series_of",
    "signal_to_noise", "tail_shape", "unreliable_because",
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


class Group(NamedTuple):
    """A gradient in one group of parameters, over the noise. Gradients are in nats per unit of the parameters."""

    size: int
    """Parameters in it."""
    variance: Measured
    """tr Cov g = E ‖g - μ‖²: the total variance, summed over the group's coordinates."""
    norm: Measured
    """‖μ‖, from the unbiased ‖ḡ‖² - T/R; 0 where that is negative."""
    snr: Measured
    """‖μ‖/√T. For one coordinate it is |E g|/σ(g), Rainforth et al.'s equation 3."""
    dsnr: Measured
    """E ‖g_∥‖/‖g_⊥‖, with g_∥ the part of g along μ and g_⊥ the rest: Rainforth et al.'s directional SNR. Here along
    the centre c (see `online_moments`), which is independent of g_r, for the `later_replicates`. Infinite in one
    dimension, and of infinite mean in two."""
    kurtosis: float
    """E ‖g - μ‖⁴/T²: in one dimension the usual kurtosis (3 for a normal g), in many near 1 if it is well-behaved."""
    k_hat: float
    """Pareto shape of the upper tail of ‖g - μ‖²: from ½ on that has no variance."""


class Series(NamedTuple):
    """What each replicate gave, for each leaf of the parameters: arrays [R, L], but where said."""

    square: Floats
    """‖g_r - c‖²."""
    along: Floats
    """(g_r - c)·c."""
    total: Floats
    """The unbiased total variance of each leaf [L]."""
    mean: Floats
    """‖ḡ‖² of each leaf [L]."""
    center: Floats
    """‖c‖² of each leaf and renewal of the centre c, which are at replicates 1, 2, 4, 8, …: [log R, L]."""


def series_of(sums: online_moments.Sums, square: torch.Tensor, along: torch.Tensor) -> Series:
    """The series of the replicates in `sums`, from `square` and `along` [R, L]."""
    mean = torch.stack([leaf.square().sum() for leaf in online_moments.mean(sums)]).cpu()
    center = torch.stack(sums.norms) if sums.norms else mean.new_zeros(0, len(mean))
    columns = square, along, online_moments.total_variance(sums), mean, center
    return Series(*(column.numpy() for column in columns))


def parameter_groups(names: Sequence[str], sizes: Sequence[int], patterns: Sequence[str] = ()) -> dict[str, list[int]]:
    """The groups of parameters, as numbers of leaves: "all", the networks that have any, each parameter, and patterns.

    Args:
        names: of the leaves, as "encoder/hidden.0.weight".
        sizes: of the leaves.
        patterns: further groups, as "encoder/*.bias".

    Raises:
        BadValue: a pattern matches no parameter.
    """
    found = {"all": [i for i, size in enumerate(sizes) if size]}
    for network in dict.fromkeys(name.split("/")[0] for name in names):
        found[network] = [i for i in found["all"] if names[i].startswith(f"{network}/")]
    found |= {name: [i] for i, name in enumerate(names) if sizes[i]}
    for pattern in patterns:
        members = found.get(pattern) or [i for i in found["all"] if fnmatchcase(names[i], pattern)]
        if not members:
            raise unknown("group of parameters", pattern, found)
        found[pattern] = members
    return {name: members for name, members in found.items() if members}


def scaled_squares(s: Series, members: Sequence[int]) -> Floats:
    """u_1 … u_{R-1} of a group, each with the expectation T: n/(n+1) ‖g_r - c‖²."""
    n = np.array([online_moments.replicates_in_center(r) for r in range(1, len(s.square))], dtype=float)
    return n / (n + 1) * s.square[1:, members].sum(1)


def group_estimates(s: Series, members: Sequence[int], size: int, flag: str = "") -> Group:
    """The estimates for a group of parameters; `flag` says why its intervals are unreliable, if that is known."""
    replicates, later = len(s.square), later_replicates(len(s.square))
    total = float(s.total[members].sum()) if replicates > 1 else math.nan
    u = scaled_squares(s, members)
    kurtosis, k_hat = kurtosis_of(u), tail_shape(u)
    flag = "; ".join(filter(None, [flag, unreliable_because(u, kurtosis, k_hat)]))
    variance = mean_interval(u, total, flag=flag)
    along, square = s.along[later][:, members].sum(1), s.square[later][:, members].sum(1)
    mean_square = float(s.mean[members].sum()) - (total / replicates if replicates > 1 else 0.0)
    norm = root_interval(mean_square, _se_of_mean(2 * along, replicates), flag)
    snr = signal_to_noise(s, s, members, flag)

    if size == 1:
        dsnr = Measured(math.inf, math.nan, math.nan, math.nan, flag)  # there is no other direction
    else:
        center = np.array([s.center[r.bit_length() - 1, members].sum() for r in range(replicates)[later]])
        with np.errstate(divide="ignore", invalid="ignore"):
            parallel = np.abs(along + center) / np.sqrt(center)
            ratio = parallel / np.sqrt((square + 2 * along + center - parallel**2).clip(min=0))
            if np.isfinite(ratio).all():
                dsnr = mean_interval(ratio, flag=flag)
            else:
                dsnr = Measured(float(ratio.mean()), math.nan, math.nan, math.nan, flag)
    return Group(size, variance, norm, snr, dsnr, kurtosis, k_hat)


def signal_to_noise(signal: Series, noise: Series, members: Sequence[int], flag: str = "") -> Measured:
    """‖μ‖ of the one over √T of the other, on common random numbers, by the delta method on its square."""
    replicates, later = len(noise.square), later_replicates(len(noise.square))
    if replicates < 2:
        return Measured(math.nan, math.inf, math.nan, math.nan, flag)
    total = float(noise.total[members].sum())
    signal_total = float(signal.total[members].sum())
    mean_square = float(signal.mean[members].sum()) - signal_total / replicates
    if total == 0:
        return Measured(math.inf if mean_square > 0 else math.nan, math.nan, math.nan, math.nan, flag)
    ratio = mean_square / total
    along, u = signal.along[later][:, members].sum(1), scaled_squares(noise, members)[later.start - 1 :]
    return root_interval(ratio, _se_of_mean((2 * along - ratio * u) / total, replicates), flag)


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


def _se_of_mean(values: Floats, replicates: int) -> float:
    """The standard error of the mean over all replicates, from the values of some."""
    return float(values.std(ddof=1)) / math.sqrt(replicates) if len(values) > 1 else math.inf
