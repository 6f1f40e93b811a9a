"""Scatter plots of latent means."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, as_numbers, words
from funcvae.figures._style import DARK, MARKERS, PALETTE, note, titled

__all__ = ["latent_scatter"]
_NAMES_IN_BAR = 20
_GOLDEN = 0.6180339887498949  # its multiples modulo 1 fill [0, 1) evenly, in mixed order


@checks.arguments
def latent_scatter(
    z: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    classes: Sequence[str] = (),
    prior: ArrayLike | None = None,
    axes: tuple[str, str] = ("z1", "z2"),
    title: str = "Latent means of the data",
) -> Figure:
    """The latent mean of each datum, in a two-dimensional latent space or in a plane through a larger one.

    Up to ten classes have a colour and a shape each, and a name at their median, so colour is never the only cue. More
    classes, and labels that are not whole numbers, are drawn as a quantity with a colour bar, which shows up to 20
    names.

    Both axes have the same scale, unless there are no circles of the prior, and the spread of the data along one axis
    is less than a twentieth of that along the other, for example because a latent dimension has collapsed. Then each
    axis has its own scale. A note tells this, or that all points coincide or are close together beside the circles.

    Args:
        z: latent means [n, 2], which are probabilities if the latents are 0 or 1.
        labels: a class or a quantity for each datum [n].
        classes: the names of the classes 0, 1, 2, …, for labels that are their numbers.
        prior: the centre [2] of a standard normal prior in this plane, which gets circles at 1 and 2 standard
            deviations.
        axes: names of the two axes, such as "1st principal component".
        title: the figure's title.

    Raises:
        BadType: labels are neither real numbers nor strings, or classes are not strings.
        BadValue: z is not [n, 2], labels are not [n], they are more than ten different strings, or classes are given
            and labels are not their numbers.
    """
    xlabel, ylabel = words("axes", axes, 2)
    classes = [checks.text("a name in classes", name) for name in classes]
    z = as_array("z", z, "n 2")
    figure = titled(6.4, 5.6 + 0.25 * (prior is not None), title)
    ax = figure.add_subplot()
    if prior is not None:
        _circles(figure, ax, as_array("prior", prior, "2"))
    thin, wide = np.sort(np.ptp(z, axis=0))
    one_scale = prior is not None or bool(thin >= wide / 20)
    if one_scale:
        ax.set_aspect("equal", adjustable="datalim")
    else:
        note(ax, "the axes have different scales")
    crowded = prior is not None and bool(wide < 0.2)
    if wide == 0 and len(z) > 1:
        note(ax, f"all {len(z):,} points coincide")
    elif crowded:
        note(ax, "all points are close together")
    # The points are drawn in a fixed mixed order: with sorted data the last class would hide the others.
    order = np.argsort(np.arange(len(z)) * _GOLDEN % 1)
    x, y = z[order].T
    dots: Any = {"s": np.clip(3e4 / len(z), 4, 25), "alpha": 0.6, "linewidths": 0, "rasterized": True}
    if labels is None:
        ax.scatter(x, y, c=DARK, **dots)
    else:
        labels = as_numbers("labels", labels, "biufU")
        numeric = labels.dtype.kind not in "bU"
        if numeric:
            labels = as_array("labels", labels, f"{len(z)}")
        elif labels.shape != (len(z),):
            raise BadValue(f"labels has shape {list(labels.shape)}: it must be [{len(z)}], one for each row of z")
        found, index = np.unique(labels, return_inverse=True)
        if classes and not (numeric and np.isin(found, np.arange(len(classes))).all()):
            raise BadValue(f"classes has {len(classes)} names: labels must be numbers from 0 to {len(classes) - 1}")
        if len(found) <= len(PALETTE) and (not numeric or np.all(labels == np.round(labels))):
            points = ax.scatter(x, y, c=np.array(PALETTE)[index[order]], **dots)
            shapes = [style.get_path().transformed(style.get_transform()) for style in map(MarkerStyle, MARKERS)]
            points.set_paths([shapes[k] for k in index[order]])
            names = [classes[int(k)] if classes else f"{k:.0f}" if numeric else str(k) for k in found]
            if not crowded:
                _name_classes(ax, z, index, names, one_scale)
            _legend(figure, names)
        elif numeric:
            points = ax.scatter(x, y, c=labels[order], cmap="viridis", **dots)
            bar = figure.colorbar(points, label="class" if classes else "label", shrink=0.8)
            if classes:
                shown = range(int(found[0]), int(found[-1]) + 1, -(-len(classes) // _NAMES_IN_BAR))
                bar.set_ticks(shown, labels=[classes[k] for k in shown])
            if bar.solids is not None:
                # With the points' transparency, the bar would be paler than overlapping points.
                bar.solids.set_alpha(1)
        else:
            raise BadValue(f"labels has {len(found)} different strings: it must have at most {len(PALETTE)}")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    return figure


def _circles(figure: Figure, ax: Axes, centre: Floats) -> None:
    """Draws circles at one and two standard deviations of the prior."""
    angle = np.linspace(0, 2 * np.pi, 201)
    for radius in (1, 2):
        circle = centre[:, None] + radius * np.stack([np.cos(angle), np.sin(angle)])
        (line,) = ax.plot(*circle, color="0.25", linewidth=1.2, linestyle="--", zorder=3)
    label = "standard normal prior at 1 and 2 standard deviations"
    figure.legend([line], [label], loc="outside lower center", frameon=False)


def _name_classes(ax: Axes, z: Floats, index: NDArray[np.intp], names: list[str], one_scale: bool) -> None:
    """Writes each class's name at its median, or beside it where another name is."""
    medians = np.array([np.median(z[index == k], axis=0) for k in range(len(names))])
    view = np.ptp([ax.get_xlim(), ax.get_ylim()], axis=1)
    unit = view.max() if one_scale else view
    outline = [withStroke(linewidth=3, foreground="white")]
    longest = max(map(len, names))
    unit = unit * np.array([max(1, 0.5 * longest), 1])  # long names need more room beside each other
    size = "large" if longest < 4 else "small"
    for (x, y), name in zip(_apart(medians / unit, 0.041) * unit, names, strict=True):
        ax.text(x, y, name, size=size, weight="bold", ha="center", va="center", path_effects=outline)


def _legend(figure: Figure, names: list[str]) -> None:
    """Draws the legend of the classes beside the axes."""
    looks = zip(MARKERS, PALETTE, names, strict=False)
    dots = [Line2D([], [], marker=marker, ls="", color=colour, label=name) for marker, colour, name in looks]
    figure.legend(handles=dots, title="class", loc="outside right center", frameon=False)


def _apart(points: Floats, distance: float) -> Floats:
    """The points [n, 2], with any two that are closer than `distance` pushed apart."""
    # Coinciding points have no direction to be pushed in, so each is first moved by a tiny amount.
    angle = 2 * np.pi * _GOLDEN * np.arange(len(points))
    points = points + 1e-12 * np.stack([np.cos(angle), np.sin(angle)], 1)
    for _ in range(100):
        gap = points[:, None] - points
        near = np.hypot(*gap.transpose(2, 0, 1))
        push = np.clip(distance - near, 0, None) / np.maximum(near, 1e-9)
        np.fill_diagonal(push, 0)
        points += 0.5 * (push[..., None] * gap).sum(1)
    return points
