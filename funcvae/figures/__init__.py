"""Figures as functions from arrays to a `matplotlib.figure.Figure`, and functions that save them.

Arrays are numpy arrays, CPU tensors or lists of numbers. pyplot is not used: no global setting changes, and no display
is needed. A notebook shows a returned figure; `save` writes it to a file.

`of_model` draws a trained model, `of_results` draws a run, a comparison or a sweep, and `decoding` computes what a
model encodes, decodes and samples.
"""

from funcvae.figures import decoding, of_model, of_results
from funcvae.figures._style import PALETTE
from funcvae.figures.curves import run_curves, training_curves
from funcvae.figures.evaluation import bound_ladder, latent_use
from funcvae.figures.gradient_variance import variance_bars, variance_by_layer, variance_cost
from funcvae.figures.images import image_grid, interpolation, reconstructions, sample_grid, traversal
from funcvae.figures.latent import latent_scatter
from funcvae.figures.points import densities, evolution, evolution_frames
from funcvae.figures.saving import ENDINGS, save, save_gif
from funcvae.figures.scaling_law import scaling
from funcvae.figures.sweep import OverSeeds, over_seeds

__all__ = [
    "ENDINGS", "PALETTE", "OverSeeds", "bound_ladder", "decoding", "densities", "evolution", "evolution_frames",
    "image_grid", "interpolation", "latent_scatter", "latent_use", "of_model", "of_results", "over_seeds",
    "reconstructions", "run_curves", "sample_grid", "save", "save_gif", "scaling", "training_curves", "traversal",
    "variance_bars", "variance_by_layer", "variance_cost",
]  # fmt: skip
