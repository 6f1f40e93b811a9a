"""The variance and the signal-to-noise ratio of gradients: against the number of samples, and along training."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, words
from funcvae.figures._log_axes import intervals, limits, positive, ticks
from funcvae.figures._style import UNRELIABLE, dodge, filled, finish, legend_below, looks, members, titled

__all__ = ["Course", "variance_against_samples", "variance_along_training"]

_QUANTITIES = "total variance [nats²]", "signal-to-noise ratio"


class Course(NamedTuple):
    """The gradient of one estimator in one network at V values of K or of the training step; NaN if not measured."""

    variance: ArrayLike
    """Total variance in nats², and the lower and upper ends of its interval [3, V]; ends are NaN without one."""
    snr: ArrayLike
    """Signal-to-noise ratio, and the ends of its interval [3, V]."""
    trusted: ArrayLike
    """Whether the intervals are reliable [V]."""


@checks.arguments
def variance_against_samples(
    samples: ArrayLike,
    networks: Mapping[str, Mapping[str, Course]],
    *,
    noise: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
    title: str = "Variance and signal-to-noise ratio against the number of samples",
) -> Figure:
    """The variance of gradients and their signal-to-noise ratio against K, with 95% intervals, on log axes.

    There is a row of two panels for each network. Estimators are drawn side by side, so none hides another. An interval
    that extends to 0, or more than a decade beyond all values, ends in an arrow. Values of 0 leave gaps.

    Args:
        samples: numbers of samples K [V], at least 1 and ascending.
        networks: {network: {estimator: results}}; an estimator has the same colour in all panels.
        noise: the noise scheme of each estimator, in the order of their first appearance; each scheme has a marker.
        groups: the target of each estimator; if there are several, the legend lists the estimators of each.

    Raises:
        BadValue: there is no network or no estimator, arrays have the wrong shapes, or K does not ascend.
    """
    k, names = _ascending("samples", samples, 1), _names(networks)
    seen = dict(zip(names, looks(names, noise), strict=True))
    figure = _grid(networks, title)
    for ax, values, trusted in _panels(figure, networks, k):
        ax.set(xscale="log", xlim=limits(k, k, k, 0.18, octave=True))
        ax.set_xticks(k, [f"{each:,g}" for each in k])
        ax.xaxis.set_minor_locator(NullLocator())
        for name, (value, low, high) in values.items():
            place, look = dodge(ax, names.index(name), len(names)), seen[name]
            ax.plot(k, value, color=look["color"], linewidth=1, alpha=0.6, transform=place)
            intervals(ax, k, low, high, look["color"], vertical=True, transform=place)
            for x, y, firm in zip(k, value, trusted[name], strict=True):
                ax.plot(x, y, markersize=6.5, transform=place, **filled(look, firm))
    for ax in figure.axes[-2:]:
        ax.set_xlabel("samples K")
    handles = [Line2D([], [], label=name, **look | {"linestyle": "-"}) for name, look in seen.items()]
    targets = "" if groups is None else members(words("groups", groups, len(names)), names)
    legend_below(figure, handles, f"bars: 95% intervals; {UNRELIABLE}; values of 0 are not shown\n{targets}".strip())
    return figure


@checks.arguments
def variance_along_training(
    step: ArrayLike,
    networks: Mapping[str, Mapping[str, Course]],
    *,
    title: str = "Variance and signal-to-noise ratio during training",
) -> Figure:
    """The variance of gradients and their signal-to-noise ratio against the training step, with bands for intervals.

    There is a row of two panels for each network; their vertical axes are logarithmic. Values of 0 leave gaps. Of lines
    that coincide, the first is widest, so all are visible.

    Args:
        step: numbers of training steps [V], at least 0 and ascending.
        networks: {network: {estimator: results}}; an estimator has the same colour in all panels.

    Raises:
        BadValue: there is no network or no estimator, arrays have the wrong shapes, or steps do not ascend.
    """
    at, names = _ascending("step", step, 0), _names(networks)
    seen = dict(zip(names, looks(names, None), strict=True))
    figure = _grid(networks, title)
    for ax, values, _ in _panels(figure, networks, at):
        least = ax.get_ylim()[0]
        for name, (value, low, high) in values.items():
            colour, after = seen[name]["color"], len(names) - 1 - names.index(name)
            width = 1.4 + min(1.2, 4 / len(names)) * after
            ax.fill_between(at, low.clip(min=least), high, color=colour, alpha=0.15, linewidth=0, zorder=1)
            ax.plot(at, value, color=colour, linewidth=width, marker="o", markersize=width + 2)
    for ax in figure.axes[-2:]:
        ax.set_xlabel("training step")
    handles = [Line2D([], [], label=name, color=look["color"], linewidth=3) for name, look in seen.items()]
    legend_below(figure, handles, "bands: 95% intervals; values of 0 are not shown")
    return figure


def _ascending(name: str, value: ArrayLike, least: int) -> Floats:
    x = as_array(name, value, "V")
    if x[0] < least or (np.diff(x) <= 0).any():
        raise BadValue(f"{name} is {checks.describe(x.tolist())}: it must ascend and be at least {least}")
    return x


def _names(networks: Mapping[str, Mapping[str, Course]]) -> list[str]:
    """The names of all estimators; checks that each network has one."""
    if not networks:
        raise BadValue("networks is empty: it must have at least one network")
    for network, courses in networks.items():
        if not checks.mapping(f"the network {network!r}", courses):
            raise BadValue(f"the network {network!r} is empty: it must have at least one estimator")
    return list(dict.fromkeys(name for courses in networks.values() for name in courses))


def _grid(networks: Mapping[str, Mapping[str, Course]], title: str) -> Figure:
    figure = titled(7.6, 1.5 + 2.7 * len(networks), title)
    figure.subplots(len(networks), 2, squeeze=False)
    return figure


def _panels(
    figure: Figure, networks: Mapping[str, Mapping[str, Course]], x: Floats
) -> Iterator[tuple[Axes, dict[str, Floats], dict[str, Floats]]]:
    """Yields axes with a log scale, their values [3, V] by estimator, and whether these are reliable [V]."""
    for row, (network, courses) in enumerate(networks.items()):
        for name, course in courses.items():
            checks.instance(f"{name!r}", course, Course)
        trusted = {name: as_array("trusted", course.trusted, f"{len(x)}") for name, course in courses.items()}
        for column, quantity in enumerate(_QUANTITIES):
            field = Course._fields[column]
            values = {}
            for name, course in courses.items():
                values[name] = as_array(field, getattr(course, field), f"3 {len(x)}", finite=False)
                values[name][0] = np.where(positive(values[name][0]), values[name][0], np.nan)
            ax = figure.axes[2 * row + column]
            ax.set(yscale="log", ylim=limits(*np.stack(list(values.values()), 1)), ylabel=quantity)
            ax.set_title(network, loc="left")
            yield ax, values, trusted
            ticks(ax.yaxis)
            finish(ax)
