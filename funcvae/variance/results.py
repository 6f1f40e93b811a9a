"""The results of a comparison of estimators, by name and group: as a table, a dict or JSON."""

import math
from typing import Any, NamedTuple

import numpy as np

from funcvae._support import checks, files, tables
from funcvae.variance.intervals import Measured
from funcvae.variance.snr import Group
from funcvae.variance.weight_diagnostics import Importance

__all__ = ["Bias", "Compared", "Comparison", "plain", "table"]


class Bias(NamedTuple):
    """The difference of a mean gradient from the reference's, b = E g - E g_ref, in one group of parameters."""

    norm: float
    """‖b‖, from the unbiased square; 0 if that is negative."""
    relative: float
    """‖b‖/‖E g_ref‖."""
    square: float
    """‖b‖², unbiased: the mean of (g_r - g_ref,r)·(c - c_ref) over the later half or more of the replicates. Centres c
    are means of earlier replicates (see `online_moments`), so they are independent of replicate r."""
    se: float
    """The standard error of `square`, including that of the centres."""
    z: float
    """`square` over its standard error under b = 0, as a standard normal score: large and positive with a bias. The
    score allows for the kurtosis of the values. NaN if it is computed from fewer than 30 replicates."""
    limit: float
    """The upper end of a 95% interval for ‖b‖. A bias that is not detected may be as large."""
    relative_limit: float
    """limit/‖E g_ref‖."""

    @property
    def detected(self) -> bool:
        """Whether z is above 4.

        For unbiased, heavy-tailed gradients (`vimco` against `iwae`, K = 4), this was so in 0.2% of 6,666 comparisons
        of 60 replicates and in 0.1% of 2,000 of 200.
        """
        return self.z > _DETECTED


class Compared(NamedTuple):
    """The results of one estimator under one noise scheme. Dicts have a key for each group of parameters."""

    name: str
    estimator: str
    noise: str
    target: str
    """The bound whose gradient is estimated."""
    decodes: int
    """The number M of points at which the model is evaluated, for each datum and gradient; K for most estimators."""
    groups: dict[str, Group]
    ratio: dict[str, Measured]
    """The estimator's total variance over the reference's, from paired replicates."""
    ratio_in_target: dict[str, Measured]
    """The same over that of `target_reference`."""
    target_reference: str
    """The arm that represents the target: the reference, or for another target the first arm with it."""
    signal: dict[str, Measured]
    """‖E g_ref‖/√T: the signal-to-noise ratio with the reference's mean. Without a bias it equals the estimator's own,
    and a less noisy reference makes it more precise. Empty if the targets differ."""
    bias: dict[str, Bias]
    """Empty if the targets differ, and for the reference itself."""
    bound: Measured
    """The mean of the target bound over noise and batch, in nats per example."""
    importance: Importance
    seconds: float
    """The time of one eager gradient: the minimum of `timings`. It does not repeat bit for bit. NaN if not timed."""
    median_seconds: float
    """The median of `timings`. Other programs make it longer, so it shows how far `seconds` can be trusted."""

    @checks.arguments
    def cost(self, group: str = "all") -> float:
        """Variance × seconds: proportional to the time that averaging needs to reach a given variance."""
        return self.groups[checks.known("group of parameters", group, self.groups)].variance.value * self.seconds


class Comparison(NamedTuple):
    """The result of `compare`: `print` it, or select a `row`."""

    rows: dict[str, Compared]
    reference: str
    samples: int
    replicates: int
    batch: int
    key: tuple[int, int]
    """The two words of the key."""
    target_se: float | None = None
    """The requested relative standard error of every ratio, if any; replicates were added until it was reached."""
    reached: bool = True
    """Whether `target_se` was reached."""

    @checks.arguments
    def row(self, name: str) -> Compared:
        """The results of the arm with this name."""
        return self.rows[checks.known("estimator of the comparison", name, self.rows)]

    def flags(self) -> dict[str, list[str]]:
        """Why intervals for networks are unreliable: for each reason the names of the arms concerned."""
        found: dict[str, list[str]] = {}
        for name, row in self.rows.items():
            for network in self.networks:
                for flag in filter(None, row.groups[network].dsnr.flag.split("; ")):
                    if name not in (named := found.setdefault(flag, [])):
                        named.append(name)
        return found

    @property
    def networks(self) -> list[str]:
        """The groups in the table: "encoder", "decoder" and "prior", if they have parameters."""
        groups = next(iter(self.rows.values())).groups
        return [name for name in ("encoder", "decoder", "prior") if name in groups]

    def __str__(self) -> str:
        """The result as an aligned table."""
        return table(self)

    def as_dict(self) -> dict[str, Any]:
        """All results as plain dicts, lists, numbers and strings."""
        return plain(self)

    def as_json(self) -> str:
        """`as_dict` as JSON; numbers that are not finite are the strings "inf", "-inf" and "nan"."""
        return files.as_json(self.as_dict()).decode()


_DETECTED = 4  # standard errors


def table(found: Comparison) -> str:
    """A comparison as aligned text, with one line for each network and arm."""
    lines = [
        f"K = {found.samples}, batch of {found.batch}, {found.replicates:,} replicates; ratios and bias against "
        f"{found.reference}; M decodes of each datum"
    ]
    cells = [[name, *_cells(row, group)] for group in found.networks for name, row in found.rows.items()]
    titles, *rows = tables.table(cells, _TITLES).splitlines()
    for i, group in enumerate(found.networks):
        size = found.rows[found.reference].groups[group].size
        lines += ["", f"{group}: total variance of the gradient over {size:,} parameter{'s' * (size > 1)}", titles]
        lines += rows[i * len(found.rows) : (i + 1) * len(found.rows)]
    targets: dict[str, list[str]] = {}
    for name, row in found.rows.items():
        targets.setdefault(row.target, []).append(name)
    lines += ["", "targets:", *(f"    {target} ({'; '.join(names)})" for target, names in targets.items())]
    each = {row.noise: row.importance for row in found.rows.values()}
    lines += [
        f"importance weights, {scheme} noise: effective sample size {of.ess:.2f} of {found.samples} "
        f"(least {of.least_ess:.2f})" + (f", Pareto k̂ {of.k_hat:.2f}" if math.isfinite(of.k_hat) else "")
        for scheme, of in each.items()
    ]
    flags = found.flags()
    if flags:
        lines += ["* unreliable interval or DSNR; a ratio's interval is unreliable if that of either variance is:"]
        lines += [f"    {reason} ({'; '.join(names)})" for reason, names in flags.items()]
    if found.target_se is not None:
        if found.reached:
            lines += [f"the relative standard error of every ratio is at most {found.target_se:g};"]
            lines += ["intervals after such a stop cover slightly less than 95%"]
        else:
            lines += [f"the relative standard error of a ratio is above {found.target_se:g} after the last stage"]
    return "\n".join(lines)


_TITLES = (
    "estimator", "M", "variance", "95% interval ", "ratio", "95% interval ", "SNR", "DSNR ", "bias z", "of norm",
    "at most", "ms", "var × ms",
)  # fmt: skip


def _cells(row: Compared, group: str) -> list[str]:
    what, ratio, bias = row.groups[group], row.ratio[group], row.bias.get(group)
    timed = math.isfinite(row.seconds)
    return [
        str(row.decodes), _short(what.variance.value), _span(what.variance), _short(ratio.value), _span(ratio),
        _short(what.snr.value), f"{_short(what.dsnr.value)}{' ' if what.dsnr.trusted else '*'}",
        f"{bias.z:.1f}" if bias else "", f"{bias.relative:.1%}" if bias and bias.detected else "",
        f"{bias.relative_limit:.1%}" if bias else "",
        f"{1e3 * row.seconds:.2f}" if timed else "", _short(1e3 * row.cost(group)) if timed else "",
    ]  # fmt: skip


def _span(of: Measured) -> str:
    return f"[{_short(of.low)}, {_short(of.high)}]{' ' if of.trusted else '*'}"


def _short(number: float) -> str:
    return f"{number:.3g}"


def plain(value: Any) -> Any:
    """Converts NamedTuples to dicts and tuples to lists, recursively."""
    if hasattr(value, "_asdict"):
        return {name: plain(v) for name, v in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
