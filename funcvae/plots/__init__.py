"""Figures, each a function from arrays to a `matplotlib.figure.Figure`; and files made of them.

Arrays are numpy arrays or CPU tensors. Nothing here touches pyplot, so no figure is registered anywhere, no
setting changes and no display is needed: show a figure in a notebook, or write it with `save`.
"""

from funcvae.plots._style import PALETTE
from funcvae.plots.curves import training_curves
from funcvae.plots.evaluation import bound_ladder, latent_use
from funcvae.plots.images import image_grid, interpolation, reconstructions, sample_grid
from funcvae.plots.latent import latent_scatter
from funcvae.plots.points import densities, evolution
from funcvae.plots.saving import save, save_gif
from funcvae.plots.sweep import OverSeeds, over_seeds
from funcvae.plots.variance import sweep, variance_bars, variance_by_layer, variance_cost

__all__ = [
    "PALETTE",
    "OverSeeds",
    "bound_ladder",
    "densities",
    "evolution",
    "image_grid",
    "interpolation",
    "latent_scatter",
    "latent_use",
    "over_seeds",
    "reconstructions",
    "sample_grid",
    "save",
    "save_gif",
    "sweep",
    "training_curves",
    "variance_bars",
    "variance_by_layer",
    "variance_cost",
]
