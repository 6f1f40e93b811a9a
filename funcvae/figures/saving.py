"""Saves figures and animations. Each file appears complete or not at all; missing folders are created."""

import os
from io import BytesIO
from pathlib import Path
from typing import Annotated

import numpy as np
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from funcvae._support import checks, files
from funcvae.errors import BadValue
from funcvae.figures._arrays import as_images

__all__ = ["save", "save_gif"]


@checks.arguments
def save(figure: Figure, path: str | os.PathLike[str]) -> Path:
    """Saves a figure as a PNG file at 150 dots per inch and returns its path.

    The file contains no date or version, and the figure's layout is frozen, so the same figure gives the same bytes.

    Raises:
        BadValue: the path does not end in .png.
    """
    path = _ending(path, ".png")
    # The layout is run once: each run starts from the previous result and moves the axes a little.
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
        for ax in figure.axes:  # the solver's last digits depend on memory addresses
            ax.set_position(np.round(ax.get_position(original=True).bounds, 9).tolist())
            ax.set_in_layout(True)
    # `figure.savefig` would draw twice. Compression level 3 gives files as small as the default 6, and is faster.
    png, canvas, dpi = BytesIO(), figure.canvas, figure.dpi
    agg = FigureCanvasAgg(figure)
    try:
        figure.dpi = 150
        agg.print_png(png, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    finally:
        figure.dpi = dpi
        figure.set_canvas(canvas)
    return files.write(path, png.getvalue())


@checks.arguments
def save_gif(
    images: ArrayLike,
    path: str | os.PathLike[str],
    *,
    size: Annotated[int, checks.within(1, 2**14)] = 256,
    seconds: Annotated[float, checks.is_positive, checks.within(0, 300)] = 4.0,
) -> Path:
    """Saves images as an animated GIF that plays forward, then backward, in an endless loop, and returns its path.

    Each image is shown for seconds / n, rounded to hundredths of a second, and for at least two hundredths, because
    viewers slow down faster animations. The first and the last image are shown twice as long.

    Args:
        images: [n, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        path: the file, which must end in .gif.
        size: the longer side in pixels, at most 16,384; images are scaled to it by bicubic interpolation.
        seconds: the duration of the forward part, at most 300.
    """
    images = as_images("images", images, "n C H W")
    path = _ending(path, ".gif")
    n, channels, height, width = images.shape
    longer = max(height, width)
    shape = (max(1, round(size * width / longer)), max(1, round(size * height / longer)))
    dots = rearrange(np.rint(255 * images).astype(np.uint8), "n c h w -> n h w c")
    frames = [Image.fromarray(d[..., 0] if channels == 1 else d) for d in dots]
    frames = [frame.resize(shape, Image.Resampling.BICUBIC) for frame in frames]
    if channels == 3:
        frames = [frame.quantize() for frame in frames]  # once, not again for the backward part
    gif, hundredths = BytesIO(), max(2, round(100 * seconds / n))
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:] + frames[::-1], duration=10 * hundredths, loop=0)
    return files.write(path, gif.getvalue())


def _ending(path: str | os.PathLike[str], ending: str) -> Path:
    path = checks.path("path", path)
    if path.suffix.lower() != ending:
        raise BadValue(f"path is {str(path)!r}: it must end in {ending}")
    return path
