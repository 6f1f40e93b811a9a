"""Images side by side: a plane of the latent space, samples, reconstructions, and the way between two items."""

from typing import Any

import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import Floats, as_array, as_images, text, words
from funcvae.figures._style import room

__all__ = ["image_grid", "interpolation", "reconstructions", "sample_grid"]


def image_grid(
    images: ArrayLike,
    *,
    extent: tuple[float, float, float, float] | None = None,
    axes: tuple[str, str] = ("z1", "z2"),
    title: str = "Images decoded from a grid of latent values",
) -> Figure:
    """One gap-free mosaic of images, laid out as a graph is: values grow to the right and upwards.

    `images[i, j]` belongs to the i-th value, ascending, of the vertical axis and the j-th of the horizontal
    one. So `images[0, 0]` is drawn at the bottom left, and `images[-1, 0]` at the top left.

    Args:
        images: [rows, cols, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        extent: latent values (left, right, bottom, top) at the mosaic's outer edges, so that column j is
            centred on `left + (j + 1/2) (right - left) / cols`. Without it the axes carry no numbers.
        axes: names of the horizontal and the vertical latent dimension.
        title: what the figure shows.

    Raises:
        BadValue: images have another shape, or an edge of the extent is not below its opposite.
    """
    text(title=title)
    axes_ = words("axes", axes, 2)
    images = as_images("images", images, "rows cols C H W")
    rows, cols, _, height, width = images.shape
    left, right, bottom, top = (0, cols, 0, rows) if extent is None else as_array("extent", extent, "4").tolist()
    if not (right - left > 1e-9 * max(1, abs(left)) and top - bottom > 1e-9 * max(1, abs(bottom))):
        raise BadValue(f"extent must be (left < right, bottom < top), got {extent}")
    shape = rows * height / (cols * width)
    # At most 6.4 inches either way, and room for the labels.
    wide, tall = 6.4 * min(1, 1 / shape), 6.4 * min(1, shape)
    figure = Figure(figsize=(room(max(wide, 3.8) + 0.6, title), tall + 0.8), layout="constrained")
    ax = figure.add_subplot()
    # The aspect undoes the extent's own proportions, so that pixels stay square.
    aspect = shape * (right - left) / (top - bottom)
    _show(ax, images[::-1], extent=(left, right, bottom, top), aspect=aspect)
    ax.set(xlabel=axes_[0], ylabel=axes_[1], title=title)
    if extent is None:
        ax.set(xticks=[], yticks=[])
    return figure


def sample_grid(images: ArrayLike, *, title: str = "Images decoded from samples of the prior") -> Figure:
    """Images in rows, about as many rows as columns, read as a page is; the last row may end early.

    Args:
        images: [n, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        title: what the figure shows.

    Raises:
        BadValue: images have another shape.
    """
    text(title=title)
    images = as_images("images", images, "n C H W")
    cols = int(np.ceil(np.sqrt(len(images))))
    cells = _rows(images, cols)
    rows, _, _, height, width = cells.shape
    cell = min(0.9, 6.4 / cols)  # inches
    wide, tall = cell * cols, cell * rows * height / width
    figure = Figure(figsize=(room(wide + 0.2, title), tall + 0.5), layout="constrained")
    figure.suptitle(title)
    _show_cells(figure.add_subplot(), cells)
    return figure


def reconstructions(
    originals: ArrayLike,
    reconstructed: ArrayLike,
    *,
    title: str = "Originals and their reconstructions",
) -> Figure:
    """Images above what the model makes of them, ten to a row.

    Args:
        originals: [n, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        reconstructed: the decoder's means for the same images, of the same shape.
        title: what the figure shows.

    Raises:
        BadValue: either has another shape, or the two shapes differ.
    """
    text(title=title)
    originals = as_images("originals", originals, "n C H W")
    reconstructed = as_images("reconstructed", reconstructed, "n C H W")
    if originals.shape != reconstructed.shape:
        shapes = f"{list(originals.shape)}, got {list(reconstructed.shape)}"
        raise BadValue(f"reconstructed must have the shape of originals, {shapes}")
    cols = min(len(originals), 10)
    pairs = np.stack([_rows(originals, cols), _rows(reconstructed, cols)], axis=1)
    blocks, _, _, _, height, width = pairs.shape

    cell = 0.72  # inches
    tall = blocks * (2 * cell * height / width + 0.2) + 0.5
    figure = Figure(figsize=(room(cell * cols + 1.2, title), tall), layout="constrained")
    figure.suptitle(title)
    for ax, pair in zip(figure.subplots(blocks, squeeze=False)[:, 0], pairs, strict=True):
        _show_cells(ax, pair)
        ax.set_yticks([height / 2 - 0.5, height * 1.5 - 0.5], ["original", "reconstruction"])
    return figure


def interpolation(
    images: ArrayLike,
    *,
    ends: tuple[ArrayLike, ArrayLike] | None = None,
    title: str = "Images decoded on the way from one item to another",
) -> Figure:
    """A strip of images from one item to another; the i-th of n belongs to t = i / (n - 1).

    Args:
        images: [n, C, H, W] in [0, 1], n >= 2, with C = 1 (grey) or 3 (RGB); values outside are clipped.
        ends: the two items themselves [C, H, W], to be shown apart at either end.
        title: what the figure shows.

    Raises:
        BadValue: images have another shape, or the ends have another shape than the images.
    """
    text(title=title)
    images = as_images("images", images, "n C H W")
    n, _, height, width = images.shape
    if n < 2:
        raise BadValue("images must be at least 2, the first item's and the second's, got 1")
    originals = [] if ends is None else [as_images("ends", end, "C H W") for end in _two("ends", ends)]
    for original in originals:
        if original.shape != images.shape[1:]:
            raise BadValue(f"ends must be {list(images.shape[1:])} as the images are, got {list(original.shape)}")

    cells = n + 2 * bool(originals)
    cell = np.clip(12 / cells, 0.4, 0.9)  # inches
    wide, tall = cell * cells + 0.6, cell * height / width + 1.0
    figure = Figure(figsize=(room(wide, title), tall), layout="constrained")
    figure.suptitle(title)
    if originals:
        first, strip, second = figure.subplots(1, 3, width_ratios=[1, n, 1])
        for ax, original in (first, originals[0]), (second, originals[1]):
            _show_cells(ax, original[None, None])
        # Flush with the outer edges: a name may be wider than a small image.
        first.set_xlabel("first\noriginal", loc="left")
        second.set_xlabel("second\noriginal", loc="right")
    else:
        strip = figure.add_subplot()
    _show_cells(strip, images[None])
    ticks = np.linspace(0, 1, 5 if n > 3 else n)
    # Pixel centres are whole numbers, and t = 0 and 1 are in the middle of the first and of the last image.
    strip.set_xticks((ticks * (n - 1) + 0.5) * width - 0.5, [f"{t:g}" for t in ticks])
    strip.set_xlabel("t, from the first item (0) to the second (1)")
    return figure


def _two(name: str, value: Any) -> list[Any]:
    """The two items of something that has two."""
    try:
        items = list(value)
    except TypeError:  # as of an array without axes, too
        items = []
    if len(items) != 2:
        raise BadValue(f"{name} must be two items, got {checks.describe(value)}")
    return items


def _rows(images: Floats, cols: int) -> Floats:
    """Images [n, C, H, W] as rows [rows, cols, C, H, W], the last one filled up with white."""
    blank = np.ones((-len(images) % cols, *images.shape[1:]))
    return rearrange(np.concatenate([images, blank]), "(rows cols) c h w -> rows cols c h w", cols=cols)


def _show(ax: Axes, cells: Floats, **options: Any) -> None:
    """Draw images [rows, cols, C, H, W] as one picture, first row on top; black is 0 and white is 1."""
    picture = rearrange(cells, "rows cols c h w -> (rows h) (cols w) c")
    grey = picture.shape[-1] == 1
    ax.imshow(picture[..., 0] if grey else picture, cmap="gray", vmin=0, vmax=1, **options)


def _show_cells(ax: Axes, cells: Floats) -> None:
    """Draw images [rows, cols, C, H, W] with white lines in between, on axes without ticks or frame."""
    rows, cols, _, height, width = cells.shape
    _show(ax, cells)
    ax.vlines(np.arange(1, cols) * width - 0.5, -0.5, rows * height - 0.5, color="white", linewidth=1)
    ax.hlines(np.arange(1, rows) * height - 0.5, -0.5, cols * width - 0.5, color="white", linewidth=1)
    ax.set(xticks=[], yticks=[])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
