"""Figures of a trained model.

Functions take (model, params, state), the data x [n, ...] as the model sees them, and a name for the title, such as
"mnist_vae after 20 epochs".
Those that draw images also take `pixels`, which maps x and decoded images to pixels in [0, 1].
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from funcvae import evaluate, random
from funcvae._support import checks, examples
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae.data.dataset import Dataset
from funcvae.data.named_sets import GAUSSIAN2D_COV, GAUSSIAN2D_MEAN
from funcvae.distributions import (
    Bernoulli,
    Categorical,
    Delta,
    Distribution,
    FullNormal,
    Normal,
    Posterior,
    SignedNormal,
)
from funcvae.errors import BadValue
from funcvae.figures import decoding, images, latent, points
from funcvae.figures._style import headline
from funcvae.figures.decoding import Cells
from funcvae.model import VAE, noise_dtype
from funcvae.modules import Params, State
from funcvae.train import streaming

__all__ = [
    "MOST_POINTS", "Pixels", "as_is", "first_of_class", "image_samples", "interpolation", "is_normal", "item_name",
    "latent_grid", "latent_scatter", "latent_traversal", "point_samples", "reconstructions", "rows_by_class",
    "true_gaussian",
]  # fmt: skip

MOST_POINTS = 100_000
"""The largest number of training points in a figure."""

Pixels = Callable[[Tensor], Tensor]
"""Maps what the model sees or decodes to pixels in [0, 1]."""


def as_is(x: Tensor) -> Tensor:
    """Returns images unchanged: the default of `pixels`, for images in [0, 1]."""
    return x


def _images(x: Tensor) -> Tensor:
    """Checks that the modelled part of the data is images [n, C, H, W]."""
    if x.ndim < 4:
        raise BadValue(f"the items have shape {list(x.shape[1:])}: this figure needs images [C, H, W]")
    return x


@checks.arguments
def latent_scatter(
    model: VAE, params: Params, state: State, x: Data, labels: Tensor | None = None, *,
    classes: Sequence[str] = (), name: str = "",
) -> Figure:  # fmt: skip
    """The latent mean of each datum, by class, in the latent plane or the plane of the first two components.

    The labels of components have their share of the variance. A standard normal prior gets circles at 1 and 2 standard
    deviations, unless the posterior is a point mass, as in an autoencoder. The means of Bernoulli or one-hot latents
    are probabilities.
    """
    z = decoding.latents(model, params, state, x)
    origin, directions = decoding.latent_plane(z)
    q, p = _of_first(model, params, state, x)
    z_name, what = ("q(z = 1|x)", "probabilities") if _is_discrete(q) else ("z", "means")
    plane = (z - origin) @ directions.T
    axes = z_name.replace("z", "z1"), z_name.replace("z", "z2")
    if model.latent > 2:
        shares = plane.var(0, correction=0) / z.var(0, correction=0).sum()
        ends = [f" ({share:.0%} of the variance)" if share.isfinite() else "" for share in shares]
        axes = f"1st principal component of {z_name}{ends[0]}", f"2nd principal component of {z_name}{ends[1]}"
    standard = isinstance(p, Normal) and bool((p.loc == 0).all() and (p.sigma == 1).all())
    # The projection of a standard normal onto a plane is one too.
    centre = -(directions @ origin) if standard and not isinstance(q, Delta) else None
    title = headline(name, f"latent {what} of {len(z):,} test items")
    return latent.latent_scatter(plane, labels, classes=classes, prior=centre, axes=axes, title=title)


@checks.arguments
def latent_grid(
    model: VAE, params: Params, state: State, x: Data, *,
    span: Sequence[float] | None = None, n: Cells = 20, pixels: Pixels = as_is, name: str = "",
) -> Figure:  # fmt: skip
    """Images decoded on a grid of n times n points of the latent plane.

    Both axes go from `span[0]` to `span[1]`: unless given, from -r to r, where the data x are encoded; for Bernoulli or
    one-hot latents, whose plane is that of their probabilities, from 0 to 1.

    Raises:
        BadValue: the latent space is not a plane, the data are not images, or span does not ascend.
    """
    _images(model.modelled(x))
    if model.condition:
        raise BadValue("the model is conditional: an image depends on more than its latent, so there is no grid")
    if model.latent != 2:
        raise BadValue(f"the model has Z = {model.latent}: a grid needs Z = 2; draw a traversal or a scatter instead")
    discrete = _is_discrete(_of_first(model, params, state, x)[0])
    span = (0.0, 1.0) if span is None and discrete else span
    z = decoding.latents(model, params, state, x)
    cells, extent = decoding.decoded_grid(model, params, state, z, span=span, n=n)
    axes = ("q(z1 = 1|x)", "q(z2 = 1|x)") if discrete else ("z1", "z2")
    title = headline(name, "images decoded from the latent plane")
    return images.image_grid(pixels(cells), extent=extent, axes=axes, title=title)


@checks.arguments
def latent_traversal(
    model: VAE, params: Params, state: State, x: Data, *,
    rows: Cells = 8, span: Sequence[float] = (-3.0, 3.0), n: Cells = 7, pixels: Pixels = as_is, name: str = "",
) -> Figure:  # fmt: skip
    """Images decoded as one latent of the first item varies: a row for each of the latents with the highest KL.

    A row has n images, at values from `span[0]` to `span[1]` standard deviations of the prior from its mean. All other
    latents stay at the mean of q(z|x) of the first item. Rows are labelled with the KL, a mean over x.

    Raises:
        BadType: the KL of the posterior and the prior has no closed form.
        BadValue: the data are not images, the prior is not normal, or span does not ascend.
    """
    _images(model.modelled(x))
    kl = evaluate.kl_per_dimension(model, params, state, x)
    most = kl.argsort(descending=True, stable=True)[:rows].tolist()
    values = np.linspace(*decoding.ascending("span", span), n).tolist()
    cells = decoding.traversed(model, params, state, examples.head(x, 1), most, values)
    names = [f"z{u + 1} (KL {kl[u]:.2g} nats)" for u in most]
    title = headline(name, "first test item as one latent varies")
    return images.traversal(pixels(cells), names, values, title=title)


@checks.arguments
def reconstructions(
    model: VAE, params: Params, state: State, x: Data, key: random.Key | None = None, *,
    pixels: Pixels = as_is, name: str = "",
) -> Figure:  # fmt: skip
    """Images above their reconstructions: each decoded from a draw of q(z|x), or without a key from its mean.

    Below each is its squared error, summed over the pixels.

    Raises:
        BadValue: the data are not images.
    """
    images_of_x = _images(model.modelled(x))
    x_hat = decoding.reconstructed(model, params, state, x, key)
    source = "the mean of q(z|x)" if key is None else "a draw of q(z|x)"
    title = headline(name, f"test images, each reconstructed from {source}")
    return images.reconstructions(pixels(images_of_x), pixels(x_hat), title=title)


@checks.arguments
def interpolation(
    model: VAE, params: Params, state: State, first: Any, second: Any, steps: int, *,
    names: tuple[str, str] = ("first item", "second item"), pixels: Pixels = as_is, name: str = "",
) -> Figure:  # fmt: skip
    """A strip of images decoded between two items, with the items themselves at its ends.

    For Bernoulli or one-hot latents the line joins their probabilities, which are decoded like values of z.

    Args:
        names: what the items are: see `item_name`.

    Raises:
        BadValue: the items are not images or differ in shape, or steps is below 2.
    """
    ends = decoding.pair(first, second)
    images_of_ends = _images(model.modelled(ends))
    strip = decoding.interpolated(model, params, state, first, second, steps)
    what = "latent probabilities" if _is_discrete(_of_first(model, params, state, ends)[0]) else "latents"
    title = headline(name, f"interpolation between the {what} of two test images")
    return images.interpolation(pixels(strip), ends=pixels(images_of_ends), names=names, title=title)


def item_name(dataset: Dataset, item: int) -> str:
    """The number of a test item and, if known, its class, on two lines."""
    number = f"test item {item:,}"
    return number if dataset.test_labels is None else f"{number}\n{_class(dataset, dataset.test_labels[item])}"


def first_of_class(labels: Tensor, label: int) -> int:
    """The index of the first item of a class that has one."""
    return int((labels == label).nonzero()[0])


def rows_by_class(dataset: Dataset, n: int, items: int) -> tuple[Tensor, list[str]]:
    """Test items to condition about n samples on, by class: their indices [rows · cols], and the names of the rows.

    There are at most ten classes, those with the lowest numbers among the first `items` test items. A class of fewer
    items than its row has images repeats them.
    """
    if dataset.test_labels is None:
        return torch.arange(min(n, items)), []
    labels = dataset.test_labels[:items]
    found = labels.unique()[:10]
    place = torch.arange(max(1, n // len(found)))
    of_class = [(labels == label).nonzero().flatten() for label in found]
    return torch.cat([at[place % len(at)] for at in of_class]), [_class(dataset, label) for label in found]


def _class(dataset: Dataset, label: Tensor) -> str:
    return dataset.classes[int(label)] if dataset.classes else f"class {int(label)}"


@checks.arguments
def image_samples(
    model: VAE, params: Params, state: State, key: random.Key, n: Count, *, drawn: bool = False,
    condition: Data | None = None, rows: Sequence[str] = (), pixels: Pixels = as_is, name: str = "",
) -> Figure:  # fmt: skip
    """n images of the model in a grid: means of p(x|z) for z sampled from the prior, or samples of p(x|z).

    A conditional model takes the conditions [n, ...] of the images, row by row; `rows` are names of the rows. If p(x|z)
    is normal with one sigma for all pixels and latents, the title of samples has it, because the figure shows it as
    noise.
    """
    x = decoding.samples(model, params, state, key, n, drawn=drawn, condition=condition)
    what = "images drawn from p(x|z)" if drawn else "means of p(x|z) for samples z of the prior"
    if drawn and (sigma := _one_sigma(model, params, state, x.device, condition)) is not None:
        what += f": noise of σ = {sigma:.2g} in every pixel"
    return images.sample_grid(pixels(x), rows=rows, title=headline(name, what))


@checks.arguments
def point_samples(
    model: VAE, params: Params, state: State, key: random.Key, n: Count, dataset: Dataset, *, drawn: bool = True,
    condition: Data | None = None, name: str = "",
) -> Figure:  # fmt: skip
    """The densities of the data and of n points of the model, with contours of the true density if it is known.

    Shows at most `MOST_POINTS` of the data. A conditional model takes the conditions [n, ...] of its points.
    """
    x = decoding.samples(model, params, state, key, n, drawn=drawn, condition=condition)
    names = ("data", "model" if drawn else "model, means of p(x|z)")
    train = model.modelled(dataset.decode(streaming.head(streaming.opened("train", dataset.train), MOST_POINTS)))
    title = headline(name, "points sampled from the model" if drawn else "points decoded from samples of the prior")
    return points.densities(train, x, *true_gaussian(dataset), names=names, title=title)


def true_gaussian(dataset: Dataset) -> tuple[ArrayLike, ...]:
    """The mean and the covariance of the data's true density, if the data set is known to be Gaussian."""
    return (GAUSSIAN2D_MEAN, GAUSSIAN2D_COV) if dataset.name == "gaussian2d" else ()


@torch.no_grad()
def _of_first(model: VAE, params: Params, state: State, x: Data) -> tuple[Posterior, Distribution]:
    """The posterior and the prior of the first datum."""
    first = examples.head(x, 1)
    q, _ = model.encode(params, state, first)
    return q, model.prior(params, state, q.loc, **model.given(first))[0]


def is_normal(model: VAE, params: Params, state: State, x: Data) -> bool:
    """Whether posterior and prior are normal, so that `latent_traversal` can draw them."""
    q, p = _of_first(model, params, state, x)
    return isinstance(q, Normal | SignedNormal | FullNormal) and isinstance(p, Normal)


def _is_discrete(q: Posterior) -> bool:
    """Whether the posterior's means are probabilities, because each latent is 0 or 1."""
    return isinstance(q, Bernoulli | Categorical)


@torch.no_grad()
def _one_sigma(model: VAE, params: Params, state: State, device: torch.device, condition: Data | None) -> float | None:
    """The standard deviation of a normal p(x|z) if it is one number, the same at two latents; else None."""
    z = torch.eye(2, model.latent, dtype=noise_dtype(params), device=device)
    both = None if condition is None else examples.each(lambda c: c[:1].expand(2, *c.shape[1:]), condition)
    p, _ = model.decode(params, state, z, condition=both)
    if not isinstance(p, Normal) or p.sigma.min() < p.sigma.max():
        return None
    return float(p.sigma.max())
