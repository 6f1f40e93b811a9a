"""What an evaluation found: the ladder of bounds, and what each latent is used for."""

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from funcvae.errors import BadValue
from funcvae.figures._arrays import as_array, flags, text
from funcvae.figures._style import DARK, LIGHT, note

__all__ = ["bound_ladder", "latent_use"]


def bound_ladder(
    samples: ArrayLike, bound: ArrayLike, se: ArrayLike, *, title: str = "The bound on log p(x) against K"
) -> Figure:
    """The importance-weighted bound L_K against K, with bars of two standard errors.

    Args:
        samples: K of each rung [n], ascending.
        bound: L_K [n], nats per example.
        se: standard errors of these [n]; where one is not finite there is no bar.
        title: what the figure shows.

    Raises:
        BadValue: the arrays are not [n] of one length, a number of samples is below one, or an error is negative.
    """
    text(title=title)
    k, value = as_array("samples", samples, "n"), as_array("bound", bound, "n")
    error = as_array("se", se, "n", finite=False)
    if not k.shape == value.shape == error.shape:
        raise BadValue(f"samples, bound and se must have one length, got {len(k)}, {len(value)} and {len(error)}")
    if k.min() < 1 or (error < 0).any():
        raise BadValue("samples must be at least 1, and se not negative")
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    ax = figure.add_subplot()
    bars = 2 * np.where(np.isfinite(error), error, 0)
    ax.errorbar(k, value, yerr=bars, fmt="o-", color=DARK, capsize=3, markersize=6)
    span = np.ptp(value)
    decimals = max(2, 1 - math.floor(math.log10(span))) if span > 0 else 2  # enough to tell the rungs apart
    for x, y in zip(k, value, strict=True):
        ax.annotate(
            f"{y:.{decimals}f}".replace("-", "−"), (x, y), xytext=(6, -12), textcoords="offset points", size="small"
        )
    ax.set_xscale("log")
    ax.set_xticks(k, [f"{int(n):,}" for n in k], minor=False)
    ax.minorticks_off()
    ax.margins(x=0.12, y=0.12)
    ax.set(xlabel="samples K", ylabel="L_K [nats per example]", title=title)
    note(ax, "bars: two standard errors of the Monte-Carlo noise")
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def latent_use(kl: ArrayLike, active: ArrayLike, *, title: str = "Nats that each latent dimension carries") -> Figure:
    """KL(q(z_u|x) ‖ p(z_u)) of every latent dimension, the largest first; active units are dark, the others pale.

    Args:
        kl: its mean over the data [Z], in nats.
        active: whether the posterior's mean moves with the data [Z].
        title: what the figure shows.

    Raises:
        BadValue: the arrays are not [Z] of one length.
    """
    text(title=title)
    height, dark = as_array("kl", kl, "Z"), flags("active", active)
    if dark.shape != height.shape:
        raise BadValue(f"active must have one value for each of the {len(height)} latents, got {list(dark.shape)}")
    order = np.argsort(-height, kind="stable")
    figure = Figure(figsize=(max(6.4, min(12.0, 0.16 * len(height))), 3.8), layout="constrained")
    ax = figure.add_subplot()
    place = np.arange(1, len(height) + 1)
    kinds = (True, DARK, "active, its mean moves with x"), (False, LIGHT, "not active")
    for shown, colour, name in kinds:
        here = dark[order] == shown
        if here.any():
            ax.bar(place[here], height[order][here], color=colour, label=f"{name}: {int(here.sum())}")
    ax.set(xlabel="latent dimension, by rank of its KL", ylabel="KL(q(z|x) ‖ p(z)) [nats]")
    ax.set_title(title, pad=26)
    step = max(1, math.ceil(len(height) / 10))
    ax.set_xticks([1, *range(step, len(height) + 1, step)] if step > 1 else place)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)  # where it hides no bar
    ax.spines[["top", "right"]].set_visible(False)
    return figure
