"""Figures of an evaluation: the bounds L_K, and the KL divergence of each latent dimension."""

import math

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import as_array
from funcvae.figures._log_axes import number
from funcvae.figures._style import DARK, LIGHT, finish, note, titled

__all__ = ["bound_ladder", "latent_use"]


@checks.arguments
def bound_ladder(
    samples: ArrayLike, bound: ArrayLike, se: ArrayLike, *, title: str = "The bound on log p(x) against K"
) -> Figure:
    """The importance-weighted bound L_K against K, with bars of ±2 standard errors.

    The value is written at each point with its standard error, because the bars may be too short to see.

    Args:
        samples: numbers of samples K [n], ascending.
        bound: L_K [n], in nats per example.
        se: standard errors of L_K [n]; a bar is left out where one is not finite.
    """
    k = as_array("samples", samples, "n")
    value, error = as_array("bound", bound, f"{len(k)}"), as_array("se", se, f"{len(k)}", finite=False)
    if k.min() < 1 or (error < 0).any():
        raise BadValue(f"samples start at {k.min():g} and se at {error.min():g}: they must be at least 1 and 0")
    figure = titled(6.4, 4.2, title)
    ax = figure.add_subplot()
    bars = 2 * np.where(np.isfinite(error), error, 0)
    ax.errorbar(k, value, yerr=bars, fmt="o-", color=DARK, capsize=6, markersize=4, linewidth=1, elinewidth=1.6)
    span = np.ptp(value)
    decimals = max(2, 1 - math.floor(math.log10(span))) if span > 0 else 2  # enough to tell the values apart
    for x, y, e in zip(k, value, error, strict=True):
        text = number(f"{y:.{decimals}f}") + f"\n±{e:.1g}" * math.isfinite(e)
        ax.annotate(text, (x, y), (7, -7), textcoords="offset points", size="small", va="top")
    ax.set_xscale("log")
    ax.set_xticks(k, [f"{int(n):,}" for n in k], minor=False)
    ax.minorticks_off()
    ax.margins(x=0.14, y=0.16)
    ax.set(xlabel="samples K", ylabel="L_K [nats per example]")
    note(ax, "± standard error of the Monte Carlo estimate; bars: ±2 standard errors")
    finish(ax)
    return figure


@checks.arguments
def latent_use(
    kl: ArrayLike, active: ArrayLike, *, threshold: float = 0.01, title: str = "KL divergence of each latent dimension"
) -> Figure:
    """KL(q(z_u|x) ‖ p(z_u)) of every latent dimension, in descending order; active dimensions are dark, others pale.

    Args:
        kl: the KL divergence's mean over the data [Z], in nats.
        active: whether the variance over the data of the posterior's mean is above the threshold [Z].
        threshold: for the title, which counts the active dimensions.
    """
    height = as_array("kl", kl, "Z")
    dark = as_array("active", active, f"{len(height)}") != 0
    order = np.argsort(-height, kind="stable")
    heading = f"{title}\n{int(dark.sum())} of {len(dark)} active (Var[E z|x] > {threshold:g})"
    figure = titled(max(6.4, min(12.0, 0.16 * len(height))), 3.8, heading)
    ax = figure.add_subplot()
    place = np.arange(1, len(height) + 1)
    for shown, colour, name in ((dark, DARK, "active"), (~dark, LIGHT, "inactive")):
        if (here := shown[order]).any():
            ax.bar(place[here], height[order][here], color=colour, label=name)
    ax.set(xlabel="latent dimension, in descending order of KL", ylabel="KL(q(z|x) ‖ p(z)) [nats]")
    step = max(1, math.ceil(len(height) / 10))
    ax.set_xticks([1, *range(step, len(height) + 1, step)] if step > 1 else place)
    if dark.any() and not dark.all():
        ax.legend(loc="upper right", frameon=False)  # bars descend, so the corner is free
    ax.spines[["top", "right"]].set_visible(False)
    return figure
