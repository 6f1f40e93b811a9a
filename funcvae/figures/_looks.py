"""The look of estimators: a colour for each estimator, a marker for each noise scheme, hollow if unreliable."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation, Transform

from funcvae.figures._arrays import words
from funcvae.figures._style import MARKERS, PALETTE

Look = dict[str, Any]
UNRELIABLE = "hollow: unreliable interval"


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
    shown = [Line2D([], [], markersize=7, label=f"{s} noise", **looks(["any"], None)[0]) for s in schemes]
    for handle, marker in zip(shown, MARKERS * len(shown), strict=False):
        handle.set(marker=marker, color="0.4")
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
