"""What all figures look like: their colours, chosen for eyes of every kind, their notes, and room for a title."""

from matplotlib.axes import Axes

# Ten of Paul Tol's colours, chosen so that every two of them stay apart with red- and green-blindness too.
PALETTE = (
    "#0077BB", "#EE8866", "#228833", "#EE3377", "#66CCEE",
    "#332288", "#CCBB44", "#882255", "#009988", "#222222",
)  # fmt: skip
MARKERS = "os^Dv<>*Pp"  # one for each colour of PALETTE
DARK, LIGHT, ACCENT = "#004488", "#A6CBE6", "#CC3311"


def note(ax: Axes, text: str) -> None:
    """Small print in the upper left corner: what the eye cannot see."""
    ax.annotate(
        text,
        xy=(0, 1),
        xycoords="axes fraction",
        xytext=(5, -5),
        textcoords="offset points",
        va="top",
        size="small",
        style="italic",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
    )


def room(wide: float, title: str) -> float:
    """A figure's width in inches, or more if its title needs more."""
    return max(wide, 0.1 * max(map(len, title.split("\n"))) + 0.3)
