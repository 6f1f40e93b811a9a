"""Measurements against K, a batch's size or training's progress, and the powers they follow."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from funcvae import random
from funcvae._support import checks, files
from funcvae.errors import BadType, BadValue, unknown
from funcvae.evaluate.importance_sampling import Progress
from funcvae.variance.intervals import Measured

__all__ = ["Measure", "Slope", "Sweep", "slope", "sweep"]


class Slope(NamedTuple):
    """A power law fitted on log-log axes: value ≈ exp(intercept) · at^slope."""

    slope: float
    se: float
    intercept: float


class Sweep(NamedTuple):
    """The measurements at each value of an axis."""

    over: str
    """The axis: "K", "batch", "step"."""
    values: list[float]
    series: dict[str, list[Measured]]
    slopes: dict[str, Slope]
    """Of each series that is positive at two values or more."""

    def __str__(self) -> str:
        """An aligned table."""
        wide = max(12, *map(len, self.series))
        lines = [f"{self.over:>10}  " + "  ".join(f"{name:>{wide}}" for name in self.series)]
        for i, value in enumerate(self.values):
            lines += [f"{value:10g}  " + "  ".join(f"{series[i].value:>{wide}.4g}" for series in self.series.values())]
        fits = [self.slopes.get(name) for name in self.series]
        cells = [f"{f'{fit.slope:+.3f} ± {fit.se:.3f}' if fit else '':>{wide}}" for fit in fits]
        return "\n".join([*lines, f"{'slope':>10}  " + "  ".join(cells)])

    def only(self, *names: str) -> "Sweep":
        """The same with these of its series."""
        for name in names:
            if checks.text("a name", name) not in self.series:
                raise unknown("series of the sweep", name, self.series)
        return self._replace(
            series={name: self.series[name] for name in names},
            slopes={name: self.slopes[name] for name in names if name in self.slopes},
        )

    def as_json(self) -> str:
        """`as_dict` as JSON; numbers that are not finite are the strings "inf", "-inf" and "nan"."""
        return files.as_json(self.as_dict()).decode()

    def as_dict(self) -> dict[str, Any]:
        """Everything, in plain dicts, lists, numbers and strings."""
        return {
            "over": self.over,
            "values": list(self.values),
            "series": {name: [m._asdict() for m in series] for name, series in self.series.items()},
            "slopes": {name: fit._asdict() for name, fit in self.slopes.items()},
        }


class Measure(Protocol):
    """Measures something at a value of an axis."""

    def __call__(self, value: Any, key: random.Key, /) -> Mapping[str, Measured]:
        """Estimates with standard errors, by name; the same names at every value."""
        ...


def sweep(
    measure: Measure,
    values: Sequence[float],
    key: random.Key,
    *,
    over: str = "K",
    progress: Progress = lambda done, total: None,
) -> Sweep:
    """Measures at every value, and fits a power law to each series.

        def measure(k, key):
            found = variance.compare(arms, model, params, state, x, key, samples=k)
            return {name: row.groups["encoder"].snr for name, row in found.rows.items()}

        variance.sweep(measure, (1, 4, 16, 64), key)

    The function defines what is measured, and along which axis: K as here; the size of a batch, `x[:b]`; a step of
    training, with that step's parameters.

    Args:
        measure: see `Measure`.
        values: where to measure, each once.
        key: value i is measured with `fold_in(key, i)`, so errors are independent.
        over: what the axis is called.
        progress: called with the number of values done, and of all.

    Raises:
        BadValue: no values, or one twice; or `measure` returns other names than before.
    """
    checks.function("measure", measure, "a function (value, key) -> estimates by name")
    checks.function("progress", progress)
    checks.text("over", over)
    random.checked(key)
    values = _finite(values)
    if not values or len(set(values)) < len(values):
        raise BadValue(f"values is {checks.describe(values)}: give one or more, each once")
    series: dict[str, list[Measured]] = {}
    for i, value in enumerate(values):
        found = measure(value, random.fold_in(key, i))
        if not isinstance(found, Mapping):
            raise BadType(f"measure returned {checks.describe(found)}: it must be estimates by name, in a dict")
        for name in found:
            checks.text("a name that measure gave", name)
        if series and found.keys() != series.keys():
            raise BadValue(f"measure gave {', '.join(found)} at {value}, but {', '.join(series)} before")
        for name, measured in found.items():
            _check_measured(measured)
            series.setdefault(name, []).append(measured)
        progress(i + 1, len(values))
    fits = {name: slope(values, measured) for name, measured in series.items()}
    return Sweep(over, list(values), series, {name: fit for name, fit in fits.items() if fit})


def slope(values: Sequence[float], measured: Sequence[Measured]) -> Slope | None:
    """The weighted least-squares line through (log value, log estimate), each weighted by its relative error.

    Where the points scatter about the line by more than their errors say (χ² above its degrees of freedom), the
    standard error is larger by the root of that ratio. Estimates without an error (se 0) count alike, and their scatter
    is the error. None where fewer than two estimates are positive and have an error that is finite, or all are at one
    value.
    """
    values = _finite(values)
    if not isinstance(measured, Sequence) or isinstance(measured, str | bytes):
        raise BadType(f"measured is {checks.describe(measured)}: it must be a list of Measured")
    for m in measured:
        _check_measured(m)
    if len(values) != len(measured):
        raise BadValue(f"there are {len(values)} values and {len(measured)} measured: they must be as many")
    rows = [(v, m.value, m.se) for v, m in zip(values, measured, strict=True)
            if v > 0 and m.value > 0 and math.isfinite(m.value) and math.isfinite(m.se)]  # fmt: skip
    if len(rows) < 2:
        return None
    at, value, se = np.array(rows, dtype=float).T
    with np.errstate(over="ignore"):
        x, y, error = np.log(at), np.log(value), se / value
    exact = not (error > 0).all()
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # of errors so small there is no finite spread
        weight = np.ones_like(x) if exact else 1 / error**2
        middle, level = (weight @ x) / weight.sum(), (weight @ y) / weight.sum()
        spread = float(weight @ (x - middle) ** 2)
    if not 0 < spread < math.inf:
        return None
    rise = float(weight @ ((x - middle) * (y - level))) / spread
    chi2 = float(weight @ (y - level - rise * (x - middle)) ** 2)
    freedom = len(x) - 2
    scale = chi2 / freedom if freedom else (math.inf if exact else 1.0)
    return Slope(rise, math.sqrt((scale if exact else max(scale, 1.0)) / spread), float(level - rise * middle))


def _finite(values: Sequence[float]) -> list[float]:
    plain = checks.numbers("values", values)
    for value in plain:
        if not math.isfinite(value):
            raise BadValue(f"one of values is {value}: they must be finite")
    return plain


def _check_measured(measured: Measured) -> None:
    if not isinstance(measured, Measured):
        raise BadType(f"an estimate is {checks.describe(measured)}: it must be a Measured")
    for name in ("value", "se"):
        checks.number(f"an estimate's {name}", getattr(measured, name))
