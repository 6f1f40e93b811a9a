"""Figures of results: a training run, comparisons of estimators, a scaling law."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from funcvae import random, variance
from funcvae._support import checks, examples
from funcvae._support.checks import Positive
from funcvae._support.examples import Data
from funcvae.data.dataset import Dataset
from funcvae.errors import BadValue
from funcvae.figures import course, curves, gradient_variance, of_model, points, scaling_law
from funcvae.figures._arrays import as_numbers, labelled
from funcvae.figures._style import headline
from funcvae.figures.course import Course
from funcvae.figures.gradient_variance import Ratios
from funcvae.model import VAE
from funcvae.models import System
from funcvae.modules import Params, State
from funcvae.train import streaming
from funcvae.train.loop import History
from funcvae.train.settings import Row
from funcvae.variance.intervals import Z95

__all__ = [
    "PAIRS", "POINTS", "SAMPLES", "evolution", "evolution_frames", "of_comparison", "of_run", "of_samples",
    "of_scaling", "several_runs", "training", "variance_along_training",
]  # fmt: skip

POINTS = 5000
"""The number of test items to encode for the figures of a run."""
PAIRS = 20
"""The number of images to reconstruct for the figures of a run."""
SAMPLES = 100
"""The number of images to sample for the figures of a run."""


@checks.arguments
def evolution(kept: ArrayLike, dataset: Dataset, *, name: str = "") -> Figure:
    """The data, and samples of the model during training; `kept` has those after each step [steps, n, 2]."""
    return points.evolution(*_evolution(kept, dataset), title=headline(name, "samples of the model during training"))


@checks.arguments
def evolution_frames(kept: ArrayLike, dataset: Dataset, *, name: str = "") -> NDArray[np.float64]:
    """The same as frames [n, 3, H, W], for `save_gif(frames, path, size=400, seconds=6, back=False)`."""
    return points.evolution_frames(*_evolution(kept, dataset), title=headline(name, "samples of the model"))


def _evolution(kept: ArrayLike, dataset: Dataset) -> tuple[ArrayLike, ...]:
    """Steps, samples, data and the true Gaussian, if it is known."""
    kept = as_numbers("kept", kept)
    if kept.ndim != 3:
        raise BadValue(f"kept has shape {list(kept.shape)}: it must be [steps, n, 2]")
    test = dataset.decode(streaming.head(streaming.opened("test", dataset.test), kept.shape[1]))
    return range(1, len(kept) + 1), kept, test, *of_model.true_gaussian(dataset)


@checks.arguments
def of_run(
    model: VAE, params: Params, state: State, system: System, dataset: Dataset, x: Data, key: random.Key, *,
    name: str = "",
) -> dict[str, Figure]:  # fmt: skip
    """All figures that apply to a trained model and its test data x, as the model sees them, by file name.

    The name is that of the system unless given.
    """
    trained, pixels, name = (model, params, state), system.recipe.pixels, name or system.name
    pairs_key, samples_key = random.split(key)
    n = examples.count(x)
    labels = None if dataset.test_labels is None else dataset.test_labels[:n]
    figures = {"latent_scatter": of_model.latent_scatter(*trained, x, labels, classes=dataset.classes, name=name)}
    shape, train = model.modelled(x).shape[1:], streaming.opened("train", dataset.train)
    number = SAMPLES if len(shape) == 3 else min(streaming.count(train), of_model.MOST_POINTS)
    given: dict[str, Any] = {}
    rows: list[str] = []
    if model.condition:
        items, rows = of_model.rows_by_class(dataset, min(number, n), n)
        number, given = len(items), model.given(examples.take(x, items.to(examples.device(x))))
    if len(shape) == 3:
        pairs = examples.head(x, PAIRS)
        drawn: dict[str, Any] = {"pixels": pixels, "name": name}
        figures["reconstructions"] = of_model.reconstructions(*trained, pairs, pairs_key, **drawn)
        figures["samples"] = of_model.image_samples(
            *trained, samples_key, number, **given, rows=rows, pixels=pixels, name=name
        )
        if model.latent == 2 and not model.condition:
            figures["latent_grid"] = of_model.latent_grid(*trained, x, **drawn)
        elif model.latent > 2 and of_model.is_normal(*trained, x):
            figures["latent_traversal"] = of_model.latent_traversal(*trained, x, **drawn)
        if labels is not None and not model.condition and len(labels.unique()) > 1:
            last, first = (of_model.first_of_class(labels, int(label)) for label in labels.unique()[:2])
            names = of_model.item_name(dataset, first), of_model.item_name(dataset, last)
            both = examples.take(x, torch.tensor([first, last], device=examples.device(x)))
            start, end = examples.each(lambda part: part[0], both), examples.each(lambda part: part[1], both)
            figures["interpolation"] = of_model.interpolation(*trained, start, end, 12, names=names, **drawn)
    elif shape == (2,):
        figures["densities"] = of_model.point_samples(*trained, samples_key, number, dataset, **given, name=name)
    return figures


@checks.arguments
def training(
    history: History, *, steps_per_epoch: Positive | None = None, name: str = "bound", title: str = "Training"
) -> Figure:
    """The bound at every training step and on the test set after epochs, with reconstruction, KL and gradient.

    A term that is 0 or not finite everywhere, such as the KL of an autoencoder, has no panel. If neither the history
    nor `steps_per_epoch` gives the length of an epoch, the steps are divided by the number of test bounds.
    """
    size = _steps_per_epoch(history) if steps_per_epoch is None else steps_per_epoch
    terms = {"reconstruction": history.reconstruction, "KL": history.kl}
    terms = {label: values for label, values in terms.items() if np.any(np.isfinite(values) & (values != 0))}
    return curves.training_curves(
        range(1, len(history.bound) + 1), history.bound, *_tested(history, size or 1), terms=terms,
        grad_norm=history.grad_norm, steps_per_epoch=size, name=name, title=title,
    )  # fmt: skip


@checks.arguments
def several_runs(
    runs: Sequence[tuple[str, History]], *, name: str = "bound", title: str = "Training of several runs"
) -> Figure:
    """The bound of several runs, by step and by epoch: on the test set after epochs, if all runs have one.

    Otherwise it is the mean over each fiftieth of the training steps.

    Args:
        runs: a label and the history of each run.
        name: the bound, such as "ELBO"; two bounds can be compared only if they have one target.
    """
    runs = [(label, history) for label, history in labelled("runs", runs, ("label", "history"))]
    for label, history in runs:
        checks.instance(f"the history of {label!r}", history, History)
    sizes = [size for _, history in runs if (size := _steps_per_epoch(history))]
    epochs = sizes if len(sizes) == len(runs) else None
    if not all(np.isfinite(history.test_bound).any() for _, history in runs):
        trained = [(label, *_coarse(history.bound)) for label, history in runs]
        return curves.run_curves(trained, steps_per_epoch=epochs, name=f"training {name}", title=title)
    tested = [(label, *_tested(history, size)) for (label, history), size in zip(runs, sizes, strict=True)]
    return curves.run_curves(tested, steps_per_epoch=epochs, name=f"test {name}", title=title)


def _tested(history: History, steps_per_epoch: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """The steps at which epochs with a test bound ended, and their test bounds."""
    tested = ~np.isnan(history.test_bound)
    return (np.flatnonzero(tested) + 1.0) * steps_per_epoch, history.test_bound[tested]


def _steps_per_epoch(history: History) -> float | None:
    """The number of steps in an epoch; None if the history has neither it nor test bounds."""
    if history.steps_per_epoch:
        return history.steps_per_epoch
    return len(history.bound) / len(history.test_bound) if len(history.test_bound) else None


def _coarse(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The last step of each fiftieth of the steps, and the mean of the values over it."""
    ends = np.unique(np.linspace(0, len(values), 51).round().astype(int))
    return ends[1:], np.add.reduceat(values, ends[:-1]) / np.diff(ends)


@checks.arguments
def of_comparison(found: variance.Comparison, *, name: str = "") -> dict[str, Figure]:
    """Figures of a comparison of estimators, by file name: variance by network, by layer, and against cost.

    Ratios are those of the table, to the reference. There is no figure of the cost if nothing was timed.
    """
    rows = list(found.rows.values())
    of = f"{name}: " if name else ""
    where = f"(K = {found.samples}, batch of {found.batch}, {found.replicates:,} replicates)"
    labels, noise = _labels(found)
    targets = [row.target for row in rows]
    networks = {}
    for network in found.networks:
        cells = [
            (*_ends(row.ratio[network]), row.groups[network].variance.value, row.ratio[network].trusted)
            for row in rows
        ]  # fmt: skip
        networks[network] = Ratios(*np.array(cells, dtype=float).T)
    title = f"{of}variance of each estimator's gradient, relative to {found.reference}\n{where}"
    made = {"variance_ratios": gradient_variance.variance_ratios(labels, targets, networks, noise=noise, title=title)}
    layers = [group for group in rows[0].groups if "/" in group and not set("*?[") & set(group)]
    table = [[row.ratio[layer].value for layer in layers] for row in rows]
    title = f"{of}variance of the gradient by layer, relative to {found.reference}\n{where}"
    made["variance_layers"] = gradient_variance.variance_by_layer(list(found.rows), targets, layers, table, title=title)
    seconds, slower = ([getattr(row, field) for row in rows] for field in ("seconds", "median_seconds"))
    if np.isfinite(seconds).all() and "encoder" in found.networks:
        title = f"{of}variance of the encoder's gradient against its cost\n{where}"
        encoder = [row.groups["encoder"].variance for row in rows]
        made["variance_cost"] = gradient_variance.variance_cost(
            labels, seconds, *np.array([_ends(each) for each in encoder]).T, slower=slower, noise=noise,
            trusted=[each.trusted for each in encoder], groups=targets, title=title,
        )  # fmt: skip
    return made


def _labels(found: variance.Comparison) -> tuple[list[str], list[str]]:
    """The names of arms without their noise schemes, and the schemes. "(biased)": a network's bias is detected."""
    labels = []
    for row in found.rows.values():
        biased = any(row.bias[network].detected for network in found.networks if network in row.bias)
        labels.append(row.name.removesuffix(f", {row.noise}") + " (biased)" * biased)
    return labels, [row.noise for row in found.rows.values()]


def _ends(of: variance.Measured) -> tuple[float, float, float]:
    return of.value, of.low, of.high


@checks.arguments
def of_samples(found: Sequence[variance.Comparison], *, name: str = "") -> Figure:
    """The variance and signal-to-noise ratio of comparisons at several K, all different; the arms may differ."""
    if not checks.sequence("found", found):
        raise BadValue("found is empty: give comparisons at several numbers of samples")
    for each in found:
        checks.instance("an entry of found", each, variance.Comparison)
    found = sorted(found, key=lambda each: each.samples)
    arms = {row.name: row for each in found for row in each.rows.values()}

    def results(arm: str, network: str) -> Course:
        groups = [each.rows[arm].groups[network] if arm in each.rows else None for each in found]
        cells = [
            (*_ends(of.variance), *_ends(of.snr), of.variance.trusted) if of else [math.nan] * 6 + [1] for of in groups
        ]
        values = np.array(cells, dtype=float).T
        return Course(values[:3], values[3:6], values[6])

    networks = {network: {arm: results(arm, network) for arm in arms} for network in found[0].networks}
    where = f"(batch of {found[0].batch}, {found[0].replicates:,} replicates)"
    return course.variance_against_samples(
        [each.samples for each in found], networks, noise=[row.noise for row in arms.values()],
        groups=[row.target for row in arms.values()],
        title=f"{name}: " * bool(name) + f"variance and signal-to-noise ratio against K\n{where}",
    )  # fmt: skip


@checks.arguments
def variance_along_training(rows: Sequence[Row], *, name: str = "") -> Figure | None:
    """The variance and signal-to-noise ratio in the rows of a run's metrics, or None if no row has them.

    Bands are ±1.96 standard errors of the variance. Rows have no error of the ratio.
    """
    rows = [checks.mapping("a row", row) for row in checks.sequence("rows", rows)]
    measured = {row["step"]: row for row in rows if any(key.startswith("variance/") for key in row)}
    keys = dict.fromkeys(key for row in measured.values() for key in row if key.startswith("variance/"))
    if not keys:
        return None
    at = sorted(measured)
    networks: dict[str, dict[str, Course]] = {}
    for key in keys:
        arm, _, network = key.removeprefix("variance/").rpartition("/")
        value, se, snr = (
            np.array([measured[step].get(f"{what}/{arm}/{network}", math.nan) for step in at])
            for what in ("variance", "variance_se", "snr")
        )
        none = np.full_like(snr, math.nan)
        spans = np.stack([value, value - Z95 * se, value + Z95 * se]), np.stack([snr, none, none])
        networks.setdefault(network, {})[arm] = Course(*spans, np.ones_like(snr))
    title = f"{name}: " * bool(name) + "variance and signal-to-noise ratio during training"
    return course.variance_along_training(at, networks, title=title)


@checks.arguments
def of_scaling(found: variance.Sweep, *, ylabel: str, title: str) -> Figure:
    """The figure of a sweep, with its fitted slopes."""
    series = {name: ([m.value for m in measured], [m.se for m in measured]) for name, measured in found.series.items()}
    slopes = {name: (fit.slope, fit.se) for name, fit in found.slopes.items()}
    over = {"K": "samples K", "batch": "batch size", "step": "training step"}.get(found.over, found.over)
    return scaling_law.scaling(found.values, series, slopes=slopes, xlabel=over, ylabel=ylabel, title=title)
