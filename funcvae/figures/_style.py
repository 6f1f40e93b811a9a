"""The look that all figures share: colours, notes, grids, and sizes with room for the title."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from funcvae.figures._rendering import Shown

# Ten of Paul Tol's colours, chosen so that any two of them stay distinct with red- and green-blindness too.
PALETTE = (
    "#0077BB", "#EE8866", "#228833", "#EE3377", "#66CCEE",
    "#332288", "#CCBB44", "#882255", "#009988", "#222222",
)  # fmt: skip
MARKERS = "os^Dv<>*Pp"  # one for each colour of PALETTE
DARK, LIGHT, ACCENT = "#004488", "#A6CBE6", "#CC3311"


def titled(width: float, height: float, title: str) -> Figure:
    """An empty figure of a size in inches with a title above all its axes."""
    figure = Shown(figsize=(room(width, title), height), layout="constrained")
    figure.suptitle(title)
    return figure


def room(width: float, title: str) -> float:
    """The width in inches, or more if the title needs more."""
    return max(width, 0.1 * max(map(len, title.split("\n"))) + 0.3)


def headline(name: str, what: str) -> str:
    """The title "name: what", on two lines if it is long; only "What" without a name."""
    if not name:
        return what[:1].upper() + what[1:]
    return f"{name}: {what}" if len(name + what) < 60 else f"{name}\n{what}"


def counts(axis: Axis, most: int = 7) -> None:
    """Labels an axis of steps or epochs with at most this many whole numbers."""
    axis.set_major_locator(MaxNLocator(most, integer=True, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def note(ax: Axes, text: str) -> None:
    """Writes a small note in the upper left corner."""
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    text_style: Any = {"va": "top", "size": "small", "style": "italic", "bbox": box}
    ax.annotate(text, (0, 1), (5, -5), "axes fraction", "offset points", **text_style)


def finish(ax: Axes) -> None:
    """Draws a pale grid behind the data and removes the frame's upper and right sides."""
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
