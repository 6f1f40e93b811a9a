"""Figures of a trained model.

Functions take (model, params, state), the data x [n, ...] as the model sees them, and the model's name for the title.
Those that draw images also take `pixels`, which maps x and decoded images to pixels in [0, 1].
"""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from funcvae import random
from funcvae._support import checks, examples
from funcvae._support.checks import Count
from funcvae._support.examples import Data
from funcvae.data.dataset import Dataset
from funcvae.data.named_sets import GAUSSIAN2D_COV, GAUSSIAN2D_MEAN
from funcvae.distributions import Bernoulli, Categorical
from funcvae.errors import BadValue
from funcvae.figures import decoding, images, latent, points
from funcvae.figures.decoding import decoded_grid, interpolated, latent_plane, latents, reconstructed, samples
from funcvae.model import VAE
from funcvae.modules import Params, State
from funcvae.train import streaming

__all__ = [
    "MOST_POINTS", "Pixels", "as_is", "image_samples", "interpolation", "latent_grid", "latent_scatter",
    "point_samples", "reconstructions",
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
    classes: Sequence[str] = (), name: str,
) -> Figure:  # fmt: skip
    """The latent mean of each datum, by class, in the latent plane or the plane of the first two components.

    The means of Bernoulli or one-hot latents are probabilities.
    """
    z = latents(model, params, state, x)
    origin, directions = latent_plane(z)
    z_name, what = ("q(z = 1|x)", "probabilities") if _are_probabilities(model, params, state, x) else ("z", "means")
    axes = z_name.replace("z", "z1"), z_name.replace("z", "z2")
    if model.latent > 2:
        axes = f"1st principal component of {z_name}", f"2nd principal component of {z_name}"
    plane = (z - origin) @ directions.T
    title = f"{name}: latent {what} of {len(z):,} test items"
    return latent.latent_scatter(plane, labels, classes=classes, axes=axes, title=title)


@checks.arguments
def latent_grid(model: VAE, params: Params, state: State, x: Data, *, pixels: Pixels = as_is, name: str) -> Figure:
    """Images decoded on a grid over the part of the latent plane where the data x are encoded.

    For Bernoulli or one-hot latents the plane is that of their probabilities.

    Raises:
        BadValue: the latent space is not a plane, or the data are not images.
    """
    _images(model.modelled(x))
    if model.condition:
        raise BadValue("the model is conditional: an image depends on more than its latent, so there is no grid")
    if model.latent != 2:
        raise BadValue(f"the model has Z = {model.latent}: a grid needs Z = 2; draw a scatter instead")
    cells, extent = decoded_grid(model, params, state, latents(model, params, state, x))
    axes = ("q(z1 = 1|x)", "q(z2 = 1|x)") if _are_probabilities(model, params, state, x) else ("z1", "z2")
    title = f"{name}: images decoded from the latent plane"
    return images.image_grid(pixels(cells), extent=extent, axes=axes, title=title)


@checks.arguments
def reconstructions(
    model: VAE, params: Params, state: State, x: Data, key: random.Key, *,
    pixels: Pixels = as_is, name: str,
) -> Figure:  # fmt: skip
    """Images above their reconstructions, each decoded from a sample of the posterior.

    Raises:
        BadValue: the data are not images.
    """
    images_of_x = _images(model.modelled(x))
    x_hat = reconstructed(model, params, state, x, key)
    title = f"{name}: test images and their reconstructions from samples of q(z|x)"
    return images.reconstructions(pixels(images_of_x), pixels(x_hat), title=title)


@checks.arguments
def interpolation(
    model: VAE, params: Params, state: State, first: Any, second: Any, steps: int, *,
    pixels: Pixels = as_is, name: str,
) -> Figure:  # fmt: skip
    """A strip of images decoded between two items, with the items themselves at its ends.

    For Bernoulli or one-hot latents the line joins their probabilities, which are decoded like values of z.

    Raises:
        BadValue: the items are not images or differ in shape, or steps is below 2.
    """
    ends = decoding.pair(first, second)
    images_of_ends = _images(model.modelled(ends))
    strip = interpolated(model, params, state, first, second, steps)
    what = "latent probabilities" if _are_probabilities(model, params, state, ends) else "latents"
    title = f"{name}: interpolation between the {what} of two test images"
    return images.interpolation(pixels(strip), ends=pixels(images_of_ends), title=title)


@checks.arguments
def image_samples(
    model: VAE, params: Params, state: State, key: random.Key, n: Count, *, drawn: bool = False,
    condition: Data | None = None, rows: Sequence[str] = (), pixels: Pixels = as_is, name: str,
) -> Figure:  # fmt: skip
    """n images of the model in a grid: means of p(x|z) for z sampled from the prior, or samples of p(x|z).

    A conditional model takes the conditions [n, ...] of the images, row by row; `rows` are names of the rows.
    """
    x = samples(model, params, state, key, n, drawn=drawn, condition=condition)
    return images.sample_grid(pixels(x), rows=rows, title=f"{name}: images {_HOW[drawn]}")


@checks.arguments
def point_samples(
    model: VAE, params: Params, state: State, key: random.Key, n: Count, dataset: Dataset, *, drawn: bool = True,
    condition: Data | None = None, name: str,
) -> Figure:  # fmt: skip
    """The densities of the data and of n points of the model, with contours of the true density if it is known.

    Shows at most `MOST_POINTS` of the data. A conditional model takes the conditions [n, ...] of its points.
    """
    x = samples(model, params, state, key, n, drawn=drawn, condition=condition)
    contours = (GAUSSIAN2D_MEAN, GAUSSIAN2D_COV) if dataset.name == "gaussian2d" else ()
    names = ("data", "model" if drawn else "model, means of p(x|z)")
    train = model.modelled(dataset.decode(streaming.head(streaming.opened("train", dataset.train), MOST_POINTS)))
    return points.densities(train, x, *contours, names=names, title=f"{name}: points {_HOW[drawn]}")


def _are_probabilities(model: VAE, params: Params, state: State, x: Data) -> bool:
    """Whether the posterior means are probabilities, because each latent is 0 or 1."""
    return isinstance(model.encode(params, state, examples.head(x, 1))[0], Bernoulli | Categorical)


_HOW = {True: "sampled from the model", False: "decoded from samples of the prior"}
