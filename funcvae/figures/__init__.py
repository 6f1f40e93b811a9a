"""Figures as functions from arrays to a `matplotlib.figure.Figure`, and functions that save them.

Arrays are numpy arrays, CPU tensors or lists of numbers. pyplot is not used: no global setting changes, and no display
is needed. A notebook shows a returned figure; `save` writes it to a file with one of the `ENDINGS`. `PALETTE` has the
colours, which stay distinct with red- and green-blindness.

`of_model` draws a trained model, `of_results` draws a run, a comparison or a sweep, and `decoding` computes what a
model encodes, decodes and samples.
"""

from funcvae.figures import decoding, of_model, of_results
from funcvae.figures._style import PALETTE
from funcvae.figures.course import Course, variance_against_samples, variance_along_training
from funcvae.figures.curves import run_curves, training_curves
from funcvae.figures.evaluation import bound_ladder, latent_use
from funcvae.figures.gradient_variance import Ratios, variance_by_layer, variance_cost, variance_ratios
from funcvae.figures.images import image_grid, interpolation, reconstructions, sample_grid, traversal
from funcvae.figures.importance import log_weights
from funcvae.figures.latent import latent_scatter
from funcvae.figures.points import densities, evolution, evolution_frames
from funcvae.figures.saving import ENDINGS, save, save_gif
from funcvae.figures.scaling_law import scaling
from funcvae.figures.sweep import OverSeeds, over_seeds

__all__ = [
    "ENDINGS", "PALETTE", "Course", "OverSeeds", "Ratios", "bound_ladder", "decoding", "densities", "evolution",
    "evolution_frames", "image_grid", "interpolation", "latent_scatter", "latent_use", "log_weights", "of_model",
    "of_results", "over_seeds", "reconstructions", "run_curves", "sample_grid", "save", "save_gif", "scaling",
    "training_curves", "traversal", "variance_against_samples", "variance_along_training", "variance_by_layer",
    "variance_cost", "variance_ratios",
]  # fmt: skip
