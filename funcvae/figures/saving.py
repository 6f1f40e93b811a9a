"""Saves figures and animations. Each file appears complete or not at all; missing folders are created."""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from einops import rearrange
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from funcvae._support import checks, files
from funcvae.errors import BadValue
from funcvae.figures._arrays import as_images

__all__ = ["ENDINGS", "save", "save_gif"]

# Files have no date and no version. Compression level 3 gives files as small as the default 6, and is faster.
_FORMATS: dict[str, tuple[Any, dict[str, Any]]] = {
    ".png": (FigureCanvasAgg, {"metadata": {"Software": None}, "pil_kwargs": {"compress_level": 3}}),
    ".pdf": (FigureCanvasPdf, {"metadata": dict.fromkeys(("Creator", "Producer", "CreationDate"))}),
    ".svg": (FigureCanvasSVG, {"metadata": {"Creator": None, "Date": None}}),
}
ENDINGS = tuple(_FORMATS)
"""The endings of the files that `save` can write."""


class Shown(Figure):
    """A figure that a notebook shows when it is the last line of a cell, with every backend of matplotlib."""

    def _repr_png_(self) -> bytes:
        return _rendered(self, ".png", self.dpi)


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
    path = _with_ending(path, ENDINGS)
    return files.write_beside(path, _rendered(figure, path.suffix.lower(), 150), over=over)


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
    path = _with_ending(path, [".gif"])
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


def pixels(figure: Figure, dpi: float) -> NDArray[np.float64]:
    """The picture [3, H, W] in [0, 1]."""
    with _frozen(figure, dpi):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].transpose(2, 0, 1) / 255


def _rendered(figure: Figure, ending: str, dpi: float) -> bytes:
    """The bytes of a file with this ending."""
    canvas, options = _FORMATS[ending]
    # `figure.savefig` would draw twice.
    with _frozen(figure, dpi), BytesIO() as file:
        getattr(canvas(figure), f"print_{ending[1:]}")(file, **options)
        return _with_fixed_ids(file.getvalue()) if ending == ".svg" else file.getvalue()


def _with_fixed_ids(svg: bytes) -> bytes:
    """The file with ids id0, id1, …; matplotlib derives them from random numbers unless a global setting has a salt."""
    ids = {found: b"id%d" % k for k, found in enumerate(dict.fromkeys(re.findall(rb' id="(\w*[0-9a-f]{10})"', svg)))}
    return re.sub(rb'(?<=["#])\w+(?=[")])', lambda found: ids.get(found[0], found[0]), svg)


@contextmanager
def _frozen(figure: Figure, dpi: float) -> Iterator[None]:
    """Fixes the figure's layout, and sets its resolution for a while."""
    # The layout is run once: each run starts from the previous result and moves the axes a little.
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine("none")
        for ax in figure.axes:  # the solver's last digits depend on memory addresses
            ax.set_position(np.round(ax.get_position(original=True).bounds, 9).tolist())
            ax.set_in_layout(True)
    canvas, before = figure.canvas, figure.dpi
    figure.dpi = dpi
    try:
        yield
    finally:
        figure.dpi = before
        figure.set_canvas(canvas)


def _with_ending(path: str | os.PathLike[str], endings: Collection[str]) -> Path:
    path = checks.path("path", path)
    if path.suffix.lower() not in endings:
        raise BadValue(f"path is {str(path)!r}: it must end in {' or '.join(endings)}")
    return path
