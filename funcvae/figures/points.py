"""Points in the plane: two-dimensional data beside samples of a model."""

from typing import Annotated

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, as_numbers, words
from funcvae.figures._style import ACCENT, DARK, LIGHT, note, titled
from funcvae.figures.saving import pixels

__all__ = ["densities", "evolution", "evolution_frames"]


@checks.arguments
def densities(
    true: ArrayLike,
    learned: ArrayLike,
    mean: ArrayLike | None = None,
    cov: ArrayLike | None = None,
    *,
    names: tuple[str, str] = ("data", "model"),
    title: str = "Samples of the data and of the model",
) -> Figure:
    """Two-dimensional histograms of the data and of a model's samples, with contours of the true Gaussian.

    The contours are where `(x - mean)' cov^-1 (x - mean) = r^2` for r = 1, 2 and 3 standard deviations, and contain
    `1 - exp(-r^2 / 2)` of the probability: 39%, 86% and 99%. Both panels share limits, bins and colours; a few of the
    farthest samples may be outside. Colours end at twice the data's highest density or earlier: if a model's samples
    are denser, the colour bar ends in an arrow.

    Args:
        true: samples of the data [n, 2].
        learned: samples of the model [m, 2], in the data's units.
        mean: the Gaussian's mean [2]; no contours are drawn unless given.
        cov: its covariance [2, 2], symmetric and positive definite; required with `mean`.
        names: titles of the two panels.
    """
    words("names", names, 2)
    samples = [as_array("true", true, "n 2"), as_array("learned", learned, "m 2")]
    # The limits are a square that contains nearly all samples and the Gaussian.
    tails = [np.percentile(s, [0.1, 99.9], axis=0) for s in samples]
    corners = [end + side * 0.02 * (high - low) for low, high in tails for side, end in ((-1, low), (1, high))]
    contours = _contours(mean, cov)
    corners += [end for contour in contours for end in (contour.min(1), contour.max(1))]
    low, high = np.min(corners, axis=0), np.max(corners, axis=0)
    half = np.max(high - low) / 2 or 1.0
    x, y = np.linspace((low + high) / 2 - half, (low + high) / 2 + half, 61).T
    cell = (x[1] - x[0]) * (y[1] - y[0])
    counts = [np.histogram2d(s[:, 0], s[:, 1], bins=(x, y))[0] / (len(s) * cell) for s in samples]
    # Colours follow the square root, so that the tails are visible, and end at `top`: concentrated samples of a model
    # would otherwise make the data pale.
    highest, top = max(c.max() for c in counts), 2 * counts[0].max()
    norm = PowerNorm(0.5, vmin=0, vmax=min(highest, top))

    figure = titled(8.0, 4.4, title)
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for ax, name, count in zip(panels, names, counts, strict=True):
        cells = ax.pcolormesh(x, y, count.T, cmap="Blues", norm=norm, rasterized=True)
        _draw(ax, contours)
        ax.set(title=name, xlabel="x1", aspect="equal")
    panels[0].set_ylabel("x2")
    if contours:
        _legend(figure)
    extend = "max" if highest > top else "neither"
    figure.colorbar(cells, ax=panels, extend=extend, label="density of the samples\n[per unit area]")
    return figure


@checks.arguments
def evolution(
    step: ArrayLike,
    samples: ArrayLike,
    true: ArrayLike,
    mean: ArrayLike | None = None,
    cov: ArrayLike | None = None,
    *,
    title: str = "Samples of the model during training",
) -> Figure:
    """The data, and samples of the model after different numbers of training steps.

    At most 15 steps are shown, from the first to the last, evenly spaced on a log axis, because most happens early. All
    panels have the limits of the data plus a tenth on each side. Samples outside are not drawn; if they are at least
    1%, a note gives their share.

    Args:
        step: numbers of training steps [s], ascending; 0 is the model before training.
        samples: samples of the model after each of them [s, n, 2], in the data's units.
        true: samples of the data [m, 2].
        mean, cov: the true Gaussian's mean [2] and covariance [2, 2], whose contours are drawn as in `densities`.
    """
    step, samples, true, contours = _evolving(step, samples, true, mean, cov, 15)
    low, high = _limits(true)
    cols = int(np.ceil(np.sqrt(1 + len(step))))
    rows = -(-(1 + len(step)) // cols)
    figure = titled(2.0 * cols + 0.5, 2.1 * rows + 0.7 + 0.3 * bool(contours), title)
    panels = figure.subplots(rows, cols, sharex=True, sharey=True, squeeze=False).ravel()
    figure.supylabel("x2")
    panels[0].set(title="data", xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    for axis in (panels[0].xaxis, panels[0].yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    _dots(panels[0], true, ACCENT)
    for ax, after, points in zip(panels[1:], step, samples, strict=False):
        _dots(ax, points, DARK)
        ax.set_title(_after(after))
        outside = np.mean(((points < low) | (points > high)).any(1))
        if outside >= 0.01:
            note(ax, f"{outside:.0%} outside")
    for ax in panels[: 1 + len(step)]:
        _draw(ax, contours)
    for ax in panels[1 + len(step) :]:
        ax.set_axis_off()
    for ax in panels[1 + len(step) - cols : 1 + len(step)]:  # the lowest of each column
        ax.tick_params(labelbottom=True)
        ax.set_xlabel("x1")
    if contours:
        _legend(figure)
    return figure


@checks.arguments
def evolution_frames(
    step: ArrayLike,
    samples: ArrayLike,
    true: ArrayLike,
    mean: ArrayLike | None = None,
    cov: ArrayLike | None = None,
    *,
    frames: Annotated[int, checks.within(1, 1000)] = 60,
    title: str = "Samples of the model during training",
) -> NDArray[np.float64]:
    """Pictures [n, 3, 400, 400] in [0, 1] of the model's samples during training, for `save_gif(…, back=False)`.

    At most `frames` steps are shown, spaced as in `evolution`, whose arguments these are. The first 500 samples of each
    step are drawn, over the contours of the true Gaussian, or without one over the data.
    """
    step, samples, true, contours = _evolving(step, samples, true, mean, cov, frames)
    low, high = _limits(true)
    figure = titled(4.0, 4.0, title)
    ax = figure.add_subplot()
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel="x1", ylabel="x2")
    if contours:
        _draw(ax, contours)
    else:
        ax.plot(*true[:_IN_FRAME].T, ".", color=LIGHT, markersize=3, markeredgewidth=0)
    (dots,) = ax.plot([], [], ".", color=DARK, markersize=4, markeredgewidth=0)
    made = []
    for after, points in zip(step, samples, strict=True):
        dots.set_data(*points[:_IN_FRAME].T)
        ax.set_title(_after(after))
        made.append(pixels(figure, 100))
    return np.stack(made)


_IN_FRAME = 500  # points, so that the film of a run has less than a megabyte


def _evolving(
    step: ArrayLike, samples: ArrayLike, true: ArrayLike, mean: ArrayLike | None, cov: ArrayLike | None, most: int
) -> tuple[Floats, Floats, Floats, list[Floats]]:
    """At most this many steps, each about the same factor above the one before, their samples, the data, the contours.

    Only these are converted to doubles: the samples of all steps may have hundreds of megabytes.
    """
    step, true, samples = as_array("step", step, "s"), as_array("true", true, "m 2"), as_numbers("samples", samples)
    if samples.shape[:1] != step.shape:
        raise BadValue(f"samples has shape {list(samples.shape)}: it must be [{len(step)}, n, 2]")
    shown = sorted({round(place) - 1 for place in np.geomspace(1, len(step), most)} | {len(step) - 1})
    return step[shown], as_array("samples", samples[shown], "steps n 2"), true, _contours(mean, cov)


def _limits(true: Floats) -> tuple[Floats, Floats]:
    """The corners of a rectangle around the data, with a tenth of its size on each side."""
    low, high = true.min(0), true.max(0)
    margin = np.where(high > low, 0.1 * (high - low), np.maximum(1.0, 1e-9 * np.abs(high)))
    return low - margin, high + margin


def _contours(mean: ArrayLike | None, cov: ArrayLike | None) -> list[Floats]:
    """The contours [2, 201] of a Gaussian at 1, 2 and 3 standard deviations, or none without a mean."""
    if mean is None:
        return []
    mean, cov = as_array("mean", mean, "2"), as_array("cov", cov, "2 2")
    if not (np.allclose(cov, cov.T) and np.linalg.eigvalsh(cov)[0] > 0):
        raise BadValue(f"cov is {cov.tolist()}: it must be symmetric and positive definite")
    # The Cholesky factor maps a circle of radius r to the contour at r standard deviations.
    angle = np.linspace(0, 2 * np.pi, 201)
    ellipse = np.linalg.cholesky(cov) @ [np.cos(angle), np.sin(angle)]
    return [mean[:, None] + r * ellipse for r in (1, 2, 3)]


def _draw(ax: Axes, contours: list[Floats]) -> None:
    for contour in contours:
        ax.plot(*contour, color="black", linewidth=0.8)


def _legend(figure: Figure) -> None:
    line = Line2D([], [], color="black", linewidth=1)
    label = "true Gaussian at 1, 2 and 3 standard deviations"
    figure.legend([line], [label], loc="outside lower center", frameon=False)


def _after(step: float) -> str:
    return f"after step {step:,.0f}" if step else "before training"


def _dots(ax: Axes, points: Floats, colour: str) -> None:
    """Draws small points, more transparent the more there are."""
    alpha = float(np.clip(600 / len(points), 0.1, 0.8))
    ax.plot(*points.T, ".", color=colour, markersize=4, alpha=alpha, markeredgewidth=0, rasterized=True)
