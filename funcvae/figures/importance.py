"""The importance weights of single items."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from funcvae._support import checks
from funcvae.errors import BadValue
from funcvae.figures._arrays import as_array, words
from funcvae.figures._log_axes import ticks
from funcvae.figures._style import ACCENT, LIGHT, finish, titled

__all__ = ["log_weights"]

_BINS = 60


@checks.arguments
def log_weights(
    log_w: ArrayLike,
    ess: ArrayLike,
    k_hat: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    title: str = "Importance weights",
) -> Figure:
    """Histograms of log w_k - log mean_k w_k, in nats, with a panel for each item.

    Filled bars show the share of the samples in each bin. The line shows the share of the bin in the sum of weights, so
    in the estimate of p(x): a few samples dominate if the line is highest where the bars are lowest. Both are on a log
    axis that begins at one sample. Weights of 0 and the lowest 0.5% are left out, and counted above the panel.

    Args:
        log_w: log-weights of K samples of each of n items [K, n]; -inf for a weight of 0.
        ess: effective sample size of each item [n].
        k_hat: Pareto k̂ of the tail of each item's weights [n], which may be infinite.
        names: names of the items [n]; their numbers unless given.

    Raises:
        BadValue: arrays have the wrong shapes, a log-weight is NaN or +inf, or all weights of an item are 0.
    """
    weights = as_array("log_w", log_w, "K n", finite=False)
    samples, n = weights.shape
    effective, shape = as_array("ess", ess, f"{n}"), as_array("k_hat", k_hat, f"{n}", finite=False)
    names = [f"item {i}" for i in range(n)] if names is None else words("names", names, n)
    if np.isnan(weights).any() or (weights.max(0) == math.inf).any() or (weights.max(0) == -math.inf).any():
        raise BadValue("log_w holds NaN or +inf, or an item has weights of 0 only: log-weights must be finite or -inf")
    most = weights.max(0)
    weights = weights - most - np.log(np.exp(weights - most).mean(0))
    low = min(np.quantile(column[column > -math.inf], 0.005) for column in weights.T)
    bins = np.linspace(min(low, -0.5), max(weights.max(), 0.5), _BINS + 1)
    floor = 0.1 / samples  # below the axis
    figure = titled(max(6.4, 3.8 * n), 4.2, title)
    axes = figure.subplots(1, n, sharex=True, sharey=True, squeeze=False)[0]
    for ax, column, name, size, k in zip(axes, weights.T, names, effective, shape, strict=True):
        of_samples, of_sum = (np.histogram(column, bins, weights=w)[0] for w in (None, np.exp(column)))
        ax.set(yscale="log", ylim=(0.7 / samples, 1.4))
        line: Any = {"color": ACCENT, "linewidth": 1.6, "label": "share of the sum of weights"}
        ax.stairs(of_samples / samples, bins, baseline=floor, fill=True, color=LIGHT, label="share of the samples")
        ax.stairs(of_sum / samples, bins, baseline=floor, **line)
        ax.axvline(0, color="0.5", linestyle="--", linewidth=1)
        left_out = 1 - of_samples.sum() / samples
        text = f"{name}\nESS {size:,.1f} of {samples:,}, k̂ = {k:.2f}".replace("inf", "∞")
        ax.set_title(text + f"\n{left_out:.1%} of the samples are farther left" * bool(left_out > 0), size="medium")
        ax.set_xlabel("log w − log mean w [nats]")
        ticks(ax.yaxis)
        finish(ax)
    axes[0].set_ylabel(f"share in each of {_BINS} bins")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize="small")
    return figure
