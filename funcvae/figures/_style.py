"""The look that all figures share: colours, markers, notes, legends, sizes and logarithmic axes."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation, Transform

from funcvae.figures._arrays import words
from funcvae.figures.saving import Shown

PALETTE = (
    "#0077BB", "#EE8866", "#228833", "#EE3377", "#66CCEE",
    "#332288", "#CCBB44", "#882255", "#009988", "#222222",
)  # fmt: skip
"""Ten of Paul Tol's colours, chosen so that any two of them stay distinct with red- and green-blindness too."""
MARKERS = "os^Dv<>*Pp"  # one for each colour of PALETTE
DARK, LIGHT, ACCENT = "#004488", "#A6CBE6", "#CC3311"

Look = dict[str, Any]
UNRELIABLE = "hollow: unreliable interval"


def titled(width: float, height: float, title: str) -> Figure:
    """An empty figure of a size in inches, wider if its title needs more room."""
    room = 0.1 * max(map(len, title.split("\n"))) + 0.3
    figure = Shown(figsize=(max(width, room), height), layout="constrained")
    figure.suptitle(title)
    return figure


def headline(name: str, what: str) -> str:
    """The title "name: what", on two lines if it is long; only "What" without a name."""
    if not name:
        return what[:1].upper() + what[1:]
    return f"{name}: {what}" if len(name + what) < 60 else f"{name}\n{what}"


def counts(axis: Axis) -> None:
    """Labels an axis of steps or epochs with a few whole numbers."""
    axis.set_major_locator(MaxNLocator(7, integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))
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


def looks(names: Sequence[str], noise: Sequence[str] | None) -> list[Look]:
    """The colour of each estimator and the marker of its noise scheme; without schemes all markers are equal.

    "iwae" and "iwae, sobol" have the same colour if the latter's scheme is "sobol".
    """
    schemes = ["iid"] * len(names) if noise is None else words("noise", noise, len(names))
    names = [name.removesuffix(f", {scheme}") for name, scheme in zip(names, schemes, strict=True)]
    colours, markers = (list(dict.fromkeys(each)) for each in (names, schemes))
    return [
        {
            "color": PALETTE[colours.index(name) % len(PALETTE)],
            "marker": MARKERS[markers.index(scheme) % len(MARKERS)],
            "linestyle": "",
        }
        for name, scheme in zip(names, schemes, strict=True)
    ]


def filled(look: Look, trusted: Any = True) -> Look:
    """The look of a value: filled if its interval is reliable, or else hollow."""
    return look | ({"mec": "white"} if trusted else {"mfc": "white", "mec": look["color"], "mew": 1.6})


def dodge(ax: Axes, k: float, n: int) -> Transform:
    """The data's transform moved sideways by a few points, for the k-th of n estimators that are drawn side by side.

    matplotlib does not compute the limits of axes from what is drawn with it.
    """
    step = min(8.0, 40 / n) / 72  # inches
    return ax.transData + ScaledTranslation(step * (k - (n - 1) / 2), 0, ax.figure.dpi_scale_trans)


def noise_handles(noise: Sequence[str] | None) -> list[Line2D]:
    """Handles for a legend of the noise schemes, if there are several."""
    schemes = list(dict.fromkeys(noise or ()))
    look: Look = {"color": "0.4", "linestyle": "", "markersize": 7}
    shown = [Line2D([], [], marker=MARKERS[k % 10], label=f"{s} noise", **look) for k, s in enumerate(schemes)]
    return shown if len(shown) > 1 else []


def members(groups: Sequence[str], names: Sequence[str]) -> str:
    """A line with the names in each group, if there are several groups."""
    pairs = dict.fromkeys(zip(groups, names, strict=True))
    lines = [f"{of}: " + "; ".join(name for group, name in pairs if group == of) for of in dict.fromkeys(groups)]
    return "\n".join(lines) if len(lines) > 1 else ""


def legend_below(figure: Figure, handles: Sequence[Line2D], note: str = "") -> None:
    """A legend below all axes, with a note above its entries."""
    width = figure.get_figwidth()
    longest = max((len(str(handle.get_label())) for handle in handles), default=1)
    columns = max(1, min(len(handles), int(width / (0.7 + 0.08 * longest))))
    title = "\n".join(textwrap.fill(line, int(14.5 * width)) for line in note.split("\n"))
    figure.legend(
        handles=handles, title=title, title_fontproperties={"size": "small", "style": "italic"}, fontsize="small",
        loc="outside lower center", ncols=columns, frameon=False,
    )  # fmt: skip
