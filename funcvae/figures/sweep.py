"""What a sweep has found: a quantity of several estimators against the number of samples, over seeds."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadType, BadValue, unknown
from funcvae.figures._arrays import Floats, as_array, text
from funcvae.figures._style import MARKERS, PALETTE, room

__all__ = ["OverSeeds", "over_seeds"]

Look = dict[str, Any]

_SCALES = ("linear", "log")
_ACROSS = 3  # panels
_SPREAD = 0.6  # of the way between two numbers of samples, which the estimators share
_WIDEST = 1.2  # octaves, at most
_BESIDE = 0.35  # of the way from an estimator to the next, where its single seeds are


class OverSeeds(NamedTuple):
    """One estimator's numbers: means over seeds and what they are of."""

    samples: ArrayLike
    """K [V], ascending."""
    mean: ArrayLike
    """[V]."""
    low: ArrayLike
    """Lower ends of intervals [V]; NaN where there is none."""
    high: ArrayLike
    """Upper ends [V]."""
    each: ArrayLike
    """Of single seeds [V, S]; NaN where there are fewer."""

    def map(self, f: Callable[[Floats], Floats]) -> "OverSeeds":
        """The same with all but `samples` through an ascending function."""
        return OverSeeds(self.samples, *(f(np.asarray(part, dtype=float)) for part in self[1:]))


def over_seeds(
    panels: Mapping[str, Mapping[str, OverSeeds]],
    *,
    ylabel: str = "test bound [nats per example]",
    yscale: str = "linear",
    title: str = "Test bound at the end of training",
) -> Figure:
    """Means over seeds with their intervals against the number of samples K, a panel for each system.

    Points of single seeds are faint. Where a panel has one K alone, the estimators stand along its axis instead.
    Estimators at one K are drawn side by side, so that no interval hides another.

    Args:
        panels: {the panel's title: {label: numbers}}; a label has one colour in all panels.
        ylabel: what is measured, with its unit.
        yscale: "linear" or "log".
        title: what the figure shows.

    Raises:
        BadValue: there is no panel or an empty one, arrays do not match, K do not ascend from 1 on, or a number on a
            log axis is not positive.
    """
    text(ylabel=ylabel, title=title)
    if checks.text("yscale", yscale) not in _SCALES:
        raise unknown("yscale", yscale, _SCALES)
    shown = {name: _checked(name, lines, yscale) for name, lines in _mapping("panels", panels).items()}
    labels = list(dict.fromkeys(label for lines in shown.values() for label in lines))
    across = min(len(shown), _ACROSS if len(shown) != 4 else 2)
    down = -(-len(shown) // across)
    figure = Figure(figsize=(room(max(6.4, 1.2 + 3.6 * across), title), 1.4 + 3.2 * down), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for ax in axes[len(shown) :]:
        ax.remove()
    by_samples = False
    for i, (ax, (name, lines)) in enumerate(zip(axes, shown.items(), strict=False)):
        every_k = sorted({k for line in lines.values() for k in np.asarray(line.samples)})
        ax.set(yscale=yscale, ylabel=ylabel if i % across == 0 else "")
        if len(every_k) > 1:
            by_samples = True
            _by_samples(ax, lines, labels, every_k)
            ax.set_title(name)
        else:
            _by_estimator(ax, lines, labels)
            ax.set_title(f"{name}, K = {every_k[0]:,.0f}")
        _finish(ax, yscale)
    _legend(figure, labels if by_samples else [], shown)
    return figure


def _by_samples(ax: Axes, lines: Mapping[str, OverSeeds], labels: Sequence[str], every_k: Sequence[float]) -> None:
    """A line for each estimator over log2 K."""
    ax.set_xscale("log", base=2)
    step = min(_SPREAD * np.diff(np.log2(every_k)).min(), _WIDEST) / len(lines)  # octaves
    for j, (label, line) in enumerate(lines.items()):
        k = np.asarray(line.samples) * 2 ** (step * (j - (len(lines) - 1) / 2))
        ax.plot(k, line.mean, color=_look(labels, label)["color"], linewidth=1.2, alpha=0.7)
        _points(ax, k, k * 2 ** (step * _BESIDE), line, _look(labels, label))
    ticks = every_k if len(every_k) <= _TICKS else [k for k in every_k if np.log2(k).is_integer()]
    ax.set_xticks(ticks, [f"{k:,.0f}" for k in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlim=(every_k[0] / 2, every_k[-1] * 2), xlabel="samples K")


def _by_estimator(ax: Axes, lines: Mapping[str, OverSeeds], labels: Sequence[str]) -> None:
    """A place for each estimator."""
    for j, (label, line) in enumerate(lines.items()):
        _points(ax, np.array([float(j)]), np.array([j + 0.15]), line, _look(labels, label))
    tilted: Look = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if len(lines) > 3 else {}
    ax.set_xticks(range(len(lines)), [label.replace(" (", "\n(") for label in lines], size="small", **tilted)
    ax.set(xlim=(-0.6, len(lines) - 0.4), xlabel="estimator (its target)")


def _points(ax: Axes, x: Floats, beside: Floats, line: OverSeeds, look: Look) -> None:
    """Means with their intervals, and single seeds, where there are several, beside them."""
    mean, low, high, each = (np.asarray(part) for part in line[1:])
    bars = np.isfinite(low) & np.isfinite(high)
    ax.vlines(x[bars], low[bars], high[bars], color=look["color"], linewidth=1.8)
    for end in (low, high):
        ax.plot(x[bars], end[bars], "_", color=look["color"], markersize=7)
    ax.plot(x, mean, linestyle="", markersize=7, markeredgecolor="white", **look)
    if each.shape[1] > 1:
        ax.plot(beside, each, linestyle="", markersize=4, alpha=0.5, markeredgecolor="none", **{**look, "marker": "o"})


def _finish(ax: Axes, yscale: str) -> None:
    if yscale == "log":
        low, high = ax.get_ylim()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if np.log10(high / low) < 2 else (1,), numticks=8))
        ax.yaxis.set_major_formatter(
            FuncFormatter(lambda v, _: f"{v:,g}".replace("e-0", "e−").replace("e-", "e−").replace("e+", "e"))
        )
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, labels: Sequence[str], panels: Mapping[str, Mapping[str, OverSeeds]]) -> None:
    """The estimators' colours, and what is large and what is faint."""
    handles = [
        Line2D([], [], markersize=7.5, label=textwrap.fill(label, 40), **_look(labels, label)) for label in labels
    ]
    if any(np.asarray(line.each).shape[1] > 1 for lines in panels.values() for line in lines.values()):
        grey: Look = {"color": "0.4", "linestyle": "", "marker": "o"}
        handles.append(Line2D([], [], markersize=7.5, label="mean over seeds", **grey))
        handles.append(Line2D([], [], markersize=11, label="its 95% interval", **{**grey, "marker": "|"}, mew=1.8))
        handles.append(Line2D([], [], markersize=4, alpha=0.5, label="a single seed", **grey))
    if handles:
        cols = min(len(handles), max(2, int(figure.get_figwidth() / 2.1)))
        figure.legend(handles=handles, loc="outside lower center", ncols=cols, frameon=False, fontsize="small",
                      title="estimator (its target)" if labels else None, title_fontsize="small")  # fmt: skip


def _look(labels: Sequence[str], label: str) -> Look:
    k = list(labels).index(label)
    return {"color": PALETTE[k % len(PALETTE)], "marker": MARKERS[k % len(MARKERS)]}


_TICKS = 8  # numbers of samples that all have room


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise BadType(f"{name} must be a dict, got {checks.describe(value)}")
    if not value:
        raise BadValue(f"{name} is empty: there is nothing to draw")
    for key in value:
        text(**{f"a name in {name}": key})
    return value


def _checked(name: str, lines: Any, yscale: str) -> dict[str, OverSeeds]:
    """A panel's lines as arrays."""
    found = {}
    for label, line in _mapping(f"the panel {checks.one_line(name, 60)}", lines).items():
        if not isinstance(line, OverSeeds):
            raise BadType(f"each line must be an OverSeeds, got {checks.describe(line)}")
        samples, mean = as_array("samples", line.samples, "V"), as_array("mean", line.mean, "V")
        low, high = (as_array(end, getattr(line, end), "V", finite=False) for end in ("low", "high"))
        each = as_array("each", line.each, "V S", finite=False)
        if not len(samples) == len(mean) == len(low) == len(high) == len(each):
            raise BadValue("samples, mean, low, high and each must have one length, that of their first axis")
        if samples[0] < 1 or (np.diff(samples) <= 0).any():
            raise BadValue("samples must ascend, from 1 on")
        if yscale == "log" and any((part <= 0).any() for part in (mean, low, high, each)):
            raise BadValue("a log axis has no place for numbers that are not positive")
        found[label] = OverSeeds(samples, mean, low, high, each)
    return found
