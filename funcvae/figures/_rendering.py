"""Renders figures to bytes and to pixels, and shows them in notebooks."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

DPI = 150  # of PNG files, and of the pixels inside the others


class Shown(Figure):
    """A figure that a notebook shows when it is the last line of a cell, with every backend of matplotlib."""

    def _repr_png_(self) -> bytes:
        return png(self, self.dpi)


def png(figure: Figure, dpi: float = DPI) -> bytes:
    """A PNG file without date and version."""
    # `figure.savefig` would draw twice. Compression level 3 gives files as small as the default 6, and is faster.
    with _frozen(figure, dpi), BytesIO() as file:
        FigureCanvasAgg(figure).print_png(file, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
        return file.getvalue()


def pdf(figure: Figure) -> bytes:
    """A PDF file without date and version."""
    with _frozen(figure, DPI), BytesIO() as file:
        about = dict.fromkeys(("Creator", "Producer", "CreationDate"))
        FigureCanvasPdf(figure).print_pdf(file, metadata=about)
        return file.getvalue()


def svg(figure: Figure) -> bytes:
    """An SVG file without date and version, whose text is drawn as paths."""
    with _frozen(figure, DPI), BytesIO() as file:
        FigureCanvasSVG(figure).print_svg(file, metadata={"Creator": None, "Date": None})
        text = file.getvalue().decode()
    # matplotlib derives ids from random numbers, unless a global setting holds a salt. They become 0, 1, 2, … here.
    ids = {found: f"id{k}" for k, found in enumerate(dict.fromkeys(re.findall(r' id="(\w*[0-9a-f]{10})"', text)))}
    return re.sub(r'(?<=["#])\w+(?=[")])', lambda found: ids.get(found[0], found[0]), text).encode()


def pixels(figure: Figure, dpi: float) -> NDArray[np.float64]:
    """The picture [3, H, W] in [0, 1]."""
    with _frozen(figure, dpi):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].transpose(2, 0, 1) / 255


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
