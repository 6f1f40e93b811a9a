"""Training curves."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, as_numbers
from funcvae.figures._style import ACCENT, DARK, LIGHT, finish, note

__all__ = ["training_curves"]
_FINE = 1000  # parts of the horizontal axis, each about one pixel of the saved figure


@checks.arguments
def training_curves(
    step: ArrayLike,
    bound: ArrayLike,
    test_step: ArrayLike,
    test_bound: ArrayLike,
    *,
    grad_norm: ArrayLike | None = None,
    unit: str = "nats per example",
    name: str = "bound",
    title: str = "Training",
) -> Figure:
    """The bound against the training step, for the training batches and for the test set.

    The vertical axis excludes outliers, because the first steps are often so bad that they would flatten the rest of
    the curve. It spans the training and test values within three interquartile ranges of their quartiles; those of
    training are computed from its last three quarters. A note counts the values outside. Values that are not finite
    leave gaps.

    Args:
        step: numbers of the training steps [n], ascending.
        bound: the bound of each step's batch [n], in `unit`.
        test_step: steps after which the test set was evaluated [m]; m may be 0.
        test_bound: the bound on the test set [m], in `unit`.
        grad_norm: Euclidean norm of the gradient of each step's loss [n], drawn in a second panel with a log axis.

    Raises:
        BadValue: the arrays are not [n], [n], [m] and [m], or no training bound is finite.
    """
    step = as_array("step", step, "n")
    bound = as_array("bound", bound, f"{len(step)}", finite=False)
    norms = [] if grad_norm is None else [as_array("grad_norm", grad_norm, f"{len(step)}", finite=False)]
    test_step = as_numbers("test_step", test_step).astype(float)
    test_bound = as_numbers("test_bound", test_bound).astype(float)
    if test_step.ndim != 1 or test_bound.shape != test_step.shape:
        shapes = f"{list(test_step.shape)} and {list(test_bound.shape)}"
        raise BadValue(f"test_step and test_bound have shapes {shapes}: both must be [m]")
    finite = bound[np.isfinite(bound)]
    if not finite.size:
        raise BadValue(f"bound has no finite value among {len(bound)}: there is no curve to draw")

    panels = 1 + len(norms)
    figure = Figure(figsize=(7.2, 2.2 + 1.9 * panels), layout="constrained")
    ratios = {"height_ratios": [2, 1][:panels]}
    ax, *rest = figure.subplots(panels, sharex=True, squeeze=False, gridspec_kw=ratios)[:, 0]
    _noisy(ax, step, bound)
    if test_step.size:
        ax.plot(test_step, test_bound, "o", color=ACCENT, mec="white", markersize=8, label="test set")
    # The legend is above the axes, where it hides no curve.
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    ax.set_title(title, pad=28)
    ax.set_ylabel(f"{name} [{unit}]")
    ax.ticklabel_format(axis="y", useOffset=False)

    shown = np.concatenate([_typical(bound, finite[len(finite) // 4 :]), _typical(test_bound, test_bound)])
    margin = 0.06 * np.ptp(shown) or 1.0
    low, high = shown.min() - margin, shown.max() + margin
    ax.set_ylim(low, high)
    curves = {"training": bound, "test": test_bound}
    cut = {k: int(np.sum((v < low) | (v > high))) for k, v in curves.items()}
    if any(cut.values()):
        parts = [f"{cut[k]:,} of {v.size:,} {k} values" for k, v in curves.items() if cut[k]]
        note(ax, "outside the axis: " + " and ".join(parts))
    for panel, norm in zip(rest, norms, strict=True):
        _noisy(panel, step, np.where(norm > 0, norm, np.nan))
        panel.set(yscale="log", ylabel="gradient norm")
    (rest or [ax])[-1].set_xlabel("training step")
    for panel in (ax, *rest):
        panel.margins(x=0.02)
        finish(panel)
    return figure


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
    """The values within three interquartile ranges of the quartiles of the reference's finite ones."""
    reference = reference[np.isfinite(reference)]
    q1, q3 = np.percentile(reference, [25, 75]) if reference.size else (np.nan, np.nan)
    return values[np.abs(values - (q1 + q3) / 2) <= 3.5 * (q3 - q1)]
