"""The results of a comparison of estimators, by name and group: as a table, a dict or JSON."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from funcvae._support import checks, files, tables
from funcvae._support.reprs import short_repr
from funcvae.variance.intervals import Measured
from funcvae.variance.snr import Group
from funcvae.variance.weight_diagnostics import Importance

__all__ = ["Bias", "Compared", "Comparison", "flat", "plain"]


@short_repr
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


@short_repr
class Compared(NamedTuple):
    """The results of one estimator under one noise scheme. Dicts have a key for each group of parameters."""

    name: str
    """The name of the arm."""
    estimator: str
    """The name of the estimator."""
    noise: str
    """The name of the noise scheme."""
    target: str
    """The bound whose gradient is estimated."""
    decodes: int
    """The number M of points at which the model is evaluated, for each datum and gradient; K for most estimators."""
    groups: dict[str, Group]
    """Variance, SNR and DSNR."""
    ratio: dict[str, Measured]
    """The estimator's total variance over the reference's, from paired replicates."""
    signal: dict[str, Measured]
    """‖E g_ref‖/√T: the signal-to-noise ratio with the reference's mean. Without a bias it equals the estimator's own,
    and a less noisy reference makes it more precise. Empty if the targets differ."""
    bias: dict[str, Bias]
    """Empty if the targets differ, and for the reference itself."""
    bound: Measured
    """The mean of the target bound over noise and batch, in nats per example."""
    importance: Importance
    """Diagnostics of the importance weights."""
    seconds: float
    """The time of one eager gradient: the minimum of `timings`. It does not repeat bit for bit. NaN if not timed."""
    median_seconds: float
    """The median of `timings`. Other programs make it longer, so it shows how far `seconds` can be trusted."""
    unbiased: bool | None = None
    """Whether the estimator claims to be unbiased for its target; None for a function without claims."""

    @checks.arguments
    def cost(self, group: str = "all") -> float:
        """Variance × seconds: proportional to the time that averaging needs to reach a given variance."""
        return self.groups[checks.known("group of parameters", group, self.groups)].variance.value * self.seconds


@tables.shown
@short_repr
class Comparison(NamedTuple):
    """The result of `compare`: `print` it, or select a `row`."""

    rows: dict[str, Compared]
    """The results by the names of the arms."""
    reference: str
    """The arm that ratios and biases refer to."""
    samples: int
    """K, the number of samples of each datum."""
    replicates: int
    """The number of draws of the noise."""
    batch: int
    """The number of data in a gradient."""
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
        return self._flags("dsnr")  # it has the flags of the variance, too

    def _flags(self, of: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name, row in self.rows.items():
            for network in self.networks:
                for flag in filter(None, getattr(row.groups[network], of).flag.split("; ")):
                    if name not in (named := found.setdefault(flag, [])):
                        named.append(name)
        return found

    @property
    def networks(self) -> list[str]:
        """The groups in the table: "encoder", "decoder" and "prior", if they have parameters."""
        groups = next(iter(self.rows.values())).groups
        return [name for name in ("encoder", "decoder", "prior") if name in groups]

    @checks.arguments
    def table(self, *, wide: bool = False) -> str:
        """The result as text: variance, ratio, SNR and time of each estimator, in 80 columns. `print` shows it.

        Args:
            wide: show also M, the intervals of variances, the directional SNR, the test for a bias, and
                variance × time; lines are as long as it takes.
        """
        return tables.as_text(self._blocks(wide), None if wide else tables.WIDTH)

    def advice(self) -> str:
        """Which of the estimators of the reference's target to train with, by how much, and how sure that is.

        Compares variance × time over all parameters, relative to the reference; without times, the variance. The
        intervals are those of the variances' ratios, widened by the times' spread from least to median. There is a
        winner if its interval lies below those of all others. Ratios to a reference of little variance are the most
        precise. Estimators that claim a bias, or of which one was detected, are left out.
        """
        reference = self.rows[self.reference]
        timed = all(math.isfinite(row.seconds) for row in self.rows.values())
        same = [row for row in self.rows.values() if row.target == reference.target and row.unbiased is not False]
        fit = [row for row in same if not any(bias.detected for bias in row.bias.values())]
        costs = {row.name: _relative_cost(row, reference, timed) for row in fit}
        ranked = sorted((name for name in costs if math.isfinite(costs[name][0])), key=costs.__getitem__)
        if len(ranked) < 2:
            return f"not possible: fewer than two unbiased estimators of {reference.target} were compared"
        best, second = ranked[:2]
        what = "variance × time over all parameters" if timed else "variance over all parameters"
        texts = [
            f"{name} has {_short(value)} [{_short(low)}, {_short(high)}] times the {what} of {self.reference}"
            for name, (value, low, high) in ((name, costs[name]) for name in (best, second) if name != self.reference)
        ]
        clear = all(costs[best][2] < costs[name][1] for name in ranked[1:])
        text = f"for {reference.target}, {f'train with {best}' if clear else 'no clear winner'}: {'; '.join(texts)}"
        doubtful = any(self.rows[name].ratio["all"].flag for name in ranked)
        unsteady = timed and any(self.rows[name].median_seconds > _STEADY * self.rows[name].seconds for name in ranked)
        text += f"; for narrower intervals, make {best} the reference" if not clear and best != self.reference else ""
        text += "; the intervals are unreliable (see *)" if doubtful else ""
        return text + ("; the times are unsteady: measure alone on the machine" if unsteady else "")

    def to_dict(self) -> dict[str, Any]:
        """All results as plain dicts, lists, numbers and strings."""
        return plain(self)

    def to_json(self) -> str:
        """`to_dict` as JSON; numbers that are not finite are the strings "inf", "-inf" and "nan"."""
        return files.as_json(self.to_dict()).decode()

    def to_csv(self) -> str:
        """`to_pandas` as comma-separated values under a line of names."""
        return tables.as_csv(self._records())

    def to_pandas(self) -> Any:
        """A pandas.DataFrame with one row for each estimator and group of parameters.

        The columns "variance", "ratio", "signal", "snr", "dsnr", "norm" and "bound" have their standard error and 95%
        interval in "variance_se", "variance_low" and "variance_high", and why it is unreliable in "variance_flag". The
        others are the fields of `Compared`, `Group`, `Bias` ("bias_z") and `Importance` ("weights_ess").

        Raises:
            Missing: pandas is not installed.
        """
        return tables.as_frame(self._records())

    def _records(self) -> list[dict[str, Any]]:
        records = []
        for name, row in self.rows.items():
            about = {"name": name, "estimator": row.estimator, "noise": row.noise, "target": row.target}
            weights = {f"weights_{field}": of for field, of in row.importance._asdict().items()}
            whole = {"decodes": row.decodes, "bound": row.bound, **weights, "seconds": row.seconds}
            for group, found in row.groups.items():
                compared = {"ratio": row.ratio[group], "signal": row.signal.get(group, _NO_ESTIMATE)}
                bias = row.bias.get(group, _NO_BIAS)
                parts = found._asdict() | compared | {f"bias_{field}": of for field, of in bias._asdict().items()}
                records.append(about | {"group": group} | flat(parts | whole))
        return records

    def _blocks(self, wide: bool) -> list[tables.Block]:
        """The text of the result."""
        kept = range(len(_TITLES)) if wide else _NARROW
        sections = {}
        for group in self.networks:
            size = self.rows[self.reference].groups[group].size
            title = f"{group}: total variance of the gradient over {size:,} parameter{'s' * (size > 1)}"
            cells = [[name, *_cells(row, group, wide)] for name, row in self.rows.items()]
            sections[title] = [[row[i] for i in kept] for row in cells]
        about = f"K = {self.samples}, batch of {self.batch}, {self.replicates:,} replicates; ratios "
        about += f"and bias against {self.reference}; M decodes of each datum" if wide else f"against {self.reference}"
        blocks: list[tables.Block] = [about, tables.Table([_TITLES[i] for i in kept], sections)]
        blocks += [] if wide else [_LEGEND]
        return [*blocks, *self._targets(), *self._biases(), *self._importance(), *self._reliability(wide)]

    def _targets(self) -> list[str]:
        targets: dict[str, list[str]] = {}
        for name, row in self.rows.items():
            targets.setdefault(row.target, []).append(name)
        return ["targets:", *(f"    {target} ({'; '.join(names)})" for target, names in targets.items())]

    def _biases(self) -> list[str]:
        found = [
            f"{name} by {bias.relative:.1%} in the {group} (z = {bias.z:.1f})"
            for name, row in self.rows.items()
            for group, bias in row.bias.items()
            if group in self.networks and bias.detected
        ]
        return [f"biased against {self.reference}: {'; '.join(found)}"] if found else []

    def _importance(self) -> list[str]:
        each = {row.noise: row.importance for row in self.rows.values()}
        return [
            f"importance weights, {scheme} noise: effective sample size {of.ess:.2f} of {self.samples} "
            f"(least {of.least_ess:.2f})" + (f", Pareto k̂ {of.k_hat:.2f}" if math.isfinite(of.k_hat) else "")
            for scheme, of in each.items()
        ]

    def _reliability(self, wide: bool) -> list[str]:
        """The meaning of the stars, and of intervals after a stop."""
        lines = []
        if flags := self.flags() if wide else self._flags("variance"):
            what = "interval or DSNR" if wide else "interval"
            lines += [f"* unreliable {what}; a ratio's interval is unreliable if that of either variance is:"]
            lines += [f"    {reason} ({'; '.join(names)})" for reason, names in flags.items()]
        if self.target_se is not None and self.reached:
            lines += [f"the relative standard error of every ratio is at most {self.target_se:g};"]
            lines += ["intervals after such a stop cover slightly less than 95%"]
        elif self.target_se is not None:
            lines += [f"the relative standard error of a ratio is above {self.target_se:g} after the last stage"]
        return lines


_DETECTED = 4  # standard errors
_STEADY = 1.5  # the median of steady times over the least
_NO_ESTIMATE = Measured(math.nan, math.nan, math.nan, math.nan)
_NO_BIAS = Bias(*[math.nan] * 7)
_TITLES = (
    "estimator", "M", "variance", "95% interval ", "ratio", "95% interval ", "SNR", "DSNR ", "bias z", "of norm",
    "at most", "ms", "var × ms",
)  # fmt: skip
_LEGEND = "variance: tr Cov g; interval: of the ratio; SNR: ‖E g‖/√(tr Cov g)"
_NARROW = (0, 2, 4, 5, 6, 11)  # the columns of the narrow table


def _relative_cost(row: Compared, reference: Compared, timed: bool) -> tuple[float, float, float]:
    """Variance × time over all parameters, over the reference's, with its interval; without times, the variance."""
    ratio = row.ratio["all"]
    if row is reference or not timed:
        return ratio.value, ratio.low, ratio.high
    fastest, slowest = row.seconds / reference.median_seconds, row.median_seconds / reference.seconds
    return ratio.value * row.seconds / reference.seconds, ratio.low * fastest, ratio.high * slowest


def _cells(row: Compared, group: str, wide: bool) -> list[str]:
    what, ratio, bias = row.groups[group], row.ratio[group], row.bias.get(group)
    timed, ms = math.isfinite(row.seconds), 1e3 * row.seconds
    star = "" if wide else " " if what.variance.trusted else "*"  # the wide table has it at the interval
    return [
        str(row.decodes), f"{_short(what.variance.value)}{star}", _span(what.variance), _short(ratio.value),
        _span(ratio), _short(what.snr.value), f"{_short(what.dsnr.value)}{' ' if what.dsnr.trusted else '*'}",
        f"{bias.z:.1f}" if bias else "", f"{bias.relative:.1%}" if bias and bias.detected else "",
        f"{bias.relative_limit:.1%}" if bias else "",
        f"{ms:.{2 if ms < 1000 else 0}f}" if timed else "", _short(1e3 * row.cost(group)) if timed else "",
    ]  # fmt: skip


def _span(of: Measured) -> str:
    return tables.unbroken(f"[{_short(of.low)}, {_short(of.high)}]{' ' if of.trusted else '*'}")


def _short(number: float) -> str:
    return f"{number:.3g}"


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name, with the parts of each `Measured` as NAME, NAME_se, NAME_low, NAME_high and NAME_flag."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Measured):
            found |= {name if part == "value" else f"{name}_{part}": of for part, of in value._asdict().items()}
        else:
            found[name] = value
    return found


def plain(value: Any) -> Any:
    """Converts NamedTuples to dicts and tuples to lists, recursively."""
    if hasattr(value, "_asdict"):
        return {name: plain(v) for name, v in value._asdict().items()}
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
