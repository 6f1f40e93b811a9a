"""Figures of results: a training run, a comparison of estimators, a scaling law."""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from funcvae import random, variance
from funcvae._support import checks
from funcvae.data.dataset import Dataset
from funcvae.errors import BadType
from funcvae.figures import curves, gradient_variance, points, scaling_law
from funcvae.figures.decoding import check_inputs
from funcvae.figures.of_model import (
    check_dataset,
    image_samples,
    latent_grid,
    latent_scatter,
    point_samples,
    reconstructions,
)
from funcvae.model import VAE
from funcvae.models.recipe import Recipe
from funcvae.modules import Params, State
from funcvae.train.loop import History

__all__ = ["PAIRS", "POINTS", "SAMPLES", "evolution", "of_comparison", "of_run", "of_scaling", "training"]

POINTS, PAIRS, SAMPLES = 5000, 20, 100
"""The numbers of test items encoded, of images reconstructed and of images sampled for the figures of a run."""


def evolution(kept: NDArray[np.float32], dataset: Dataset, *, name: str) -> Figure:
    """How samples of the model, kept after every step [steps, n, 2], come to look like the data."""
    check_dataset(dataset)
    checks.text("name", name)
    if getattr(kept, "ndim", 0) != 3:
        raise BadType(f"kept is {checks.describe(kept)}: it must be an array [steps, n, 2]")
    true = dataset.test[: kept.shape[1]]
    return points.evolution(range(1, len(kept) + 1), kept, true, title=f"{name}: samples of the model in training")


def of_run(
    model: VAE, params: Params, state: State, recipe: Recipe, dataset: Dataset, x: Tensor, key: random.Key
) -> dict[str, Figure]:
    """Every figure that suits a trained model and its test data as the model sees them, x, by file name."""
    if not isinstance(recipe, Recipe):
        raise BadType(f"recipe is {checks.describe(recipe)}: it must be a Recipe")
    check_dataset(dataset)
    check_inputs(model, params, state, x=x)
    trained, pixels, name = (model, params, state), recipe.pixels, recipe.name
    pairs_key, samples_key = random.split(key)
    labels = None if dataset.test_labels is None else dataset.test_labels[: len(x)]
    figures = {"latent_scatter": latent_scatter(*trained, x, labels, name=name)}
    if x.ndim == 4:
        figures["reconstructions"] = reconstructions(*trained, x[:PAIRS], pairs_key, pixels=pixels, name=name)
        figures["samples"] = image_samples(*trained, samples_key, SAMPLES, pixels=pixels, name=name)
        if model.latent == 2:
            figures["latent_grid"] = latent_grid(*trained, x, pixels=pixels, name=name)
    else:
        figures["densities"] = point_samples(*trained, samples_key, len(dataset.train), dataset, name=name)
    return figures


def training(history: History, *, name: str, title: str) -> Figure:
    """The bound at every training step and on the test set after every epoch."""
    if not isinstance(history, History) or any(np.ndim(column) != 1 for column in history):
        raise BadType(
            f"history is {checks.describe(history)}: it must be a History of arrays along one axis, as fit returns it"
        )
    steps, epochs = len(history.bound), len(history.test_bound)
    ends = [steps * (epoch + 1) // epochs for epoch in range(epochs)]
    return curves.training_curves(
        range(1, steps + 1),
        history.bound,
        ends,
        history.test_bound,
        grad_norm=history.grad_norm,
        name=name,
        title=title,
    )


def of_comparison(found: variance.Comparison, *, name: str = "") -> dict[str, Figure]:
    """The figures of a comparison of estimators: each network's variances, all layers', and variance against cost."""
    if not isinstance(found, variance.Comparison):
        raise BadType(f"found is {checks.describe(found)}: it must be what variance.compare returns")
    checks.text("name", name)
    rows = list(found.rows.values())
    of = f"{name}: " if name else ""
    where = f"(K = {found.samples}, batch of {found.batch}, {found.replicates:,} replicates)"

    def names(group: str) -> list[str]:
        several = len({row.target for row in rows}) > 1
        ends = [f", for {row.target}" * several for row in rows]
        biased = [", biased" * (group in row.bias and row.bias[group].detected) for row in rows]
        return [row.name + end + bias for row, end, bias in zip(rows, ends, biased, strict=True)]

    def spans(group: str) -> NDArray[np.float64]:
        return np.array([row.groups[group].variance[:4] for row in rows], dtype=float)[:, [0, 2, 3]].T

    made: dict[str, Figure] = {}
    for network in found.networks:
        trusted = [row.groups[network].variance.trusted for row in rows]
        title = f"{of}variance of the {network}'s gradient\n{where}"
        made[f"variance_{network}"] = gradient_variance.variance_bars(
            names(network), *spans(network), trusted=trusted, title=title
        )
    layers = [group for group in rows[0].groups if "/" in group and not set("*?[") & set(group)]
    table = [[row.groups[layer].variance.value for layer in layers] for row in rows]
    title = f"{of}variance of the gradient, layer by layer, over that of {found.reference}\n{where}"
    reference = list(found.rows).index(found.reference)
    made["variance_layers"] = gradient_variance.variance_by_layer(
        list(found.rows), layers, table, reference=reference, title=title
    )
    if np.isfinite([row.seconds for row in rows]).all() and "encoder" in found.networks:
        seconds = [row.seconds for row in rows]
        title = f"{of}variance of the encoder's gradient against its cost\n{where}"
        trusted = [row.groups["encoder"].variance.trusted for row in rows]
        made["variance_cost"] = gradient_variance.variance_cost(
            names("encoder"), seconds, *spans("encoder"), trusted=trusted, title=title
        )
    return made


def of_scaling(found: variance.Sweep, *, ylabel: str, title: str) -> Figure:
    """The figure of a sweep, with the slopes that were fitted."""
    if not isinstance(found, variance.Sweep):
        raise BadType(f"found is {checks.describe(found)}: it must be what variance.sweep returns")
    series = {name: ([m.value for m in measured], [m.se for m in measured]) for name, measured in found.series.items()}
    slopes = {name: (fit.slope, fit.se) for name, fit in found.slopes.items()}
    over = {"K": "samples K", "batch": "size of the batch", "step": "training step"}.get(found.over, found.over)
    return scaling_law.scaling(found.values, series, slopes=slopes, xlabel=over, ylabel=ylabel, title=title)
