"""Measurements against K, the batch size or the training step, and the power laws fitted to them."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from funcvae import random
from funcvae._support import checks, files, tables
from funcvae._support.progress import Progress, silent
from funcvae._support.reprs import short_repr
from funcvae.errors import BadType, BadValue
from funcvae.variance.intervals import Measured
from funcvae.variance.results import plain

__all__ = ["Measure", "Slope", "Sweep", "slope", "sweep"]


@short_repr
class Slope(NamedTuple):
    """A power law fitted on log-log axes: value ≈ exp(intercept) · at^slope."""

    slope: float
    se: float
    intercept: float


@tables.shown
@short_repr
class Sweep(NamedTuple):
    """The result of `sweep`: measurements at each value of an axis."""

    over: str
    """The axis: "K", "batch", "step"."""
    values: list[float]
    series: dict[str, list[Measured]]
    slopes: dict[str, Slope]
    """The power law of each series that is positive at two or more values."""

    @checks.arguments
    def table(self, *, wide: bool = False) -> str:
        """The result as text, in 80 columns; with `wide`, all series side by side. `print` shows it."""
        return tables.as_text(self._blocks(wide), None if wide else tables.WIDTH)

    def only(self, *names: str) -> "Sweep":
        """The sweep with these series only."""
        return self._replace(
            series={checks.known("series of the sweep", name, self.series): self.series[name] for name in names},
            slopes={name: self.slopes[name] for name in names if name in self.slopes},
        )

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
        """A pandas.DataFrame with one row for each series and value of the axis.

        Its columns are "series", the name of the axis, "value", its standard error "se", the ends "low" and "high" of
        its 95% interval, and "flag".

        Raises:
            Missing: pandas is not installed.
        """
        return tables.as_frame(self._records())

    def _records(self) -> list[dict[str, Any]]:
        return [
            {"series": name, self.over: at} | of._asdict()
            for name, each in self.series.items()
            for at, of in zip(self.values, each, strict=True)
        ]

    def _blocks(self, wide: bool) -> list[tables.Block]:
        """One table, or as many as it takes to fit the width."""
        names = list(self.series)
        at_once = len(names) if wide else max(1, (tables.WIDTH - 8) // (2 + max(_SLOPE, *map(len, names))))
        made: list[tables.Block] = []
        for first in range(0, len(names), at_once):
            some = names[first : first + at_once]
            rows = [[f"{x:g}", *(f"{self.series[n][i].value:.4g}" for n in some)] for i, x in enumerate(self.values)]
            fits = [self.slopes.get(name) for name in some]
            text = [tables.unbroken(f"{fit.slope:+.3f} ± {fit.se:.3f}") if fit else "" for fit in fits]
            made += [*([""] if made else []), tables.Table((self.over, *some), {"": [*rows, ["slope", *text]]}, ">")]
        return made


_SLOPE = 14  # characters

Measure = Callable[[Any, random.Key], Mapping[str, Measured]]
"""Maps (a value of the axis, key) to estimates with standard errors, by name; the same names at every value."""


@checks.arguments
def sweep(
    measure: Measure,
    values: Iterable[float],
    key: random.Key,
    *,
    over: str = "K",
    progress: Progress = silent,
) -> Sweep:
    """Measures at every value, and fits a power law to each series.

        def measure(k, key):
            found = variance.compare(arms, model, params, state, x, key, samples=k)
            return {name: row.groups["encoder"].snr for name, row in found.rows.items()}

        variance.sweep(measure, (1, 4, 16, 64), key)

    The function defines what is measured, and along which axis: K as in this example; the batch size, with `x[:b]`; or
    the training step, with the parameters of that step.

    Args:
        values: the values of the axis, all different.
        key: value i is measured with `fold_in(key, i)`, so errors are independent.
        progress: called with the number of values done and the total number.

    Raises:
        BadValue: `values` is empty, not finite or has a value twice, or `measure` returns other names than before.
        BadType: `measure` does not return a dict of `Measured`.
    """
    values = _finite(values)
    if not values or len(set(values)) < len(values):
        raise BadValue(f"values is {checks.describe(values)}: give at least one value, and no value twice")
    series: dict[str, list[Measured]] = {}
    progress(0, len(values))
    for i, value in enumerate(values):
        found = measure(value, random.fold_in(key, i))
        if not isinstance(found, Mapping):
            raise BadType(f"measure returned {checks.describe(found)}: it must be a dict of estimates by name")
        for name, measured in found.items():
            checks.text("a name from measure", name)
            _check_measured("an estimate from measure", measured)
        if series and found.keys() != series.keys():
            raise BadValue(f"measure returned {', '.join(found)} at {value}, but {', '.join(series)} before")
        for name, measured in found.items():
            series.setdefault(name, []).append(measured)
        progress(i + 1, len(values))
    fits = {name: _fit(values, measured) for name, measured in series.items()}
    return Sweep(over, values, series, {name: fit for name, fit in fits.items() if fit})


@checks.arguments
def slope(values: Iterable[float], measured: Sequence[Measured]) -> Slope | None:
    """The weighted least-squares line through (log value, log estimate), each weighted by its relative error.

    If the points scatter about the line by more than their errors (χ² above its degrees of freedom), the standard error
    is multiplied by the square root of that ratio. If an error is zero, all points have the same weight and their
    scatter determines the error. Returns None if fewer than two different values have a positive estimate with a finite
    error.
    """
    values = _finite(values)
    for each in measured:
        _check_measured("an estimate in measured", each)
    if len(values) != len(measured):
        raise BadValue(f"there are {len(values)} values and {len(measured)} measured: they must have the same length")
    return _fit(values, measured)


def _fit(values: list[float], measured: Sequence[Measured]) -> Slope | None:
    pairs = [(v, float(m.value), float(m.se)) for v, m in zip(values, measured, strict=True)]
    points = np.array([(v, value, se / value) for v, value, se in pairs if v > 0 and value > 0]).reshape(-1, 3)
    at, value, error = points[np.isfinite(points).all(1)].T
    if len(at) < 2:
        return None
    x, y = np.log(at), np.log(value)
    least = max(error.min(), 0.0)
    weight = least / error if least > 0 else np.ones_like(x)  # at most 1, so that no square overflows
    middle = np.average(x, weights=weight**2)
    if not (np.ptp(x) > 0 and weight**2 @ (x - middle) ** 2 > 0):
        return None
    (rise, level), covariance = np.polyfit(x - middle, y, 1, w=weight, cov="unscaled")
    chi2 = np.sum((weight * (y - level - rise * (x - middle))) ** 2)  # in units of least²
    freedom = len(x) - 2
    scatter = chi2 / freedom if freedom else (0.0 if least > 0 else math.inf)
    se = math.sqrt(max(scatter, least**2) * covariance[0, 0])
    return Slope(float(rise), se, float(level - rise * middle))


def _finite(values: Iterable[float]) -> list[float]:
    return [checks.is_finite("a number in values", value) for value in checks.numbers("values", values)]


def _check_measured(name: str, measured: Measured) -> None:
    checks.instance(name, measured, Measured)
    for field in ("value", "se"):
        checks.number(f"the {field} of {name}", getattr(measured, field))
