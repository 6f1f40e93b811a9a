"""The pictures of a trained model: what to encode, decode and draw for them, which `funcvae.plots` then shows.

Functions take (model, params, state) and what the model sees of the data, x [n, ...]; those that return a Figure take
`pixels` too, which maps x and what is decoded to pixels in [0, 1], and the model's name for the title.
"""

from collections.abc import Callable

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from funcvae import checks, plots, random, variance
from funcvae.data import GAUSSIAN2D_COV, GAUSSIAN2D_MEAN, Dataset
from funcvae.errors import BadData, BadType, BadValue
from funcvae.models import Recipe
from funcvae.module import Params, State
from funcvae.train import History
from funcvae.vae import VAE, check

Pixels = Callable[[Tensor], Tensor]

POINTS, PAIRS, SAMPLES = 5000, 20, 100  # what a run's figures show
POINTS_A_STEP, TRACKED = 1000, 32  # what is kept and shown as a run goes
_CELLS = 20  # of a latent grid, either way
_CHUNK = 500  # items that go through a network at once


def as_is(x: Tensor) -> Tensor:
    """The `pixels` of a model whose images are in [0, 1]."""
    return x


@torch.no_grad()
def latents(model: VAE, params: Params, state: State, x: Tensor) -> Tensor:
    """The posterior's centre [n, Z] for each datum."""
    _check(model, params, state, x=x)
    return torch.cat([model.encode(params, state, part)[0].loc for part in x.split(_CHUNK)])


@torch.no_grad()
def decoded(model: VAE, params: Params, state: State, z: Tensor) -> Tensor:
    """The mean of p(x|z) for each latent of z [n, Z]."""
    _check(model, params, state, z=z)
    return torch.cat([model.decode(params, state, part)[0].mean for part in z.split(_CHUNK)])


@torch.no_grad()
def reconstructed(model: VAE, params: Params, state: State, x: Tensor, key: random.Key) -> Tensor:
    """What the model makes of x [n, ...]: the mean of p(x|z), with z drawn from q(z|x) as in training.

    A posterior's centre may lie where no draw of it does, and then says little of the model.
    """
    _check(model, params, state, x=x)
    eps = random.normal(key, (len(x), model.latent), x.dtype)
    parts = zip(x.split(_CHUNK), eps.split(_CHUNK), strict=True)
    z = torch.cat([model.encode(params, state, x_n)[0].sample(eps_n) for x_n, eps_n in parts])
    return decoded(model, params, state, z)


@torch.no_grad()
def samples(model: VAE, params: Params, state: State, key: random.Key, n: int, *, drawn: bool = True) -> Tensor:
    """n samples of the model: z from the prior, and x drawn from p(x|z), or its mean unless `drawn`.

    Both kinds have the same latents under one key.

    Raises:
        BadValue: n is below one.
    """
    if (n := checks.whole("n", n)) < 1:
        raise BadValue(f"{checks.shown(n)} samples are asked for: at least 1 is needed")
    _check(model, params, state)
    checks.flag("drawn", drawn)
    checks.fits("n", (n, model.latent))
    z_key, x_key = random.split(key)
    eps = random.normal(z_key, (n, model.latent))
    z = model.prior(params, state, eps)[0].sample(eps)
    if not drawn:
        return decoded(model, params, state, z)
    parts = [model.decode(params, state, part)[0] for part in z.split(_CHUNK)]
    noise = random.normal(x_key, (n, *parts[0].mean.shape[1:]))
    return torch.cat([p.sample(eps_n) for p, eps_n in zip(parts, noise.split(_CHUNK), strict=True)])


def interpolated(model: VAE, params: Params, state: State, first: Tensor, second: Tensor, steps: int) -> Tensor:
    """Means [steps, ...] decoded on the straight line between two items' latents, from the first to the second.

    Raises:
        BadValue: steps is below two.
    """
    if (steps := checks.whole("steps", steps)) < 2:
        raise BadValue(
            f"an interpolation of {checks.shown(steps)} images is asked for: it has at least 2, its two ends"
        )
    _check(model, params, state)
    checks.fits("steps", (steps, model.latent))
    if checks.tensor("first", first).shape != checks.tensor("second", second).shape or first.dtype != second.dtype:
        raise BadValue(f"first is {checks.shown(first)} and second {checks.shown(second)}: they must be alike")
    checks.same_device(first=first, second=second)
    start, end = latents(model, params, state, torch.stack([first, second]))
    t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device).unsqueeze(1)
    return decoded(model, params, state, start + (end - start) * t)


def latent_plane(z: Tensor) -> tuple[Tensor, Tensor]:
    """The plane to look at latents z [n, Z] in: (origin [Z], two orthonormal directions [2, Z]).

    The latent space itself for Z = 2; else the plane of the first two principal components, through the mean.
    """
    _check_latents(z)
    if z.shape[1] == 2:
        return z.new_zeros(2), torch.eye(2, dtype=z.dtype, device=z.device)
    origin = z.mean(0)
    if not z.isfinite().all():
        raise BadData("z holds NaN or infinite values: they have no principal components")
    _, vectors = torch.linalg.eigh((z - origin).T @ (z - origin))  # ascending
    directions = vectors.T.flip(0)[:2]
    return origin, torch.cat([directions, z.new_zeros(2 - len(directions), z.shape[1])])


def latent_scatter(
    model: VAE, params: Params, state: State, x: Tensor, labels: Tensor | None = None, *, name: str
) -> Figure:
    """Where the encoder puts each datum, by class, in the latent plane or that of the first two components."""
    z = latents(model, params, state, x)
    origin, directions = latent_plane(z)
    axes = ("z1", "z2") if model.latent <= 2 else ("1st principal component of z", "2nd principal component of z")
    checks.text("name", name)
    plane = ((z - origin) @ directions.T).cpu()
    return plots.latent_scatter(plane, labels, axes=axes, title=f"{name}: latent means of {len(x):,} test items")


def latent_grid(model: VAE, params: Params, state: State, x: Tensor, *, pixels: Pixels = as_is, name: str) -> Figure:
    """Images decoded on a grid over the part of the latent plane where the data x are encoded.

    Raises:
        BadValue: the latent space is no plane, or the data are no images.
    """
    _check(model, params, state, x=x)
    _check_shown(pixels, name)
    _check_images(x, "a latent grid")
    if model.latent != 2:
        raise BadValue(
            f"a latent grid needs Z = 2, and {checks.line(name, 60)} has Z = {model.latent}: ask for the scatter"
        )
    images, extent = decoded_grid(model, params, state, latents(model, params, state, x))
    title = f"{name}: images decoded from the latent plane"
    return plots.image_grid(_seen(pixels, images), extent=extent, title=title)


def decoded_grid(
    model: VAE, params: Params, state: State, z: Tensor
) -> tuple[Tensor, tuple[float, float, float, float]]:
    """Means decoded on a grid over latents z [n, 2]: images [cells, cells, C, H, W], and the extent.

    The grid spans the middle 98% of the latents on each axis: the outermost few would leave the rest no room.
    """
    if _check_latents(z).shape[1] != 2:
        raise BadValue(f"z has shape {list(z.shape)}: a grid needs latents [n, 2]")
    low, high = z.quantile(torch.tensor([0.01, 0.99], dtype=z.dtype, device=z.device), dim=0)
    # One point has no extent: it gets room.
    low, high = torch.where(low < high, low, low - 1), torch.where(low < high, high, high + 1)
    middles = (torch.arange(_CELLS, dtype=z.dtype, device=z.device) + 0.5) / _CELLS
    across, up = (low + middles.unsqueeze(1) * (high - low)).unbind(1)
    at = torch.stack(torch.meshgrid(up, across, indexing="ij")[::-1], dim=-1).reshape(-1, 2)
    (left, bottom), (right, top) = low.tolist(), high.tolist()
    return decoded(model, params, state, at).unflatten(0, (_CELLS, _CELLS)), (left, right, bottom, top)


def reconstructions(
    model: VAE, params: Params, state: State, x: Tensor, key: random.Key, *, pixels: Pixels = as_is, name: str
) -> Figure:
    """Images above what the model makes of them, by way of a draw from the posterior."""
    _check_shown(pixels, name)
    _check_images(x, "a picture of reconstructions")
    x_hat = reconstructed(model, params, state, x, key)
    title = f"{name}: test images, each decoded again from a draw of z"
    return plots.reconstructions(_seen(pixels, x), _seen(pixels, x_hat), title=title)


def interpolation(
    model: VAE, params: Params, state: State, first: Tensor, second: Tensor, steps: int, *,
    pixels: Pixels = as_is, name: str,
) -> Figure:  # fmt: skip
    """A strip of images decoded between two items, which stand at its ends."""
    _check_shown(pixels, name)
    _check_images(checks.tensor("first", first).unsqueeze(0), "an interpolation")
    images = interpolated(model, params, state, first, second, steps)
    title = f"{name}: from one test image to another, along a straight line between their latents"
    return plots.interpolation(_seen(pixels, images), ends=(_seen(pixels, first), _seen(pixels, second)), title=title)


def image_samples(
    model: VAE, params: Params, state: State, key: random.Key, n: int, *, drawn: bool = False,
    pixels: Pixels = as_is, name: str,
) -> Figure:  # fmt: skip
    """n images of the model, side by side: means of p(x|z) at draws of the prior, or draws from p(x|z) itself."""
    _check_shown(pixels, name)
    x = samples(model, params, state, key, n, drawn=drawn)
    how = "drawn from the model" if drawn else "decoded from draws of the prior"
    return plots.sample_grid(_seen(pixels, x), title=f"{name}: images {how}")


def point_samples(
    model: VAE,
    params: Params,
    state: State,
    key: random.Key,
    n: int,
    dataset: Dataset,
    *,
    drawn: bool = True,
    name: str,
) -> Figure:
    """The density of n points of the model beside that of the data, under the true one's contours where it is known."""
    _check_dataset(dataset)
    checks.text("name", name)
    x = samples(model, params, state, key, n, drawn=drawn)
    contours = (GAUSSIAN2D_MEAN, GAUSSIAN2D_COV) if dataset.name == "gaussian2d" else ()
    names = ("data", "model" if drawn else "model, means of p(x|z) alone")
    how = "drawn from the model" if drawn else "decoded from draws of the prior"
    return plots.densities(dataset.train, x.cpu(), *contours, names=names, title=f"{name}: points {how}")


def evolution(kept: NDArray[np.float32], dataset: Dataset, *, name: str) -> Figure:
    """How samples of the model, kept after every step [steps, n, 2], come to look like the data."""
    _check_dataset(dataset)
    checks.text("name", name)
    if getattr(kept, "ndim", 0) != 3:
        raise BadType(f"kept is {checks.shown(kept)}: it must be an array [steps, n, 2]")
    true = dataset.test[: kept.shape[1]]
    return plots.evolution(range(1, len(kept) + 1), kept, true, title=f"{name}: samples of the model in training")


def of_run(
    model: VAE, params: Params, state: State, recipe: Recipe, dataset: Dataset, x: Tensor, key: random.Key
) -> dict[str, Figure]:
    """Every figure that suits a trained model and its test data as the model sees them, x, by file name."""
    if not isinstance(recipe, Recipe):
        raise BadType(f"recipe is {checks.shown(recipe)}: it must be a Recipe")
    _check_dataset(dataset)
    _check(model, params, state, x=x)
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
            f"history is {checks.shown(history)}: it must be a History of arrays along one axis, as fit returns it"
        )
    steps, epochs = len(history.bound), len(history.test_bound)
    ends = [steps * (epoch + 1) // epochs for epoch in range(epochs)]
    return plots.training_curves(
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
        raise BadType(f"found is {checks.shown(found)}: it must be what variance.compare returns")
    checks.text("name", name)
    rows = list(found.rows.values())
    of = f"{name}: " if name else ""
    where = f"(K = {found.samples}, batch of {found.batch}, {found.replicates:,} replicates)"

    def names(group: str) -> list[str]:
        several = len({row.target for row in rows}) > 1
        ends = [f", for {row.target}" * several for row in rows]
        biased = [", biased" * (group in row.bias and row.bias[group].seen) for row in rows]
        return [row.name + end + bias for row, end, bias in zip(rows, ends, biased, strict=True)]

    def spans(group: str) -> NDArray[np.float64]:
        return np.array([row.groups[group].variance[:4] for row in rows], dtype=float)[:, [0, 2, 3]].T

    figures = {}
    for network in found.networks:
        trusted = [row.groups[network].variance.trusted for row in rows]
        title = f"{of}variance of the {network}'s gradient\n{where}"
        figures[f"variance_{network}"] = plots.variance_bars(
            names(network), *spans(network), trusted=trusted, title=title
        )
    layers = [group for group in rows[0].groups if "/" in group and not set("*?[") & set(group)]
    table = [[row.groups[layer].variance.value for layer in layers] for row in rows]
    title = f"{of}variance of the gradient, layer by layer, over that of {found.reference}\n{where}"
    reference = list(found.rows).index(found.reference)
    figures["variance_layers"] = plots.variance_by_layer(
        list(found.rows), layers, table, reference=reference, title=title
    )
    if np.isfinite([row.seconds for row in rows]).all() and "encoder" in found.networks:
        seconds = [row.seconds for row in rows]
        title = f"{of}variance of the encoder's gradient against its cost\n{where}"
        trusted = [row.groups["encoder"].variance.trusted for row in rows]
        figures["variance_cost"] = plots.variance_cost(
            names("encoder"), seconds, *spans("encoder"), trusted=trusted, title=title
        )
    return figures


def of_sweep(found: variance.Sweep, *, ylabel: str, title: str) -> Figure:
    """The figure of a sweep, with the slopes that were fitted."""
    if not isinstance(found, variance.Sweep):
        raise BadType(f"found is {checks.shown(found)}: it must be what variance.sweep returns")
    series = {name: ([m.value for m in measured], [m.se for m in measured]) for name, measured in found.series.items()}
    slopes = {name: (fit.slope, fit.se) for name, fit in found.slopes.items()}
    over = {"K": "samples K", "batch": "size of the batch", "step": "training step"}.get(found.over, found.over)
    return plots.sweep(found.values, series, slopes=slopes, xlabel=over, ylabel=ylabel, title=title)


def _check(model: VAE, params: Params, state: State, **data: Tensor) -> None:
    """Raises unless this is a model, and the data [n, ...] are some."""
    check(model, params, state)
    for name, value in data.items():
        if not len(checks.valued(name, value, "n ...")):
            raise BadValue(f"{name} is empty: there is nothing to show")


def _check_shown(pixels: Pixels, name: str) -> None:
    checks.function("pixels", pixels, "a function from what the model sees to pixels")
    checks.text("name", name)


def _seen(pixels: Pixels, x: Tensor) -> Tensor:
    return checks.tensor("what pixels returned", pixels(x)).cpu()


def _check_latents(z: Tensor) -> Tensor:
    checks.valued("z", z, "n Z", floating=True)
    if not z.numel() or z.element_size() < 4:
        raise BadValue(f"z is {checks.shown(z)}: it must be float32 or float64 latents [n, Z], one or more")
    return z


def _check_dataset(dataset: Dataset) -> None:
    if not isinstance(dataset, Dataset):
        raise BadType(f"dataset is {checks.shown(dataset)}: it must be a Dataset, as data.load gives it")


def _check_images(x: Tensor, what: str) -> None:
    if checks.tensor("x", x).ndim != 4:
        raise BadValue(f"{what} needs images [C, H, W]: these data have items of shape {list(x.shape[1:])}")
