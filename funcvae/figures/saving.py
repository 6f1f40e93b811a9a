"""Figures and films as files: each appears whole or not at all, in a folder that is made if need be."""

import os
from io import BytesIO
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from funcvae._support import checks, files
from funcvae.errors import BadType, BadValue
from funcvae.figures._arrays import as_images

__all__ = ["save", "save_gif"]


def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Write a figure as a PNG file with 150 dots per inch, and return its path.

    The file holds no date or version. From then on the figure keeps its layout, so that the same figure gives
    the same bytes.

    Raises:
        BadValue: the path does not end in .png.
    """
    if not isinstance(figure, Figure):
        raise BadType(f"figure must be a Figure, got {checks.describe(figure)}")
    path = _ending(path, ".png")
    # An automatic layout starts from the one before, and so moves a little with every drawing: run it once.
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
        for ax in figure.axes:  # the solver's last digits depend on where in memory its variables lie
            ax.set_position(np.round(ax.get_position(original=True).bounds, 9).tolist())
            ax.set_in_layout(True)
    # `figure.savefig` would draw twice. Compressed at level 3, files are as small as at the usual 6, and sooner done.
    png, canvas, dpi = BytesIO(), figure.canvas, figure.dpi
    agg = FigureCanvasAgg(figure)
    try:
        figure.dpi = 150
        agg.print_png(png, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    finally:
        figure.dpi = dpi
        figure.set_canvas(canvas)
    return files.write(path, png.getvalue())


def save_gif(images: ArrayLike, path: str | os.PathLike[str], *, size: int = 256, seconds: float = 4.0) -> Path:
    """Write a film of images as a GIF file, and return its path. It runs forward, then backward, for ever.

    Each image is shown for seconds / n, rounded to the format's hundredths, and for at least two of them, since
    viewers slow down what is faster. The first and the last one are shown twice as long, where the film turns.

    Args:
        images: [n, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        path: the file, which must end in .gif.
        size: pixels of the film's longer side, to which images are enlarged by bicubic interpolation.
        seconds: how long the film takes one way.

    Raises:
        BadValue: images have another shape, the path does not end in .gif, size is under 1, or seconds are not
            between 0 and 300.
    """
    images = as_images("images", images, "n C H W")
    path = _ending(path, ".gif")
    if not 1 <= (size := checks.integer("size", size)) <= _MOST_PIXELS:
        raise BadValue(f"size must be at least 1 pixel, and at most {_MOST_PIXELS:,}, got {checks.describe(size)}")
    if not 0 < checks.number("seconds", seconds) <= 300:
        raise BadValue(f"seconds must be above 0 and at most 300, got {seconds}")
    n, channels, height, width = images.shape
    longer = max(height, width)
    shape = (max(1, round(size * width / longer)), max(1, round(size * height / longer)))
    dots = np.rint(255 * images).astype(np.uint8)
    frames = [Image.fromarray(d[0] if channels == 1 else d.transpose(1, 2, 0)) for d in dots]
    frames = [frame.resize(shape, Image.Resampling.BICUBIC) for frame in frames]
    if channels == 3:
        frames = [frame.quantize() for frame in frames]  # as the format must, but not again on the way back
    gif, hundredths = BytesIO(), max(2, round(100 * seconds / n))
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:] + frames[::-1], duration=10 * hundredths, loop=0)
    return files.write(path, gif.getvalue())


_MOST_PIXELS = 2**14


def _ending(path: str | os.PathLike[str], ending: str) -> Path:
    """The path, if its name ends so."""
    path = checks.path("path", path)
    if path.suffix.lower() != ending:
        raise BadValue(f"path must end in {ending}, got {str(path)!r}")
    return path
