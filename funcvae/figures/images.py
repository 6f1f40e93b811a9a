"""Grids of images: decoded from the latent plane, sampled, reconstructed, or interpolated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, as_images, words
from funcvae.figures._log_axes import number
from funcvae.figures._style import titled

__all__ = ["image_grid", "interpolation", "reconstructions", "sample_grid", "traversal"]


@checks.arguments
def image_grid(
    images: ArrayLike,
    *,
    extent: tuple[float, float, float, float] | None = None,
    axes: tuple[str, str] = ("z1", "z2"),
    title: str = "Images decoded from a grid of latent values",
) -> Figure:
    """A grid of images without gaps, whose axes ascend to the right and upwards.

    `images[i, j]` belongs to the i-th value of the vertical axis and the j-th of the horizontal one. So `images[0, 0]`
    is at the bottom left, and `images[-1, 0]` at the top left.

    Args:
        images: [rows, cols, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        extent: latent values (left, right, bottom, top) at the grid's outer edges, so that column j is centred on
            `left + (j + 1/2) (right - left) / cols`. Without it, the axes have no numbers.
        axes: names of the horizontal and the vertical latent dimension.

    Raises:
        BadValue: images have another shape, or the extent is not (left < right, bottom < top).
    """
    xlabel, ylabel = words("axes", axes, 2)
    images = as_images("images", images, "rows cols C H W")
    rows, cols, _, height, width = images.shape
    left, right, bottom, top = (0, cols, 0, rows) if extent is None else as_array("extent", extent, "4").tolist()
    if not (left < right and bottom < top):
        raise BadValue(f"extent is {checks.describe(extent)}: it must be (left, right, bottom, top), ascending")
    shape = rows * height / (cols * width)
    # The grid has at most 6.4 inches in each direction, and the labels get more.
    wide, tall = 6.4 * min(1, 1 / shape), 6.4 * min(1, shape)
    figure = titled(max(wide, 3.8) + 0.6, tall + 0.8, title)
    ax = figure.add_subplot()
    # The aspect cancels the extent's proportions, so pixels stay square.
    aspect = shape * (right - left) / (top - bottom)
    _show(ax, images[::-1], extent=(left, right, bottom, top), aspect=aspect)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if extent is None:
        ax.set(xticks=[], yticks=[])
    return figure


@checks.arguments
def sample_grid(
    images: ArrayLike, *, rows: Sequence[str] = (), title: str = "Images decoded from samples of the prior"
) -> Figure:
    """Images row by row in a nearly square grid, whose last row may be incomplete.

    Args:
        images: [n, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        rows: names of the rows, which then have equal lengths.
    """
    images = as_images("images", images, "n C H W")
    if rows and len(images) % len(rows):
        raise BadValue(f"{len(images)} images do not divide into {len(rows)} rows of equal length")
    cols = len(images) // len(rows) if rows else int(np.ceil(np.sqrt(len(images))))
    cells = _rows(images, cols)
    height, width = cells.shape[3:]
    cell = min(0.9, 6.4 / cols)  # inches
    figure = titled(cell * cols + 0.2 + 0.7 * bool(rows), cell * len(cells) * height / width + 0.5, title)
    ax = figure.add_subplot()
    _show_cells(ax, cells)
    if rows:
        ax.set_yticks(_centres(len(rows), height), words("rows", rows, len(rows)))
    return figure


@checks.arguments
def reconstructions(
    originals: ArrayLike, reconstructed: ArrayLike, *, title: str = "Originals and their reconstructions"
) -> Figure:
    """Images above their reconstructions, ten to a row, with the squared error of each: its sum over all pixels.

    Args:
        originals: [n, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        reconstructed: the decoder's means for the same images, of the same shape.
    """
    originals = as_images("originals", originals, "n C H W")
    reconstructed = as_images("reconstructed", reconstructed, " ".join(map(str, originals.shape)))
    cols = min(len(originals), 10)
    errors = ((originals - reconstructed) ** 2).sum((1, 2, 3))
    pairs = np.stack([_rows(originals, cols), _rows(reconstructed, cols)], axis=1)
    blocks, _, _, _, height, width = pairs.shape

    cell = 0.72  # inches
    figure = titled(cell * cols + 1.2, blocks * (2 * cell * height / width + 0.4) + 0.5, title)
    for k, (ax, pair) in enumerate(zip(figure.subplots(blocks, squeeze=False)[:, 0], pairs, strict=True)):
        _show_cells(ax, pair)
        ax.set_yticks(_centres(2, height), ["original", "reconstruction"])
        shown = errors[k * cols : (k + 1) * cols]
        ax.set_xticks(_centres(len(shown), width), [f"{error:#.3g}".rstrip(".") for error in shown], size="small")
        ax.annotate(
            "squared error", (0, 0), (-4, -4), "axes fraction", "offset points", ha="right", va="top", size="small"
        )
    return figure


@checks.arguments
def interpolation(
    images: ArrayLike,
    *,
    ends: ArrayLike | None = None,
    names: tuple[str, str] = ("first item", "second item"),
    title: str = "Images decoded between two items",
) -> Figure:
    """A strip of images from one item to another; the i-th of n belongs to t = i / (n - 1).

    Args:
        images: [n, C, H, W] in [0, 1], n >= 2, with C = 1 (grey) or 3 (RGB); values outside are clipped.
        ends: the two items [2, C, H, W], drawn to the left and to the right of the strip.
        names: what the two items are, such as their number and class.
    """
    images = as_images("images", images, "n C H W")
    n, channels, height, width = images.shape
    left, right = words("names", names, 2)
    if n < 2:
        raise BadValue("images has one image: an interpolation must have at least two")
    cells = n if ends is None else n + 2
    cell = np.clip(12 / cells, 0.4, 0.9)  # inches
    figure = titled(cell * cells + 0.6, cell * height / width + 1.2, title)
    if ends is not None:
        originals = as_images("ends", ends, f"2 {channels} {height} {width}")
        first, strip, second = figure.subplots(1, 3, width_ratios=[1, n, 1])
        _show_cells(first, originals[:1, None])
        _show_cells(second, originals[1:, None])
        # Labels start at the outer edges, since they may be wider than a small image.
        first.set_xlabel(left, loc="left")
        second.set_xlabel(right, loc="right")
    else:
        strip = figure.add_subplot()
    _show_cells(strip, images[None])
    ticks = np.linspace(0, 1, 5 if n > 3 else n)
    # t = 0 and t = 1 are at the centres of the first and the last image.
    strip.set_xticks(_centres(1, width) + ticks * (n - 1) * width, [f"{t:g}" for t in ticks])
    strip.set_xlabel("t: 0 decodes the first item, 1 the second")
    return figure


@checks.arguments
def traversal(
    images: ArrayLike,
    rows: Sequence[str],
    values: ArrayLike,
    *,
    title: str = "Images decoded as one latent varies",
) -> Figure:
    """Images as one latent varies: a row for each latent, and a column for each value.

    Args:
        images: [rows, values, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        rows: names of the latents.
        values: the values of the latent, in standard deviations of the prior from its mean.
    """
    values = as_array("values", values, "values")
    names = words("rows", rows)
    images = as_images("images", images, f"{len(names)} {len(values)} C H W")
    height, width = images.shape[-2:]
    cell = min(0.72, 6.4 / len(values))  # inches
    figure = titled(
        cell * len(values) + 0.6 + 0.085 * max(map(len, names)), cell * len(names) * height / width + 1.0, title
    )
    ax = figure.add_subplot()
    _show_cells(ax, images)
    ax.set_yticks(_centres(len(names), height), names)
    ax.set_xticks(_centres(len(values), width), [number(f"{value:.3g}") for value in values])
    ax.set_xlabel("value of the latent [standard deviations of the prior]")
    return figure


def _centres(n: int, size: int) -> Floats:
    """The places of the middles of n images of this size: pixels' centres are whole numbers."""
    return size * np.arange(0.5, n) - 0.5


def _rows(images: Floats, cols: int) -> Floats:
    """Images [n, C, H, W] as rows [rows, cols, C, H, W]; white images complete the last row."""
    blank = np.ones((-len(images) % cols, *images.shape[1:]))
    return rearrange(np.concatenate([images, blank]), "(rows cols) c h w -> rows cols c h w", cols=cols)


def _show(ax: Axes, cells: Floats, **options: Any) -> None:
    """Draws images [rows, cols, C, H, W] as one picture, the first row on top; 0 is black and 1 is white."""
    picture = rearrange(cells, "rows cols c h w -> (rows h) (cols w) c")
    grey = picture.shape[-1] == 1
    ax.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=1, **options)


def _show_cells(ax: Axes, cells: Floats) -> None:
    """Draws images [rows, cols, C, H, W] with white lines between them, on axes without ticks or frame."""
    rows, cols, _, height, width = cells.shape
    _show(ax, cells)
    ax.vlines(np.arange(1, cols) * width - 0.5, -0.5, rows * height - 0.5, color="white", linewidth=1)
    ax.hlines(np.arange(1, rows) * height - 0.5, -0.5, cols * width - 0.5, color="white", linewidth=1)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
