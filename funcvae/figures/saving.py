"""Saves figures and animations. Each file appears complete or not at all; missing folders are created."""

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
from einops import rearrange
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image

from funcvae._support import checks, files
from funcvae.errors import BadValue
from funcvae.figures._arrays import as_images
from funcvae.figures._rendering import pdf, png, svg

__all__ = ["ENDINGS", "save", "save_gif"]
T = TypeVar("T")


@checks.arguments
def save(figure: Figure, path: str | os.PathLike[str], *, over: bool = True) -> Path:
    """Saves a figure as a PNG file at 150 dots per inch, a PDF or an SVG file, and returns its path.

    The file contains no date or version, and the figure's layout is frozen, so the same figure gives the same bytes.

    Args:
        path: the file, which must end in .png, .pdf or .svg.
        over: whether to replace a file with other content. If not, the new file is NAME-2, NAME-3, … beside it.

    Raises:
        BadValue: the path has another ending.
    """
    path, render = _ending(path, _RENDER)
    return files.write_beside(path, render(figure), over=over)


@checks.arguments
def save_gif(
    images: ArrayLike,
    path: str | os.PathLike[str],
    *,
    size: Annotated[int, checks.within(1, 2**14)] = 256,
    seconds: Annotated[float, checks.is_positive, checks.within(0, 300)] = 4.0,
    back: bool = True,
    over: bool = True,
) -> Path:
    """Saves images as an animated GIF that plays in an endless loop, forward and then backward, and returns its path.

    Each image is shown for seconds / n, rounded to hundredths of a second, and for at least two hundredths, because
    viewers slow down faster animations. The first and the last image are shown twice as long. Without `back`, the last
    image is shown for a second more, before the animation starts again.

    Args:
        images: [n, C, H, W] in [0, 1], with C = 1 (grey) or 3 (RGB); values outside are clipped.
        path: the file, which must end in .gif.
        size: the longer side in pixels, at most 16,384; images are scaled to it by bicubic interpolation.
        seconds: the duration of the forward part, at most 300.
        back: whether to play backward too.
        over: whether to replace a file with other content: see `save`.
    """
    images = as_images("images", images, "n C H W")
    path, _ = _ending(path, {".gif": None})
    n, channels, height, width = images.shape
    longer = max(height, width)
    shape = (max(1, round(size * width / longer)), max(1, round(size * height / longer)))
    dots = rearrange(np.rint(255 * images).astype(np.uint8), "n c h w -> n h w c")
    frames = [Image.fromarray(d[..., 0] if channels == 1 else d) for d in dots]
    frames = [frame.resize(shape, Image.Resampling.BICUBIC) for frame in frames]
    if channels == 3:
        frames = [frame.quantize() for frame in frames]  # once, not again for the backward part
    each = 10 * max(2, round(100 * seconds / n))  # milliseconds
    durations, backward = ([each] * 2 * n, frames[::-1]) if back else ([each] * (n - 1) + [each + 1000], [])
    gif = BytesIO()
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:] + backward, duration=durations, loop=0)
    return files.write_beside(path, gif.getvalue(), over=over)


_RENDER = {".png": png, ".pdf": pdf, ".svg": svg}
ENDINGS = tuple(_RENDER)
"""The endings of the files that `save` can write."""


def _ending(path: str | os.PathLike[str], endings: Mapping[str, T]) -> tuple[Path, T]:
    """The path, and what belongs to its ending."""
    path = checks.path("path", path)
    if (ending := path.suffix.lower()) not in endings:
        raise BadValue(f"path is {str(path)!r}: it must end in {' or '.join(endings)}")
    return path, endings[ending]
