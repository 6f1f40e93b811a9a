"""Curves of a bound over training: of one run with its terms, and of several runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae._support.checks import Positive
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, as_numbers, labelled
from funcvae.figures._log_axes import number, ticks
from funcvae.figures._style import ACCENT, DARK, LIGHT, MARKERS, PALETTE, counts, finish, note, titled

__all__ = ["run_curves", "training_curves"]
_FINE = 1000  # parts of the horizontal axis, each about one pixel of the saved figure
_MARKED = 20  # markers on a line


@checks.arguments
def training_curves(
    step: ArrayLike,
    bound: ArrayLike,
    test_step: ArrayLike,
    test_bound: ArrayLike,
    *,
    terms: Mapping[str, ArrayLike] | None = None,
    grad_norm: ArrayLike | None = None,
    steps_per_epoch: Positive | None = None,
    unit: str = "nats per example",
    name: str = "bound",
    title: str = "Training",
) -> Figure:
    """The bound against the training step, for the training batches and for the test set; its terms are below it.

    A vertical axis excludes outliers, because the first steps are often so bad that they would flatten the rest of
    the curve. It spans the training and test values within three interquartile ranges of their quartiles; those of
    training are computed from its last three quarters. A note counts the values outside. Values that are not finite
    leave gaps.

    Args:
        step: numbers of the training steps [n], ascending.
        bound: the bound of each step's batch [n], in `unit`.
        test_step: steps after which the test set was evaluated [m]; m may be 0.
        test_bound: the bound on the test set [m], in `unit`.
        terms: {name: values [n]} of each step's batch, in `unit`, such as reconstruction and KL, with a panel each.
        grad_norm: Euclidean norm of the gradient of each step's loss [n], drawn in a last panel with a log axis.
        steps_per_epoch: adds an axis of epochs above the figure.

    Raises:
        BadValue: an array has a wrong shape, or no training bound, or no value of a term, is finite.
    """
    step = as_array("step", step, "n")
    curves = {name: ("bound", bound), **{label: (label, values) for label, values in (terms or {}).items()}}
    lines = {label: as_array(given, v, f"{len(step)}", finite=False) for label, (given, v) in curves.items()}
    norms = [] if grad_norm is None else [as_array("grad_norm", grad_norm, f"{len(step)}", finite=False)]
    test_step = as_numbers("test_step", test_step).astype(float)
    test_bound = as_numbers("test_bound", test_bound).astype(float)
    if test_step.ndim != 1 or test_bound.shape != test_step.shape:
        shapes = f"{list(test_step.shape)} and {list(test_bound.shape)}"
        raise BadValue(f"test_step and test_bound have shapes {shapes}: both must be [m]")
    for label, line in lines.items():
        if not np.isfinite(line).any():
            raise BadValue(f"{curves[label][0]} has no finite value among {len(line)}: there is no curve to draw")

    heights = [2.0, *[1.0] * (len(lines) + len(norms) - 1)]
    figure = titled(7.2, 1.9 + 1.3 * sum(heights), title)
    panels = figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for ax, (label, line) in zip(panels, lines.items(), strict=False):
        tested = test_bound if ax is panels[0] else test_bound[:0]
        _noisy(ax, step, line)
        if tested.size:
            _marked(ax, test_step, tested, "o", color=ACCENT, linewidth=1.2, markersize=6, label="test set")
        ax.set_ylabel(f"{label}\n[{unit}]", size="medium" if ax is panels[0] else "small")
        _limit(ax, [line[np.isfinite(line)], tested[np.isfinite(tested)]])
        _note_outside(ax, {"training": line, "test": tested})
    for norm in norms:
        _noisy(panels[-1], step, np.where(norm > 0, norm, np.nan))
        panels[-1].set(yscale="log", ylabel="gradient\nnorm")
        ticks(panels[-1].yaxis)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.align_ylabels(panels)
    _steps_and_epochs(panels[0], panels[-1], steps_per_epoch)
    for ax in panels:
        ax.margins(x=0.02)
        finish(ax)
    return figure


@checks.arguments
def run_curves(
    runs: Sequence[tuple[str, ArrayLike, ArrayLike]],
    *,
    steps_per_epoch: Sequence[float] | None = None,
    unit: str = "nats per example",
    name: str = "bound",
    title: str = "Training of several runs",
) -> Figure:
    """A bound of several runs against the training step, and against the epoch if their numbers of steps differ.

    If all runs have the same number of steps in an epoch, one panel has both axes. The legend has the last value of
    each run. The vertical axis excludes outliers as that of `training_curves`.

    Args:
        runs: (label, steps [n], bound [n]) of each run.
        steps_per_epoch: the number of steps in an epoch of each run; without it, there is no axis of epochs.

    Raises:
        BadValue: there is no run, the arrays of a run differ in length, or no bound of a run is finite.
    """
    runs = [(label, step, bound) for label, step, bound in labelled("runs", runs, ("label", "steps", "bound"))]
    per_epoch = [] if steps_per_epoch is None else as_array("steps_per_epoch", steps_per_epoch, f"{len(runs)}").tolist()
    if any(size <= 0 for size in per_epoch):
        raise BadValue(f"steps_per_epoch is {checks.describe(steps_per_epoch)}: all must be positive")
    across = 2 if len(set(per_epoch)) > 1 else 1
    cols = 2 if max(len(label) for label, *_ in runs) < 36 else 1
    figure = titled(7.2 if across == 1 else 9.6, 4.2 + 0.22 * -(-len(runs) // cols), title)
    panels = figure.subplots(1, across, sharey=True, squeeze=False)[0]
    bounds = []
    for k, (label, step, bound) in enumerate(runs):
        x = as_array("steps", step, "n")
        y = as_array("bound", bound, f"{len(x)}", finite=False)
        if not np.isfinite(y).any():
            raise BadValue(f"the run {label!r} has no finite bound: there is no curve to draw")
        bounds.append(y)
        look: Any = {"color": PALETTE[k % len(PALETTE)], "linewidth": 1.4}
        look["label"] = f"{label}: {number(f'{y[-1]:,.5g}')}"
        for ax, unit_of_x in zip(panels, (1, *per_epoch[k : k + 1]), strict=False):
            _marked(ax, x / unit_of_x, y, MARKERS[k % len(MARKERS)], markersize=6, **look)
    _limit(panels[0], [y[np.isfinite(y)] for y in bounds])
    panels[0].set_ylabel(f"{name} [{unit}]")
    _steps_and_epochs(panels[0], panels[0], per_epoch[0] if per_epoch and across == 1 else None)
    if across > 1:
        panels[1].set_xlabel("epoch")
        counts(panels[1].xaxis)
    for ax in panels:
        finish(ax)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=cols, frameon=False,
                  title=f"last {name} [{unit}]", alignment="center")  # fmt: skip
    return figure


def _steps_and_epochs(top: Axes, bottom: Axes, steps_per_epoch: float | None) -> None:
    """Labels the axis of steps, and adds an axis of epochs above."""
    bottom.set_xlabel("training step")
    counts(bottom.xaxis)
    if steps_per_epoch is not None:
        size = float(steps_per_epoch)
        both: Any = (lambda step: step / size, lambda epoch: epoch * size)
        above = top.secondary_xaxis("top", functions=both)
        above.set_xlabel("epoch")
        counts(above.xaxis)


def _marked(ax: Axes, x: Floats, y: Floats, marker: str, **look: Any) -> None:
    """Draws a line with at most 20 markers, one of them at its end."""
    every = -(-len(x) // _MARKED)
    ax.plot(x, y, marker=marker, mec="white", markevery=((len(x) - 1) % every, every), **look)


def _limit(ax: Axes, lines: Sequence[Floats]) -> None:
    """Sets vertical limits that exclude outliers."""
    late = [line[len(line) // 4 :] for line in lines]
    shown = np.concatenate([_typical(line, end) for line, end in zip(lines, late, strict=True)])
    margin = 0.06 * np.ptp(shown) or 1.0
    ax.set_ylim(shown.min() - margin, shown.max() + margin)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.yaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))


def _note_outside(ax: Axes, curves: Mapping[str, Floats]) -> None:
    """Notes how many values of each curve are outside the vertical limits."""
    low, high = ax.get_ylim()
    cut = {name: int(np.sum((line < low) | (line > high))) for name, line in curves.items()}
    parts = [f"{cut[name]:,} of {line.size:,} {name} values" for name, line in curves.items() if cut[name]]
    if parts:
        note(ax, "outside the axis: " + " and ".join(parts))


def _noisy(ax: Axes, step: Floats, value: Floats) -> None:
    """Draws a faint line through all values, and a dark one through their mean over a fiftieth of the steps.

    With fewer than 100 steps there is nothing to average, and the line through all values is dark.
    """
    width = max(1, len(step) // 50)
    value = np.where(np.isfinite(value), value, np.nan)
    faint = width > 1
    look: Any = {"color": LIGHT, "linewidth": 0.7} if faint else {"color": DARK, "linewidth": 1.2, "marker": "."}
    ax.plot(*_outline(step, value), label="training batch", **look)
    if faint:
        # Steps and values are averaged over the same windows, so the mean does not lag behind.
        windows = np.lib.stride_tricks.sliding_window_view(np.stack([step, value]), width, axis=1)
        means = windows[:, :: max(1, len(step) // _FINE)].mean(-1)
        ax.plot(*means, color=DARK, linewidth=1.6, label=f"mean of {width:,} batches")


def _outline(step: Floats, value: Floats) -> tuple[Floats, Floats]:
    """A line that looks like the one through all values but draws fast: the minimum and maximum of each part."""
    size = -(-len(step) // _FINE)
    if size <= 2:
        return step, value
    starts = np.arange(0, len(step), size)
    least, greatest = np.fmin.reduceat(value, starts), np.fmax.reduceat(value, starts)
    return step[starts].repeat(2), np.stack([least, greatest], axis=1).ravel()


def _typical(values: Floats, reference: Floats) -> Floats:
    """The values within three interquartile ranges of the quartiles of the reference."""
    q1, q3 = np.percentile(reference, [25, 75]) if reference.size else (np.nan, np.nan)
    return values[np.abs(values - (q1 + q3) / 2) <= 3.5 * (q3 - q1)]
