"""The latent space: where the encoder puts the data."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray

from funcvae._support import checks
from funcvae.errors import BadType, BadValue
from funcvae.figures._arrays import Floats, as_array, as_is, text, words
from funcvae.figures._style import DARK, PALETTE, note

__all__ = ["latent_scatter"]
_GOLDEN = 0.6180339887498949  # its multiples modulo 1 fill [0, 1) evenly, and in no order


def latent_scatter(
    z: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    axes: tuple[str, str] = ("z1", "z2"),
    title: str = "Latent means of the data",
) -> Figure:
    """Where the encoder puts each datum in a two-dimensional latent space, or in a plane through a larger one.

    Up to ten classes are coloured, and each is named at its median, so that colour is never the only cue.
    More classes than that, and labels that are not whole numbers, are a quantity and get a colour bar.

    Both axes have one scale. But where the data spread along one of them is under a twentieth of that along the
    other, as when a latent dimension has collapsed, each has its own, and a note says so. Another note says if all
    points coincide.

    Args:
        z: latent means [n, 2], in units of the prior's standard deviation.
        labels: a class or a quantity for each datum [n].
        axes: names of the two latent dimensions, or of the plane's, such as "1st principal component".
        title: what the figure shows.

    Raises:
        BadValue: z is not [n, 2], labels are not [n], or they are more than ten different words.
    """
    text(title=title)
    axes_ = words("axes", axes, 2)
    z = as_array("z", z, "n 2")
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    ax = figure.add_subplot()
    thin, wide = np.sort(np.ptp(z, axis=0))
    one_scale = bool(thin >= wide / 20)
    if one_scale:
        ax.set_aspect("equal", adjustable="datalim")
    else:
        note(ax, "the two axes differ in scale")
    if wide == 0 and len(z) > 1:
        note(ax, f"all {len(z):,} points coincide")
    # The order is mixed, always in the same way: in sorted data the last class would hide the others.
    order = np.argsort(np.arange(len(z)) * _GOLDEN % 1)
    x, y = z[order].T
    dots: Any = {"s": np.clip(3e4 / len(z), 4, 25), "alpha": 0.6, "linewidths": 0, "rasterized": True}
    if labels is None:
        ax.scatter(x, y, c=DARK, **dots)
    else:
        labels = as_is("labels", labels)
        if labels.dtype.kind not in "biufU":
            raise BadType(f"labels must be numbers or words, got {checks.describe(labels)} of {labels.dtype}")
        if labels.dtype.kind == "f":
            as_array("labels", labels, "n")
        if labels.dtype.kind == "U":
            words("labels", list(map(str, np.unique(labels))))
        if labels.shape != (len(z),):
            raise BadValue(f"labels must be [{len(z)}], one for each row of z, got {list(labels.shape)}")
        classes, index = np.unique(labels, return_inverse=True)
        numeric = np.issubdtype(labels.dtype, np.number)
        if len(classes) <= len(PALETTE) and (not numeric or np.all(labels == np.round(labels))):
            ax.scatter(x, y, c=np.array(PALETTE)[index[order]], **dots)
            names = [f"{c:.0f}" if numeric else str(c) for c in classes]
            _name_classes(ax, z, index, names, one_scale)
            _legend(figure, names)
        elif numeric:
            points = ax.scatter(x, y, c=labels[order], cmap="viridis", **dots)
            bar = figure.colorbar(points, label="label", shrink=0.8)
            if bar.solids is not None:
                # Else it takes on the points' transparency, and is paler than where they overlap.
                bar.solids.set_alpha(1)
        else:
            raise BadValue(f"labels must be numbers or at most {len(PALETTE)} words, got {len(classes)}")
    ax.set(xlabel=axes_[0], ylabel=axes_[1], title=title)
    return figure


def _name_classes(ax: Axes, z: Floats, index: NDArray[np.intp], names: list[str], one_scale: bool) -> None:
    """Write each class at its median, or beside it where another's name stands."""
    medians = np.array([np.median(z[index == k], axis=0) for k in range(len(names))])
    view = np.ptp([ax.get_xlim(), ax.get_ylim()], axis=1)
    unit = view.max() if one_scale else view
    outline = [withStroke(linewidth=3, foreground="white")]
    for (x, y), name in zip(_apart(medians / unit, 0.041) * unit, names, strict=True):
        ax.text(x, y, name, size="large", weight="bold", ha="center", va="center", path_effects=outline)


def _legend(figure: Figure, names: list[str]) -> None:
    """The colour of each class, beside the axes."""
    dots = [Line2D([], [], marker="o", ls="", color=c, label=n) for c, n in zip(PALETTE, names, strict=False)]
    figure.legend(handles=dots, title="class", loc="outside right center", frameon=False)


def _apart(points: Floats, distance: float) -> Floats:
    """The points [n, 2], with those nearer than `distance` pushed apart until they are not."""
    # Points that coincide have no direction to part in, so each has a hair's breadth of its own.
    angle = 2 * np.pi * _GOLDEN * np.arange(len(points))
    points = points + 1e-12 * np.stack([np.cos(angle), np.sin(angle)], 1)
    for _ in range(100):
        gap = points[:, None] - points
        near = np.hypot(*gap.transpose(2, 0, 1))
        push = np.clip(distance - near, 0, None) / np.maximum(near, 1e-9)
        np.fill_diagonal(push, 0)
        points += 0.5 * (push[..., None] * gap).sum(1)
    return points
